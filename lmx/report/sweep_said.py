"""What the page and the Markdown of a sweep say in words: its size, the answer, what to be careful of, commands to copy."""

from __future__ import annotations

import math
import shlex
from typing import Any

from lmx import spec
from lmx.report.sweep_read import Sweep
from lmx.study import Search, Trial
from lmx.sweep.answer import span
from lmx.sweep.table import Line


def size(sweep: Sweep) -> str:
    """'9 points x 3 seeds', or how a search searches."""
    points = sweep.study.points
    if isinstance(points, Search):
        return f'a search of {points.trials} points ({", ".join(filter(None, (points.sampler, points.pruner)))})'
    seeds = len(sweep.study.seeds)
    return f'{len(sweep.lines)} points' + (f' x {seeds} seeds' if seeds > 1 else '')


def answer(sweep: Sweep) -> list[str]:
    """The winner, its value, and the value of its fresh seeds."""
    found = sweep.answer
    if found.best is None:
        if any(row.state == 'done' and sweep.study.metric not in row.values for row in sweep.listed):
            return [f'Trainings came to their end, but no point has a value of {sweep.study.metric} from all its seeds.']
        return ['No point has come to its end yet.' if not found.final else 'No point came to its end.']
    which = 'Best' if found.final else 'Best so far'
    lead = f'{which}: {sweep.label(found.best)}' + (f' (point {found.best.number})' if sweep.hypers else '')
    value = f'{sweep.study.metric} {span(found.best.mean, found.best.low, found.best.high, len(found.best.values))}'
    told = [lead, value + (', 95 % interval of the mean' if len(found.best.values) > 1 else '')]
    if found.fresh:
        told.append(f'Reported: {found.metric} {span(found.mean, found.low, found.high, len(found.fresh), "fresh seeds")}')
    if found.wanted > len(found.fresh):
        told.append(f'{len(found.fresh)} of {found.wanted} fresh seeds of this point are trained.')
    return told


def hints(sweep: Sweep) -> list[str]:
    """What the winner's value does not settle: others within its interval, and a best value at the end of what was tried."""
    best = sweep.answer.best
    if best is None:
        return []
    near = [line.number for line in sweep.ranked[1:] if best.low <= line.mean <= best.high]
    listed = ', '.join(map(str, near[:8])) + (', ...' if len(near) > 8 else '')
    several = 's' if len(near) > 1 else ''
    told = [f'Within its interval lie the means of {len(near)} other point{several}: {listed}.'] if near else []
    for hyper in sweep.hypers:
        at = hyper.level(best)
        if hyper.numeric and len(hyper.levels) > 2 and at in (0, len(hyper.levels) - 1):
            tried = 'largest' if at else 'smallest'
            told.append(f'{hyper.name} {hyper.labels[at]} is the {tried} value that was tried; the best may lie beyond it.')
    return told


def commands(sweep: Sweep) -> list[tuple[str, str]]:
    """(what for, what to type): to train the winner again from its config, and what it changes of the base where flags can do that."""
    best = sweep.answer.best
    if best is None:
        return []
    row = next(row for row in sweep.rows_of(best) if row.state == 'done')
    told = [('To train it again:', f'lmx train --config={shlex.quote(str(row.path / "config.json"))} --workdir=runs/best')]
    changes = overrides(sweep, row.trial)
    return [*told, ('What it changes of the base config:', ' '.join(changes))] if changes else told


def overrides(sweep: Sweep, trial: Trial) -> list[str]:
    """Flags that make the base config that of a training; [] where nothing differs, or something that flags cannot change."""
    plain = spec.to_plain(sweep.study.base)
    changed = [
        (path, value) for path, value in {**trial.point, 'seed': trial.seed}.items() if spec.get(plain, path) != spec.to_plain(value)
    ]
    if not all(_settable(spec.get(plain, path), value) for path, value in changed):
        return []
    return [
        shlex.quote(f'--config.{path}={value!r}' if not isinstance(value, str) else f'--config.{path}={value}') for path, value in changed
    ]


def _settable(old: Any, new: Any) -> bool:
    """Whether a flag can put `new` where `old` is."""
    if isinstance(new, str):
        return isinstance(old, str) and not old.startswith('${')
    return isinstance(new, (bool, int, float)) and not isinstance(old, (dict, tuple)) and math.isfinite(new)


def states(sweep: Sweep, line: Line) -> str:
    """'3 done', '2 done, 1 diverged'; of a single training that was stopped, where it stood."""
    if sum(line.states.values()) > 1:
        return ', '.join(f'{count} {state}' for state, count in line.states.items())
    row = sweep.rows_of(line)[0]
    if row.state not in ('pruned', 'running', 'diverged', 'failed'):
        return row.state
    value = row.values.get(sweep.study.metric)
    return f'{row.state} at step {row.step:,}' + ('' if value is None else f', {value:.4f}')


def broken(sweep: Sweep) -> list[tuple[str, str, str, str, str]]:
    """(training, values, state, step, reason) of those that failed or diverged."""
    at = {line.number: line for line in sweep.lines}
    lost = [row for row in sweep.rows if row.state in ('failed', 'diverged')]
    return [(row.trial.name, sweep.label(at[row.trial.number]), row.state, f'{row.step:,}', row.why) for row in lost]
