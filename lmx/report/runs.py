"""`lmx runs`: the runs below a folder, a line each."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from lmx.report.read import RunFiles, number
from lmx.types import BadInput


def find(root: str | os.PathLike[str] = 'runs') -> list[dict[str, Any]]:
    """One dict per run: name, step, steps, loss, evaluation, state, age (seconds since its last line), newest first.

    Raises:
      BadInput: no such folder.
    """
    if not pathlib.Path(root).is_dir():
        raise BadInput(f'there is no folder {root}; name the one that your --workdir folders are in')
    found = [
        _row(path.parent, pathlib.Path(root))
        for path in pathlib.Path(root).rglob('config.json')
        if (path.parent / 'provenance.json').exists()
    ]
    return sorted(found, key=lambda row: row['age'])


def _row(path: pathlib.Path, root: pathlib.Path) -> dict[str, Any]:
    run = RunFiles(path)
    newest = max(file.stat().st_mtime for file in path.iterdir() if file.is_file())
    done = run.steps is not None and run.step >= run.steps
    return {
        'name': str(path.relative_to(root)) if path != root else path.resolve().name,
        'step': run.step,
        'steps': run.steps,
        'loss': number(run.metrics[-1].get('loss')) if run.metrics else None,
        'evaluation': _evaluation(run),
        'state': 'done' if done else 'running' if _held(path / '.lock') else 'stopped',
        'age': time.time() - newest,
    }


def _evaluation(run: RunFiles) -> str:
    """'validation 2.7466': the loss of every split that was evaluated at the last step."""
    found = [(number(line.get('step')) or 0, split, number(line.get('loss'))) for split, of in run.evaluations.items() for line in of]
    found = [one for one in found if one[2] is not None]
    if not found:
        return ''
    last = max(step for step, _, _ in found)
    return ', '.join(f'{split} {loss:.4f}' for split, loss in {split: loss for step, split, loss in found if step == last}.items())


def _held(lock: pathlib.Path) -> bool:
    """Whether a process of this machine trains in the folder."""
    import fcntl

    try:
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    if not rows:
        return 'no runs here'
    head = ('run', 'step', 'loss', 'evaluation', 'state', 'last change')
    cells = [
        (
            row['name'],
            f'{row["step"]}/{"?" if row["steps"] is None else row["steps"]}',
            '' if row['loss'] is None else f'{row["loss"]:.4f}',
            row['evaluation'],
            row['state'],
            age(row['age']),
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in (head, *cells)) for column in range(len(head))]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in (head, *cells))


def age(seconds: float) -> str:
    """'3 min ago'."""
    for unit, size in (('d', 86400), ('h', 3600), ('min', 60)):
        if seconds >= size:
            return f'{seconds / size:.0f} {unit} ago'
    return f'{seconds:.0f} s ago'
