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
) -> str:
    """The sbatch script of one training.

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

    Raises:
      BadInput: numbers that cannot be, an unknown option.
    """
    options = dict(options or {})
    tasks = tasks_per_node or gpus_per_node or 1
    for what, value, least in (('nodes', nodes, 1), ('gpus_per_node', gpus_per_node, 0), ('tasks_per_node', tasks, 1), ('grace', grace, 0)):
        if value < least:
            raise BadInput(f'--{what}={value} must be at least {least}')
    unknown = [option for option in options if option not in OPTIONS]
    if unknown:
        raise BadInput(f'sbatch option {unknown[0]!r} is not among {", ".join(OPTIONS)}')
    logs = workdir / 'logs'
    header = {
        'job-name': name,
        'nodes': nodes,
        'ntasks-per-node': tasks,
        **({'gpus-per-node': gpus_per_node} if gpus_per_node else {}),
        **{option.replace('_', '-'): value for option, value in options.items() if value},
        'signal': f'TERM@{grace}',
        'output': logs / '%j.out',
        'open-mode': 'append',
    }
    run = shlex.join([sys.executable, '-m', 'lmx.cli', *command])
    srun = [
        'srun',
        '--wait=60',
        f'--output={logs}/%j-%t.out',
        '--open-mode=append',
        *([f'--container-image={container}'] if container else []),
    ]
    failures = shlex.quote(str(logs / 'failures-')) + '$SLURM_JOB_ID'
    lines = [
        '#!/bin/bash',
        *(f'#SBATCH --{key}={value}' for key, value in header.items()),
        '#SBATCH --requeue',
        f'cd {shlex.quote(str(folder))} || exit 1',
        f'export PYTHONPATH={shlex.quote(str(folder))}${{PYTHONPATH:+:$PYTHONPATH}}',
        *setup,
        "trap : TERM  # Slurm's signal is for the run; this script waits for it",
        f'{shlex.join(srun)} {run} &',
        'wait $!; code=$?',
        'while kill -0 $! 2>/dev/null; do wait $!; code=$?; done',
        '# 75: stopped by a signal, with a checkpoint. Other failures count; bad input (2) is not tried again.',
        'if [ $code -eq 75 ]; then exec scontrol requeue $SLURM_JOB_ID; fi',
        f'if [ $code -ne 0 ] && [ $code -ne 2 ]; then echo $code >> {failures}',
        f'  if [ $(wc -l < {failures}) -le {restarts} ]; then exec scontrol requeue $SLURM_JOB_ID; fi',
        'fi',
        'exit $code',
    ]
    return '\n'.join(lines) + '\n'


def submit(text: str, workdir: pathlib.Path) -> int:
    """Writes the script to `workdir/logs`, submits it and returns the job's number.

    Raises:
      BadInput: there is no sbatch, or it refuses the job.
    """
    logs = workdir / 'logs'
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / 'submitted.sh'
    path.write_text(text)
    try:
        done = subprocess.run(['sbatch', '--parsable', str(path)], capture_output=True, text=True)
    except FileNotFoundError:
        raise BadInput('there is no `sbatch` here; run this on a login node of the cluster, or look at the script with --dry_run') from None
    if done.returncode or not re.match(r'\d+', done.stdout):
        raise BadInput(f'sbatch refuses {path}: {" ".join((done.stderr or done.stdout).split())}')
    return int(done.stdout.split(';')[0])
