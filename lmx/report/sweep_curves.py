"""The curves of all trainings of a sweep in one plot, coloured by rank, the winner on top."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmx.report.plots import drawing, dress, plain, smooth, thin
from lmx.report.sweep_read import Sweep
from lmx.sweep.folder import Row

BEST = '#ff7f0e'
LABELLED = 5
"""The best points that the legend names."""
MOST = 24_000
"""Points of all curves of a plot together."""
ENDS: Mapping[str, dict[str, Any]] = {
    'running': {'color': '#2ca02c', 'marker': 'o', 'markersize': 4, 'label': 'running'},
    'diverged': {'color': '#d62728', 'marker': 'x', 'markersize': 7, 'markeredgewidth': 1.8, 'label': 'diverged'},
    'failed': {'color': '#c218c2', 'marker': 'P', 'markersize': 6, 'label': 'failed'},
    'pruned': {'color': '#888888', 'marker': '|', 'markersize': 7, 'label': 'pruned'},
}
"""What stands at the end of a curve that did not come to its own."""

Curve = tuple[Row, Sequence[float], Sequence[float]]


def figures(sweep: Sweep) -> list[tuple[str, str]]:
    """(title, svg) of the metric and of the training loss, whichever there is."""
    metric = [(row, *sweep.evaluated(row)) for row in sweep.listed]
    losses = [(row, steps, smooth(values)) for row, steps, values in ((row, *sweep.trained(row)) for row in sweep.listed) if steps]
    titles = (f'{sweep.study.metric} over steps', 'Training loss, smoothed')
    drawn = [(title, [curve for curve in curves if len(curve[1])]) for title, curves in zip(titles, (metric, losses))]
    modes = (sweep.study.mode, 'min')
    return [(title, _draw(sweep, curves, mode)) for (title, curves), mode in zip(drawn, modes) if curves]


def span(values: Sequence[float], mode: str) -> tuple[float, float] | None:
    """Ends of an axis that shows the good values well: bad ones far off are left beyond it. None where there is no width."""
    if not len(values):
        return None
    low, high = float(min(values)), float(max(values))
    first, third = np.percentile(values, [25, 75])
    reach = 2.5 * (third - first)
    if reach > 0:
        low, high = (low, min(high, third + reach)) if mode == 'min' else (max(low, first - reach), high)
    pad = 0.06 * (high - low)
    return (low - pad, high + pad) if high > low else None


def shade(rank: int, count: int) -> Any:
    """A colour that is seen on white and on black: from teal, the best, to a pale violet."""
    from matplotlib import colormaps

    return colormaps['viridis'](0.72 - 0.5 * (rank / max(count - 1, 1)) ** 0.6)  # the first few differ most


def _draw(sweep: Sweep, curves: Sequence[Curve], mode: str) -> str:
    place = {line.number: index for index, line in enumerate(sweep.lines)}
    valued = sum(bool(line.values) for line in sweep.lines)
    last = max(max(steps) for _, steps, _ in curves)
    settled = [value for row, x, y in curves if row.state != 'diverged' for step, value in zip(x, y) if step >= 0.3 * last]
    limits = span(settled or [value for _, _, y in curves for value in y], mode)
    count = max(MOST // len(curves), 30)
    with drawing((6.4, 4.8)) as (figure, svg):
        axes = figure.add_subplot()
        for row, x, y in sorted(curves, key=lambda curve: -place[curve[0].trial.number]):
            _curve(axes, row, *thin(x, y, count), _style(sweep, row, place[row.trial.number], valued))
        if limits is not None:
            axes.set_ylim(*limits)
        for row, x, y in curves:
            if row.state in ENDS:
                end = {key: value for key, value in ENDS[row.state].items() if key != 'label'}
                axes.plot(x[-1], y[-1] if limits is None else min(max(y[-1], limits[0]), limits[1]), clip_on=False, zorder=4, **end)
        dress(axes)
        axes.set_xlabel('step')
        _legend(figure, sweep, curves, lambda rank: shade(rank, valued))
    return svg()


def _style(sweep: Sweep, row: Row, rank: int, count: int) -> dict[str, Any]:
    if row.state in ENDS:
        faint = 0.35 if row.state == 'pruned' else 0.9
        return {'color': ENDS[row.state]['color'], 'linewidth': 0.9, 'alpha': faint, 'zorder': 2 + (row.state == 'diverged')}
    if rank == 0 and sweep.ranked:
        return {'color': BEST, 'linewidth': 2.2, 'zorder': 5}
    return {'color': shade(rank, count), 'linewidth': 1.4 if rank < LABELLED else 0.9, 'alpha': 0.9, 'zorder': 2.5 + 0.5 / (1 + rank)}


def _curve(axes: Any, row: Row, x: Sequence[float], y: Sequence[float], style: Mapping[str, Any]) -> None:
    axes.plot(x, y, marker='.' if len(x) == 1 and row.state not in ENDS else '', **style)


def _legend(figure: Any, sweep: Sweep, curves: Sequence[Curve], colour: Callable[[int], Any]) -> None:
    """The best few points by their values, and the states that there are."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour(rank) if rank else BEST, linewidth=1.4 if rank else 2.2, label=_name(sweep, rank))
        for rank in range(min(LABELLED, len(sweep.ranked)))
    ]
    there = {row.state for row, _, _ in curves}
    handles += [Line2D([], [], linewidth=0.9, **style) for state, style in ENDS.items() if state in there]
    if handles:
        narrow = all(len(handle.get_label()) < 36 for handle in handles)
        figure.legend(handles=handles, frameon=False, fontsize=8, loc='outside lower left', ncols=2 if narrow else 1)


def _name(sweep: Sweep, rank: int) -> str:
    line = sweep.ranked[rank]
    label = sweep.label(line)
    return plain(f'{rank + 1}. {label}' if len(label) < 72 else f'{rank + 1}. point {line.number}')
