"""`lmx runs`: the runs below a folder, a line each."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from lmx.report.read import RunFiles
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
    last = run.metrics[-1] if run.metrics else {}
    evaluation = next((line for line in reversed(run.evaluations) if 'loss' in line), {})
    newest = max(file.stat().st_mtime for file in path.iterdir() if file.is_file())
    step, steps = last.get('step', 0), run.config.get('steps', 0)
    return {
        'name': str(path.relative_to(root)) if path != root else path.name,
        'step': step,
        'steps': steps,
        'loss': last.get('loss'),
        'evaluation': f'{evaluation["split"]} {evaluation["loss"]:.4f}' if evaluation else '',
        'state': 'done' if step >= steps else 'running' if _held(path / '.lock') else 'stopped',
        'age': time.time() - newest,
    }


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
            f'{row["step"]}/{row["steps"]}',
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
