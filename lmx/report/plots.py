"""Curves as inline SVG, drawn by matplotlib's object interface: no display, no global state."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lmx.report.read import RunFiles, column

POINTS = 400
"""Points of a curve that are drawn, more than a page has pixels for."""
Curve = tuple[str, Sequence[float], Sequence[float], Mapping[str, Any]]  # label ('' for none), x, y, style
MARKED = {'marker': 'o', 'markersize': 4}


def figures(runs: Sequence[RunFiles]) -> list[tuple[str, str]]:
    """(title, svg) of every family of values that the runs have."""
    out = []
    for title, curves, log in (
        ('Loss (nats)', _losses(runs), False),
        ('Bits per byte', _bits(runs), False),
        ('Learning rate', _trained(runs, 'learning_rate'), False),
        ('Gradient norm', _trained(runs, 'grad_norm'), True),
        ('Tokens per second', _trained(runs, 'tokens_per_second'), False),
        ('Seconds a step, of the fastest and the slowest process', _spread(runs), False),
        ('Goodput: share of the time since the first start in steps that were kept', _trained(runs, 'goodput'), False),
    ):
        drawn = [curve for curve in curves if len(curve[1])]
        if drawn:
            out.append((title, draw(drawn, log)))
    return out


def _losses(runs: Sequence[RunFiles]) -> list[Curve]:
    curves: list[Curve] = []
    for number, run in enumerate(runs):
        steps, losses = column(run.metrics, 'loss')
        curves.append(('', *thin(steps, losses), {'color': f'C{number}', 'alpha': 0.25, 'linewidth': 0.8}))
        curves.append((_label(run, runs, 'train, smoothed'), *thin(steps, smooth(losses)), {'color': f'C{number}'}))
        curves += _evaluated(run, runs, 'loss', {'color': f'C{number}', 'linestyle': '--'})
    return curves


def _bits(runs: Sequence[RunFiles]) -> list[Curve]:
    curves = [curve for number, run in enumerate(runs) for curve in _evaluated(run, runs, 'bits_per_byte', {'color': f'C{number}'})]
    last = max((step for _, x, _, _ in curves for step in x), default=0.0) or 1.0
    # Runs on the same data share their baselines: each is one line.
    others = {(name, value) for run in runs for split in run.evaluations for name, value in run.baselines(split).items()}
    for (name, value), line in zip(sorted(others, key=lambda pair: -pair[1]), (':', '-.', (0, (1, 4)), (0, (8, 3))) * len(others)):
        curves.append((name, [0.0, last], [value, value], {'color': 'gray', 'linestyle': line}))
    return curves


def _evaluated(run: RunFiles, runs: Sequence[RunFiles], key: str, style: Mapping[str, Any]) -> list[Curve]:
    """A curve per split; a run has one colour, its splits have different marks."""
    return [
        (_label(run, runs, split), *thin(*column(of, key)), {**MARKED, **style, 'marker': mark})
        for (split, of), mark in zip(sorted(run.evaluations.items()), itertools.cycle('os^Dv'))
    ]


def _trained(runs: Sequence[RunFiles], key: str) -> list[Curve]:
    return [(_label(run, runs, ''), *thin(*column(run.metrics, key)), {'color': f'C{number}'}) for number, run in enumerate(runs)]


def _spread(runs: Sequence[RunFiles]) -> list[Curve]:
    """Of jobs of several processes alone."""
    curves: list[Curve] = []
    for number, run in enumerate(runs):
        for end, style in (('max', '-'), ('min', ':')):
            curve = thin(*column(run.metrics, f'step_seconds_{end}'))
            curves.append((_label(run, runs, end), *curve, {'color': f'C{number}', 'linestyle': style}))
    return curves


def _label(run: RunFiles, runs: Sequence[RunFiles], what: str) -> str:
    return what if len(runs) == 1 else f'{run.name} {what}'.strip()


def thin(x: Sequence[float], y: Sequence[float], count: int = POINTS) -> tuple[Sequence[float], Sequence[float]]:
    """At most `count` points of a curve, evenly spread, the first and the last among them."""
    if len(x) <= count:
        return x, y
    kept = np.linspace(0, len(x) - 1, count).astype(int)
    return [x[index] for index in kept], [y[index] for index in kept]


def smooth(values: Sequence[float], share: float = 0.05) -> list[float]:
    """A running mean over the last `share` of the curve's points."""
    width = max(1, int(len(values) * share))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return [(sums[i + 1] - sums[max(0, i + 1 - width)]) / min(i + 1, width) for i in range(len(values))]


