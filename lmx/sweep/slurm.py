"""A sweep by Slurm: an array of jobs that share the trainings, and a job behind it that does what is left and says what was found."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from lmx.launch import slurm, snapshot
from lmx.study import Search
from lmx.sweep.folder import Folder
from lmx.types import BadInput

INNER = ('local', 'vmap')


def scripts(
    folder: Folder,
    *,
    code: pathlib.Path,
    array: int,
    at_once: int | None = None,
    executor: str = 'local',
    arguments: Sequence[str] = (),
    gpus_per_node: int = 0,
    grace: int = 120,
    restarts: int = 3,
    setup: Sequence[str] = (),
    container: str | None = None,
    options: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """{'array': its sbatch script, 'last': that of the job behind it}.

    Each job of the array runs `lmx sweep --executor=EXECUTOR --part=INDEX/ARRAY` as one process, which is queued again when it is preempted or
    comes to its time limit and goes on where it was. The last runs the same without --part: what failed or was left by jobs that
    died, the winner's fresh seeds, the report.

    Args:
      folder: of the sweep, with its study recorded.
      code: the folder in which `lmx` is run.
      array: how many jobs, at most; each has at least one training.
      at_once: how many of them may run at a time; None = all.
      executor: what each of them trains by: 'local', a process for every training, or 'vmap', one program for its part.
      arguments: more of `lmx sweep`, such as ('--jobs=4',).

    The rest is as for `lmx.launch.slurm.script`.

    Raises:
      BadInput: numbers that cannot be, an unknown executor or option.
    """
    if executor not in INNER:
        raise BadInput(f'--inner={executor!r} must be one of {", ".join(INNER)}')
    if array < 1:
        raise BadInput(f'--array={array} must be at least 1')
    points = folder.study.points
    count = min(array, points.trials if isinstance(points, Search) else len(folder.trials()))
    command = ['sweep', f'--workdir={folder.path}', f'--executor={executor}', *arguments]
    asked = {'gpus_per_node': gpus_per_node, 'grace': grace, 'restarts': restarts, 'setup': setup, 'container': container}
    same = {'workdir': folder.path, 'folder': code, 'tasks_per_node': 1, 'options': options, **asked}
    return {
        'array': slurm.script(command, name=folder.path.name, array=(count, count if at_once is None else at_once), **same),
        'last': slurm.script(command, name=f'{folder.path.name}-last', **same),
    }


def submit(folder: Folder, *, array: int, copy: bool = True, **asked) -> dict[str, int]:
    """Submits both, to run a copy of the code of this folder as it is now, in WORKDIR/code -> {'array': its number, 'last': its number}.

    Args:
      folder, array, asked: as for `scripts`.
      copy: False runs the code where it is, as it will be.

    Raises:
      BadInput: as for `scripts`; there is no sbatch, or it refuses the jobs.
    """
    texts = scripts(folder, code=code_of(folder, copy), array=array, **asked)
    first = slurm.submit(texts['array'], folder.path, name='array')
    return {'array': first, 'last': slurm.submit(texts['last'], folder.path, name='last', after=first)}


def code_of(folder: Folder, copy: bool = True, make: bool = True) -> pathlib.Path:
    """Where the jobs find the code: this folder, or its copy in the sweep's folder, which is made unless not `make`."""
    here = pathlib.Path.cwd()
    return snapshot.take(here, folder.path / 'code', copy=make) if copy else here


def dry_run(folder: Folder, *, array: int, copy: bool = True, **asked) -> str:
    """What `submit` would submit."""
    texts = scripts(folder, code=code_of(folder, copy, make=False), array=array, **asked)
    return f'{texts["array"]}\n# --dependency=afterany:ARRAY\n{texts["last"]}'
