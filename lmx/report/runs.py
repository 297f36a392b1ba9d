"""`lmx runs`: the runs below a folder, a line each."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from lmx.report.read import RunFiles, number
from lmx.sweep.table import steps
from lmx.types import BadInput


def find(root: str | os.PathLike[str] = 'runs') -> list[dict[str, Any]]:
    """One dict per run: name, step, steps, loss, evaluation, state, age (seconds since its last line), newest first.

    A sweep is one of them, with the steps of all its trainings together, the best point's value, and how many are done.

    Raises:
      BadInput: no such folder.
    """
    folder = pathlib.Path(root)
    if not folder.is_dir():
        raise BadInput(f'there is no folder {root}; name the one that your --workdir folders are in')
    sweeps = [path.parent for path in folder.rglob('study.json')]
    inside = {sweep / 'trials' for sweep in sweeps if sweep != folder}
    found = [_sweep(path, folder) for path in sweeps if path != folder]
    found += [
        _row(path.parent, folder)
        for path in folder.rglob('config.json')
        if (path.parent / 'provenance.json').exists() and inside.isdisjoint(path.parents)
    ]
    return sorted(found, key=lambda row: row['age'])


def _sweep(path: pathlib.Path, root: pathlib.Path) -> dict[str, Any]:
    from lmx.report.sweep_read import Sweep

    files = [path / 'study.json', *path.glob('trials/*/*.json*')]
    told = {'name': str(path.relative_to(root)), 'loss': None, 'age': time.time() - max(file.stat().st_mtime for file in files)}
    try:
        sweep = Sweep(path)
    except (BadInput, ValueError, TypeError, KeyError, AttributeError):  # of another version, or broken
        return {**told, 'step': 0, 'steps': None, 'evaluation': '', 'state': 'sweep that cannot be read'}
    counts, best = sweep.counts(), sweep.answer.best
    running = any(_held(lock) for lock in path.glob('.lock*'))
    rest = ''.join(f', {counts[state]} {state}' for state in ('failed', 'diverged', 'pruned') if state in counts)
    return {
        **told,
        'step': sum(row.step for row in sweep.rows),
        'steps': steps(sweep.study),
        'evaluation': f'{sweep.study.metric} {best.mean:.4f}' if best else '',
        'state': f'{counts.get("done", 0)}/{sum(counts.values())} done{rest}' + (', running' if running else ''),
    }


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
