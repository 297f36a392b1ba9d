"""Jobs under Slurm: one sbatch script, one process per task, requeued when a run stops with a checkpoint.

Not submitit: it would put a pickled Python process between Slurm and the run, which swallows the exit code 75 and asks `sacct`, that many
clusters do not have. A script can be read, changed and submitted by hand.
"""

from __future__ import annotations

import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence

from lmx.types import BadInput

OPTIONS = ('account', 'partition', 'qos', 'constraint', 'time', 'mem', 'cpus_per_task', 'reservation', 'exclude')
"""Of sbatch, handed on as they are."""


def script(
    command: Sequence[str],
    *,
    workdir: pathlib.Path,
    folder: pathlib.Path,
    nodes: int = 1,
    gpus_per_node: int = 0,
    tasks_per_node: int | None = None,
    name: str = 'lmx',
    grace: int = 120,
    restarts: int = 3,
    setup: Sequence[str] = (),
    container: str | None = None,
    options: Mapping[str, str] | None = None,
    array: tuple[int, int] | None = None,
) -> str:
    """The sbatch script of one training, or of an array of jobs that share the work.

    Args:
      command: of lmx, such as ('train', '--config=...'); it is run in `folder`, by the Python that runs this.
      workdir: of the run; the logs of every task go to `workdir/logs`.
      gpus_per_node: 0 = none are asked for.
      tasks_per_node: processes on a node; None = one per GPU, or one.
      grace: seconds before the time limit at which the run is told to save and stop.
      restarts: after how many failures the job is no longer requeued. Preemption and time limits do not count.
      setup: shell lines before the run, such as 'module load cuda'.
      container: an image, for srun's --container-image (enroot/pyxis).
      options: of sbatch, {one of `OPTIONS`: value}.
      array: (jobs, at most so many at a time); the command of each ends in --part=INDEX/JOBS.

    Raises:
      BadInput: numbers that cannot be, an unknown option.
    """
    options = dict(options or {})
    tasks = tasks_per_node or gpus_per_node or 1
    at_once = {'jobs of the array': array[0], 'jobs at a time': array[1]} if array else {}
    least = {'--nodes': 1, '--gpus_per_node': 0, '--tasks_per_node': 1, '--grace': 0}
    for what, value in {**dict(zip(least, (nodes, gpus_per_node, tasks, grace))), **at_once}.items():
        if value < least.get(what, 1):
            raise BadInput(f'{what}={value} must be at least {least.get(what, 1)}')
    unknown = [option for option in options if option not in OPTIONS]
    if unknown:
        raise BadInput(f'sbatch option {unknown[0]!r} is not among {", ".join(OPTIONS)}')
    logs = workdir / 'logs'
    output = logs / ('%A_%a' if array else '%j')
    header = {
        'job-name': name,
        **({'array': f'0-{array[0] - 1}%{array[1]}'} if array else {}),
        'nodes': nodes,
        'ntasks-per-node': tasks,
        **({'gpus-per-node': gpus_per_node} if gpus_per_node else {}),
        **{option.replace('_', '-'): value for option, value in options.items() if value},
        'signal': f'TERM@{grace}',
        'output': f'{output}.out',
        'open-mode': 'append',
    }
    srun = ['srun', '--wait=60', f'--output={output}-%t.out', '--open-mode=append']
    srun += [f'--container-image={container}'] if container else []
    run = shlex.join([sys.executable, '-m', 'lmx.cli', *command]) + (f' --part=$SLURM_ARRAY_TASK_ID/{array[0]}' if array else '')
    return '\n'.join(
        [
            '#!/bin/bash',
            *(f'#SBATCH --{key}={value}' for key, value in header.items()),
            '#SBATCH --requeue',
            f'cd {shlex.quote(str(folder))} || exit 1',
            f'export PYTHONPATH={shlex.quote(str(folder))}${{PYTHONPATH:+:$PYTHONPATH}}',
            *setup,
            *_watched(f'{shlex.join(srun)} {run}', logs, restarts, bool(array)),
            'exit $code\n',
        ]
    )


def _watched(run: str, logs: pathlib.Path, restarts: int, array: bool) -> list[str]:
    """The lines that run a command and queue the job again, where that helps, with the command's exit code in $code."""
    # By the job's own number the one job of an array that has the array's would queue all of them again.
    job = '${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}' if array else '$SLURM_JOB_ID'
    failures = shlex.quote(str(logs / 'failures-')) + job
    return [
        "trap : TERM  # Slurm's signal is for the run; this script waits for it",
        f'{run} &',
        'wait $!; code=$?',
        'while kill -0 $! 2>/dev/null; do wait $!; code=$?; done',
        '# 75: stopped by a signal, with a checkpoint. Other failures count; bad input (2) is not tried again.',
        f'if [ $code -eq 75 ]; then exec scontrol requeue {job}; fi',
        f'if [ $code -ne 0 ] && [ $code -ne 2 ]; then echo $code >> {failures}',
        f'  if [ $(wc -l < {failures}) -le {restarts} ]; then exec scontrol requeue {job}; fi',
        'fi',
    ]


def submit(text: str, workdir: pathlib.Path, name: str = 'submitted', after: int | None = None) -> int:
    """Writes the script to `workdir/logs/NAME.sh`, submits it and returns the job's number.

    Args:
      after: a job, or array of jobs, that has to end before, however it ends.

    Raises:
      BadInput: there is no sbatch, or it refuses the job.
    """
    logs = workdir / 'logs'
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / f'{name}.sh'
    wait = [] if after is None else [f'--dependency=afterany:{after}']
    path.write_text(text)
    try:
        done = subprocess.run(['sbatch', '--parsable', *wait, str(path)], capture_output=True, text=True)
    except FileNotFoundError:
        raise BadInput('there is no `sbatch` here; run this on a login node of the cluster, or look at the script with --dry_run') from None
    if done.returncode or not re.match(r'\d+', done.stdout):
        raise BadInput(f'sbatch refuses {path}: {" ".join((done.stderr or done.stdout).split())}')
    return int(done.stdout.split(';')[0])