def draw(curves: Sequence[Curve], log: bool) -> str:
    """One plot as an <svg> element that takes its lines' colour from the page, as its text does by the page's style.

    Args:
      log: whether the values lie on a logarithmic axis, where any of them can.
    """
    with drawing() as (figure, svg):
        axes = figure.add_subplot()
        for label, x, y, style in curves:
            axes.plot(x, y, **{'label': plain(label) or '_', 'linewidth': 1.6, **({} if len(x) > 1 else MARKED), **style})
        dress(axes, log_y=log and any(value > 0 for _, _, y, _ in curves for value in y))
        axes.set_xlabel('step')
        axes.locator_params(axis='x', integer=True)
        if any(label for label, _, _, _ in curves):
            axes.legend(frameon=False, fontsize=9)
    return svg()


def heads(weights_HTS: np.ndarray, queries: Sequence[str], keys: Sequence[str]) -> str:
    """One layer's attention as an <svg> element: a picture per head, queries down, keys across; the head's largest weight is darkest."""
    count, across = len(weights_HTS), min(4, len(weights_HTS))
    rows = -(-count // across)
    width = max(2.2, 0.16 * len(keys) + 0.9)
    with drawing((width * across, rows * max(2.2, 0.16 * len(queries) + 0.9))) as (figure, svg):
        for head, axes in enumerate(figure.subplots(rows, across, squeeze=False).flat):
            if head >= count:
                axes.set_axis_off()
                continue
            axes.imshow(weights_HTS[head].astype(np.float32), cmap='Blues', vmin=0, aspect='auto', interpolation='nearest')
            axes.set_title(f'head {head}', fontsize=9)
            axes.set_xticks(range(len(keys)), [plain(key) for key in keys], rotation=90, fontsize=7)
            axes.set_yticks(range(len(queries)), [plain(query) for query in queries], fontsize=7)
            axes.tick_params(length=0)
    return svg()


@contextlib.contextmanager
def drawing(size: tuple[float, float] = (6.4, 3.4)) -> Iterator[tuple[Any, Callable[[], str]]]:
    """(An empty figure, a function that gives its SVG once the block is left)."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.StringIO()

    def finished() -> str:
        svg = buffer.getvalue()
        svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', '', svg[svg.index('<svg') :], count=1)
        return _within_tags(lambda tag: re.sub(r'#000000|\bblack\b', 'currentColor', tag), svg)

    # matplotlib warns of letters that its own font lacks, but text is drawn by the browser, in the browser's fonts.
    with rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'lmx', 'font.size': 10, 'font.family': 'sans-serif'}), _no_glyph_warnings():
        figure = Figure(figsize=size, layout='constrained')
        yield figure, finished
        figure.patch.set_alpha(0)
        FigureCanvasSVG(figure).print_svg(buffer, metadata={'Date': None})


def dress(axes: Any, *, log_x: bool = False, log_y: bool = False) -> None:
    """The look of all plots: a faint grid, no frame, 0.9 for 9e-01, and the page's own colour behind it."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        """Labels where LogFormatter would, but 0.9 and not 9e-01."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return f'{x:g}' if super().__call__(x, pos) else ''

    for axis, log, set_scale in ((axes.xaxis, log_x, axes.set_xscale), (axes.yaxis, log_y, axes.set_yscale)):
        if log:
            set_scale('log')
            axis.set_major_formatter(Plain())
            axis.set_minor_formatter(Plain(minor_thresholds=(1.5, 0.6)))
        elif axis.get_view_interval()[1] >= 1e4:
            axis.set_major_formatter('{x:,.0f}')
    axes.grid(alpha=0.25)
    axes.spines[['top', 'right']].set_visible(False)
    axes.patch.set_alpha(0)


@contextlib.contextmanager
def _no_glyph_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message=r'Glyph \d+ ')
        yield


def _within_tags(change: Callable[[str], str], svg: str) -> str:
    """Changes tags alone; text between them belongs to the runs."""
    return re.sub(r'<[^>]*>', lambda tag: change(tag[0]), svg)


def plain(label: str) -> str:
    """matplotlib reads $...$ as a formula and hides labels that begin with an underscore; the name of a run is neither."""
    return label.replace('$', r'\$').lstrip('_')
