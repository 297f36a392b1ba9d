"""A sweep as a page that needs nothing but itself, and its results as tables for people (Markdown), programs (CSV) and papers (LaTeX)."""

from __future__ import annotations

import html
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmx import study
from lmx.report import importances, shell, sweep_curves, sweep_plots, sweep_said
from lmx.report.sweep_read import Hyper, Sweep
from lmx.sweep import table
from lmx.sweep.table import Line

SHOWN = 50
"""Lines of a table that are shown without a click."""


def write(path: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Writes results.md, results.csv and results.tex into the sweep's folder, and the page, by default there too; returns the page's path.

    Raises:
      BadInput: the folder holds no sweep.
    """
    sweep = Sweep(path)
    shell.write(sweep.path / 'results.md', markdown(sweep))
    shell.write(sweep.path / 'results.csv', table.csv_of(sweep.lines, sweep.study.metric, sweep.answer))
    shell.write(sweep.path / 'results.tex', table.latex_of(sweep.study, sweep.lines, sweep.answer))
    return shell.write(pathlib.Path(output) if output is not None else sweep.path / 'report.html', page(sweep))


def page(sweep: Sweep) -> str:
    """The HTML of a sweep, finished or not. All text of it is escaped."""
    title = sweep.path.name
    parts = [f'<h1>{html.escape(title)}</h1>', f'<p class="dim">{"<br>".join(map(html.escape, _facts(sweep)))}</p>', _answer(sweep)]
    parts += ['<h2>Points</h2>', _points(sweep), *_broken(sweep)]
    curves = sweep_curves.figures(sweep)
    parts += ['<h2>Curves</h2>', shell.figures(curves) if curves else '<p class="dim">No step yet.</p>']
    shares, why = importances.of(sweep.study, sweep.lines, sweep.hypers)
    if sweep.hypers and any(line.values for line in sweep.lines):
        parts += ['<h2>Hyperparameters</h2>', *_surfaces(sweep, shares)]
        parts.append(shell.figures([(hyper.path, sweep_plots.slice_(sweep, hyper)) for hyper in sweep.hypers], 'plots small'))
        parts += ['<h2>Importances</h2>', *_importances(sweep, shares, why)]
    kept = {key: value for key, value in study.to_plain(sweep.study).items() if key not in ('base', 'points')}
    parts += ['<h2>Study</h2>', shell.tree(kept, 'how it was run', is_open=False)]
    parts.append(shell.tree(study.to_plain(sweep.study)['base'], 'the config that every point changes', is_open=False))
    return shell.page(title, parts)


def markdown(sweep: Sweep) -> str:
    """The answer and the table as Markdown."""
    head, rows = _table(sweep, sweep.lines)
    text = [f'# {_marked(sweep.path.name)}', *map(_marked, (*_facts(sweep), *sweep_said.answer(sweep)))]
    if sweep.answer.best and sweep.answer.note:
        text.append(f'**{_sentence(sweep.answer.note)}**')
    text += map(_marked, sweep_said.hints(sweep))
    text += [f'{what}\n\n```\n{command}\n```' for what, command in sweep_said.commands(sweep)]
    text.append('\n'.join('| ' + ' | '.join(_marked(cell) for cell in row) + ' |' for row in [head, ['---'] * len(head), *rows]))
    text += [
        f'- {_marked(" ".join((name, state, "at step", step)))} ({_marked(values)}): {_marked(why)}'
        for name, values, state, step, why in sweep_said.broken(sweep)
    ]
    return '\n\n'.join(text) + '\n'


def _marked(cell: Any) -> str:
    """Text that Markdown shows as it is."""
    return ''.join(f'\\{char}' if char in '\\|<>*_`[]' else char for char in ' '.join(str(cell).split()))


def _sentence(note: str) -> str:
    return f'{note[0].upper()}{note[1:]}.'


def _facts(sweep: Sweep) -> list[str]:
    better = 'lower' if sweep.study.mode == 'min' else 'higher'
    model = sweep.study.base.get('model')
    name = model.get('call') if hasattr(model, 'get') else model
    first = ' · '.join(str(fact) for fact in (name, f'{sweep.study.metric}, {better} is better', sweep_said.size(sweep)) if fact)
    states = ', '.join(f'{count} {state}' for state, count in sweep.counts().items())
    return [first, f'{states} · as of {time.strftime("%Y-%m-%d %H:%M")}']


def _answer(sweep: Sweep) -> str:
    lead, *rest = sweep_said.answer(sweep)
    parts = [f'<p class="lead">{html.escape(lead)}</p>', *(f'<p>{html.escape(line)}</p>' for line in rest)]
    note = sweep.answer.note if sweep.answer.best else ''
    if note:
        kind = 'bad' if table.chosen_on(sweep.study) == 'test' else 'dim'
        parts.append(f'<p class="{kind}">{html.escape(_sentence(note))}</p>')
    parts += [f'<p class="dim">{html.escape(hint)}</p>' for hint in sweep_said.hints(sweep)]
    parts += [f'<p>{html.escape(what)}</p><pre>{html.escape(command)}</pre>' for what, command in sweep_said.commands(sweep)]
    return f'<div class="answer">{"".join(parts)}</div>'


def _table(sweep: Sweep, lines: Sequence[Line]) -> tuple[list[str], list[list[Any]]]:
    """Heads and cells; the interval and the seeds are left out where every point is trained once."""
    single = all(sum(line.states.values()) == 1 for line in sweep.lines)
    head = [
        'rank',
        'point',
        *(hyper.name for hyper in sweep.hypers),
        sweep.study.metric,
        *([] if single else ['95 % interval', 'seeds']),
        'state',
    ]
    ranks = {line.number: rank + 1 for rank, line in enumerate(sweep.ranked)}
    rows = []
    for line in lines:
        mean = f'{line.mean:.4f}' if line.values else ''
        within = f'{line.low:.4f} to {line.high:.4f}' if len(line.values) > 1 else ''
        values = [table.value_text(hyper.values[line.number]) for hyper in sweep.hypers]
        seeds = [] if single else [within, len(line.values)]
        rows.append([ranks.get(line.number, ''), line.number, *values, mean, *seeds, sweep_said.states(sweep, line)])
    return head, rows


def _points(sweep: Sweep) -> str:
    if not sweep.lines:
        return '<p class="dim">No point yet.</p>'
    parts = []
    for first in range(0, len(sweep.lines), SHOWN)[:2]:
        lines = sweep.lines[:SHOWN] if not first else sweep.lines[SHOWN:]
        classes = {at: 'best' if sweep.ranked[:1] == [line] else '' if line.complete else 'dim' for at, line in enumerate(lines)}
        parts.append(shell.table(*_table(sweep, lines), {at: kind for at, kind in classes.items() if kind}))
    shown, *rest = (f'<div class="wide">{part}</div>' for part in parts)
    return shown + ''.join(shell.fold(f'the other {len(sweep.lines) - SHOWN:,} points', part) for part in rest)


def _broken(sweep: Sweep) -> Iterator[str]:
    """Trainings that failed or diverged, with their reasons."""
    rows = sweep_said.broken(sweep)
    if rows:
        made = shell.table(('training', 'values', 'state', 'step', 'reason'), rows)
        yield '<h2>Failed and diverged</h2>'
        yield made if len(rows) <= SHOWN // 2 else shell.fold(f'{len(rows)} trainings', made)


def _pairs(sweep: Sweep, shares: Mapping[str, float]) -> Iterator[tuple[Hyper, Hyper]]:
    """The most important two of the hyperparameters with few values, and of the numeric ones whose values are scattered; numbers across."""
    ordered = sweep.hypers if len(sweep.hypers) == 2 else sorted(sweep.hypers, key=lambda hyper: -shares.get(hyper.path, 0.0))
    for few in (True, False):
        found = sorted(
            [hyper for hyper in ordered if hyper.gridded == few and (few or hyper.numeric)][:2], key=lambda hyper: not hyper.numeric
        )
        if len(found) == 2:
            yield found[0], found[1]


def _surfaces(sweep: Sweep, shares: Mapping[str, float]) -> Iterator[str]:
    """Two hyperparameters at once, where a picture makes sense: of a grid lines and a heat map, of scattered points a contour."""
    drawn: list[tuple[str, str | None]] = []
    only = len(sweep.hypers) == 2
    for across, up in _pairs(sweep, shares):
        names = f'{across.name} x {up.name}'
        if across.gridded:
            if only and across.numeric:
                drawn.append((f'{across.name} and {up.name}, 95 % intervals over seeds', sweep_plots.lines(sweep, across, up)))
            drawn.append((f'{names}: mean' if only else f'{names}: best mean over all others', sweep_plots.heat(sweep, across, up)))
        else:
            drawn.append((f'{names}: interpolated between the points', sweep_plots.contour(sweep, across, up)))
    found = [(title, svg) for title, svg in drawn if svg is not None]
    if found:
        yield shell.figures(found)


def _importances(sweep: Sweep, shares: Mapping[str, float], why: str) -> Iterator[str]:
    if why:
        yield f'<p class="dim">{html.escape(why)}</p>'
        return
    yield '<p class="dim">How much each decides whether a point is among the best tenth (PED-ANOVA).</p>'
    names = {hyper.path: hyper.name for hyper in sweep.hypers}
    yield shell.figures([('', sweep_plots.bars(shares, names))])
