"""Curves as inline SVG, drawn by matplotlib's object interface: no display, no global state."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmx.report.read import RunFiles

POINTS = 400
Curve = tuple[str, Sequence[float], Sequence[float], Mapping[str, Any]]  # label, x, y, style


def figures(runs: Sequence[RunFiles]) -> list[tuple[str, str]]:
    """(title, svg) of every family of values that the runs have."""
    out = []
    for title, curves, log in (
        ('Loss (nats)', _losses(runs), False),
        ('Bits per byte', _evaluated(runs, 'bits_per_byte'), False),
        ('Learning rate', _trained(runs, 'learning_rate'), False),
        ('Gradient norm', _trained(runs, 'grad_norm'), True),
        ('Tokens per second', _trained(runs, 'tokens_per_second'), False),
    ):
        if any(len(curve[1]) for curve in curves):
            out.append((title, draw([curve for curve in curves if len(curve[1])], log)))
    return out


def _losses(runs: Sequence[RunFiles]) -> list[Curve]:
    curves: list[Curve] = []
    for number, run in enumerate(runs):
        steps, losses = column(run.metrics, 'loss')
        curves.append((_label(run, runs, 'train'), steps, losses, {'color': f'C{number}', 'alpha': 0.25, 'linewidth': 0.8, 'label': None}))
        curves.append((_label(run, runs, 'train, smoothed'), steps, smooth(losses), {'color': f'C{number}'}))
        for split in _splits(run):
            steps, losses = column([line for line in run.evaluations if line.get('split') == split], 'loss')
            curves.append(
                (_label(run, runs, split), steps, losses, {'color': f'C{number}', 'linestyle': '--', 'marker': 'o', 'markersize': 4})
            )
    return curves


def _evaluated(runs: Sequence[RunFiles], key: str) -> list[Curve]:
    curves: list[Curve] = []
    for number, run in enumerate(runs):
        for split in _splits(run):
            x, y = column([line for line in run.evaluations if line.get('split') == split], key)
            curves.append((_label(run, runs, split), x, y, {'color': f'C{number}', 'marker': 'o', 'markersize': 4}))
            for name, value in baselines(run, split, key).items():
                curves.append((name, [min(x, default=0), max(x, default=1)], [value, value], {'color': 'gray', 'linestyle': ':'}))
    return curves


def baselines(run: RunFiles, split: str, key: str) -> dict[str, float]:
    """Values of other methods on the same split; 'baseline/xz' carries bits per byte."""
    found = {}
    for line in run.evaluations:
        if line.get('split') == split and key == 'bits_per_byte':
            found |= {name.removeprefix('baseline/'): value for name, value in line.items() if name.startswith('baseline/')}
    return found


def _trained(runs: Sequence[RunFiles], key: str) -> list[Curve]:
    return [(_label(run, runs, ''), *column(run.metrics, key), {'color': f'C{number}'}) for number, run in enumerate(runs)]


def _splits(run: RunFiles) -> list[str]:
    return sorted({str(line.get('split')) for line in run.evaluations})


def _label(run: RunFiles, runs: Sequence[RunFiles], what: str) -> str:
    return what if len(runs) == 1 else f'{run.name} {what}'.strip()


def column(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """(steps, values) of the lines that have a finite value, at most `POINTS` of them, evenly spread; by step, the last line of each."""
    found = {
        line['step']: line[key] for line in lines if isinstance(line.get(key), (int, float)) and math.isfinite(line[key]) and 'step' in line
    }
    steps = sorted(found)
    if len(steps) > POINTS:
        steps = [steps[int(index)] for index in np.linspace(0, len(steps) - 1, POINTS)]
    return [float(step) for step in steps], [float(found[step]) for step in steps]


def smooth(values: Sequence[float], share: float = 0.05) -> list[float]:
    """A running mean over the last `share` of the curve's points."""
    width = max(1, int(len(values) * share))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return [(sums[i + 1] - sums[max(0, i + 1 - width)]) / min(i + 1, width) for i in range(len(values))]


def draw(curves: Sequence[Curve], log: bool) -> str:
    """One plot as an <svg> element that takes its text and line colour from the page."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'lmx', 'font.size': 10, 'font.family': 'sans-serif'}):
        figure = Figure(figsize=(6.4, 3.4), layout='constrained')
        axes = figure.add_subplot()
        for label, x, y, style in curves:
            axes.plot(x, y, **{'label': _plain(label) or '_', 'linewidth': 1.6, **style})
        if log:
            axes.set_yscale('log')
        axes.set_xlabel('step')
        axes.grid(alpha=0.25)
        axes.spines[['top', 'right']].set_visible(False)
        if any(label and style.get('label', '') is not None for label, _, _, style in curves):
            axes.legend(frameon=False, fontsize=9)
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={'Date': None})
    svg = buffer.getvalue()
    svg = svg[svg.index('<svg') :]
    return re.sub(r'#000000|\bblack\b', 'currentColor', re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', '', svg, count=1))


def _plain(label: str) -> str:
    """matplotlib reads $...$ as a formula and hides labels that begin with an underscore; the name of a run is neither."""
    return label.replace('$', r'\$').lstrip('_')
