"""`lmx report`: one or several runs as a page that needs nothing but itself."""

from __future__ import annotations

import collections
import html
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmx import spec
from lmx.metrics.scores import paired
from lmx.report import plots
from lmx.report.read import RunFiles, column, several

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
.dim { opacity: .65; } .plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-weight: 600; } svg { width: 100%; height: auto; } svg text { fill: currentColor; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; } pre { background: var(--soft); padding: .7rem; overflow-x: auto; white-space: pre-wrap; border-radius: 6px; }
pre b { color: #2a7; } summary { cursor: pointer; } code, pre, td.value { font-family: ui-monospace, monospace; font-size: .88rem; }
td.value { overflow-wrap: anywhere; }
"""
SHOWN = ('loss', 'bits_per_byte', 'perplexity', 'word_perplexity', 'accuracy')
LOWER_IS_BETTER = frozenset(SHOWN) - {'accuracy'}


def write(*workdirs: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Writes the page and returns its path; by default `report.html` in the first run's folder.

    Raises:
      BadInput: no folder, or one that holds no run.
    """
    runs = several(workdirs)
    target = pathlib.Path(output) if output is not None else runs[0].path / 'report.html'
    part = target.with_name(target.name + '.part')
    part.write_text(page(runs), 'utf-8', errors='replace')  # half a surrogate pair, cut off within a sample
    part.replace(target)
    return target


def page(runs: Sequence[RunFiles]) -> str:
    """The HTML of one or several runs. All text of the runs is escaped."""
    title = ' · '.join(run.name for run in runs)
    parts = [f'<h1>{html.escape(title)}</h1>', *(_lead(run) for run in runs), '<h2>Results</h2>', _results(runs), '<h2>Curves</h2>']
    figures = ''.join(f'<figure><figcaption>{title}</figcaption>{svg}</figure>' for title, svg in plots.figures(runs))
    parts.append(f'<div class="plots">{figures}</div>' if figures else '<p class="dim">No step yet.</p>')
    if len(runs) > 1:
        parts += [*_paired(runs), '<h2>What differs</h2>', _differences(runs)]
    for run in runs:
        name = f' of {html.escape(run.name)}' if len(runs) > 1 else ''
        if run.samples:
            parts += [f'<h2>Samples{name}</h2>', *(_sample(sample) for sample in run.samples)]
        if run.attention:
            parts += [f'<h2>Attention{name}</h2>', *_attention(run.attention)]
        parts += [f'<h2>Config{name}</h2>', _tree(run.config, 'all values', is_open=False)]
        parts += [f'<h2>Environment{name}</h2>', _tree(run.provenance, 'command, code, versions, machine', is_open=False)]
    body = '\n'.join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>{body}</body></html>\n'
    )


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
                    span = f' ({ends[0][0]:.4f} to {ends[1][0]:.4f})' if all(ends) else ''
                    at = int(steps[values.index(best)])
                    others = ', '.join(f'{name} {value:.4f}' for name, value in run.baselines(split).items() if key == 'bits_per_byte')
                    rows.append((run.name, split, key, f'{values[-1]:.4f}{span}', f'{best:.4f} at step {at:,}', others))
    if not rows:
        return '<p class="dim">No evaluation yet.</p>'
    head = ('run', 'split', 'value', 'last', 'best', 'beside')
    return _table(head if any(row[-1] for row in rows) else head[:-1], [row if any(r[-1] for r in rows) else row[:-1] for row in rows])


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
        yield _table(('runs', 'split', 'score', 'difference', 'interval', 'p'), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [''.join(f'<th>{html.escape(str(cell))}</th>' for cell in head)]
    lines += [''.join(f'<td class="number">{html.escape(str(cell))}</td>' for cell in row) for row in rows]
    return '<table>' + ''.join(f'<tr>{line}</tr>' for line in lines) + '</table>'


def _differences(runs: Sequence[RunFiles]) -> str:
    values = [{path: str(value) for path, value in spec.leaves(run.config)} for run in runs]
    paths = [path for path in dict.fromkeys(path for one in values for path in one) if len({one.get(path, '-') for one in values}) > 1]
    if not paths:
        return '<p class="dim">The configs are the same.</p>'
    return _table(('', *(run.name for run in runs)), [(path, *(one.get(path, '-') for one in values)) for path in paths])


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
            opened = '' if layer else ' open'
            yield f'<details{opened}><summary>{html.escape(where)}</summary>{plots.heads(weights_HTS, queries, keys)}</details>'


def _tree(node: Mapping[str, Any], title: str, is_open: bool) -> str:
    rows = []
    for key, value in node.items():
        if isinstance(value, Mapping):
            rows.append(f'<tr><td>{html.escape(str(key))}</td><td>{_tree(value, value.get("call", "") or "…", True)}</td></tr>')
        else:
            shown = value if isinstance(value, str) else repr(value)
            cell = (
                f'<details><summary>{len(shown):,} characters</summary><pre>{html.escape(shown)}</pre></details>'
                if len(shown) > 400
                else html.escape(shown)
            )
            rows.append(f'<tr><td>{html.escape(str(key))}</td><td class="value">{cell}</td></tr>')
    return f'<details{" open" if is_open else ""}><summary>{html.escape(str(title))}</summary><table>{"".join(rows)}</table></details>'
