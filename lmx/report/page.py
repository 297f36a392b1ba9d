"""`lmx report`: one or several runs as a page that needs nothing but itself; a sweep's page is `lmx.report.sweep`."""

from __future__ import annotations

import collections
import html
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmx import spec
from lmx.metrics.scores import paired, shown
from lmx.report import plots, shell
from lmx.report.read import RunFiles, column, several
from lmx.types import BadInput

SHOWN = ('loss', 'bits_per_byte', 'perplexity', 'word_perplexity', 'accuracy')
LOWER_IS_BETTER = frozenset(SHOWN) - {'accuracy'}


def write(*workdirs: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Writes the page of some runs, or of one sweep, and returns its path; by default `report.html` in the first folder.

    Raises:
      BadInput: no folder, one that holds neither run nor sweep, or a sweep and something else.
    """
    sweeps = [workdir for workdir in workdirs if (pathlib.Path(workdir) / 'study.json').is_file()]
    if sweeps:
        from lmx.report import sweep

        if len(workdirs) > 1:
            raise BadInput(f'{sweeps[0]} is a sweep, and {len(workdirs)} folders are named; a page shows one sweep alone, or some runs')
        return sweep.write(sweeps[0], output)
    runs = several(workdirs)
    return shell.write(pathlib.Path(output) if output is not None else runs[0].path / 'report.html', page(runs))


def page(runs: Sequence[RunFiles]) -> str:
    """The HTML of one or several runs. All text of the runs is escaped."""
    title = ' · '.join(run.name for run in runs)
    parts = [f'<h1>{html.escape(title)}</h1>', *(_lead(run) for run in runs), '<h2>Results</h2>', _results(runs), '<h2>Curves</h2>']
    figures = plots.figures(runs)
    parts.append(shell.figures(figures) if figures else '<p class="dim">No step yet.</p>')
    if len(runs) > 1:
        parts += [*_paired(runs), '<h2>What differs</h2>', _differences(runs)]
    for run in runs:
        name = f' of {html.escape(run.name)}' if len(runs) > 1 else ''
        if run.samples:
            parts += [f'<h2>Samples{name}</h2>', *(_sample(sample) for sample in run.samples)]
        if run.attention:
            parts += [f'<h2>Attention{name}</h2>', *_attention(run.attention)]
        parts += [f'<h2>Config{name}</h2>', shell.tree(run.config, 'all values', is_open=False)]
        parts += [f'<h2>Environment{name}</h2>', shell.tree(run.provenance, 'command, code, versions, machine', is_open=False)]
    return shell.page(title, parts)


def _lead(run: RunFiles) -> str:
    model, devices = run.config.get('model'), run.provenance.get('devices')
    facts = (
        model.get('call') if isinstance(model, Mapping) else model,
        f'step {run.step:,}' + (f' of {run.steps:,}' if run.steps is not None else ''),
        ', '.join(f'{count} x {kind}' for kind, count in collections.Counter(map(str, devices)).items())
        if isinstance(devices, list)
        else devices,
        run.provenance.get('time'),
    )
    text = ' · '.join(str(fact) for fact in facts if fact)
    return f'<p class="dim">{html.escape(f"{run.name}: {text}")}</p>'


def _results(runs: Sequence[RunFiles]) -> str:
    """Last and best value per run and split, beside what other methods reach on the same data."""
    rows = []
    for run in runs:
        for split, lines in sorted(run.evaluations.items()):
            for key in (*SHOWN, *_scores(lines)):
                steps, values = column(lines, key)
                if values:
                    best = min(values) if key in LOWER_IS_BETTER else max(values)
                    ends = [column(lines, f'{key}/{end}')[1][-1:] for end in ('low', 'high')]
                    span = f' ({shown(ends[0][0])} to {shown(ends[1][0])})' if all(ends) else ''
                    at = int(steps[values.index(best)])
                    others = ', '.join(f'{name} {shown(value)}' for name, value in run.baselines(split).items() if key == 'bits_per_byte')
                    rows.append((run.name, split, key, f'{shown(values[-1])}{span}', f'{shown(best)} at step {at:,}', others))
    if not rows:
        return '<p class="dim">No evaluation yet.</p>'
    head = ('run', 'split', 'value', 'last', 'best', 'beside')
    return shell.table(head if any(row[-1] for row in rows) else head[:-1], [row if any(r[-1] for r in rows) else row[:-1] for row in rows])


def _scores(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The values with an interval that are not shown anyway."""
    names = dict.fromkeys(key.removesuffix('/low') for line in lines for key in line if key.endswith('/low'))
    return [name for name in names if name not in SHOWN]


def _paired(runs: Sequence[RunFiles]) -> Iterator[str]:
    """The first run's scores less each other's, where both were evaluated on the same records."""
    first, rows = runs[0], []
    for other in runs[1:]:
        for split, (step, records, values) in sorted(first.resampled.items()):
            at, theirs, others = other.resampled.get(split, (0, '', {}))
            for name in values if theirs == records else ():
                if name in others and len(others[name]) == len(values[name]):
                    found = paired(values[name], others[name])
                    span = f'{found["low"]:+.4f} to {found["high"]:+.4f}'
                    p = f'{found["p"]:.3f}' if found['p'] >= 1 / len(values[name]) else f'below {1 / len(values[name]):.3f}'
                    rows.append((f'{first.name} at {step:,} - {other.name} at {at:,}', split, name, f'{found["difference"]:+.4f}', span, p))
    if rows:
        yield '<h2>Whether they differ</h2><p class="dim">Paired bootstrap over the same records (95 % interval; two-sided p).</p>'
        yield shell.table(('runs', 'split', 'score', 'difference', 'interval', 'p'), rows)


def _differences(runs: Sequence[RunFiles]) -> str:
    values = [{path: str(value) for path, value in spec.leaves(run.config)} for run in runs]
    paths = [path for path in dict.fromkeys(path for one in values for path in one) if len({one.get(path, '-') for one in values}) > 1]
    if not paths:
        return '<p class="dim">The configs are the same.</p>'
    return shell.table(('', *(run.name for run in runs)), [(path, *(one.get(path, '-') for one in values)) for path in paths])


def _sample(sample: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in sample.items() if key not in ('prompt', 'continuation', 'step')}
    text = f'<b>{html.escape(str(sample.get("prompt", "")))}</b>{html.escape(str(sample.get("continuation", "")))}'
    facts = {'step': sample.get('step', ''), **rest}
    shown = ', '.join(f'{key} {value:.2f}' if isinstance(value, float) else f'{key} {value}' for key, value in facts.items())
    return f'<pre>{text}</pre><p class="dim">{html.escape(shown)}</p>'


def _attention(maps: Mapping[str, tuple[Any, list[str], list[str]]]) -> Iterator[str]:
    """A fold per layer; the first of each kind is open."""
    for name, (weights, queries, keys) in maps.items():
        for layer, weights_HTS in enumerate(weights):
            where = f'{name}, layer {layer}' if len(weights) > 1 else name
            yield shell.fold(where, plots.heads(weights_HTS, queries, keys), is_open=not layer)
