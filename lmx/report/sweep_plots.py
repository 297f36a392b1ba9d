"""The metric of a sweep over its hyperparameters: slices, lines over a grid, heat map, contour, importances."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmx.report.plots import drawing, dress, plain
from lmx.report.sweep_curves import BEST, ENDS, shade, span
from lmx.report.sweep_read import Hyper, Sweep
from lmx.sweep.table import Line

FEWEST = 8
"""Points that a contour needs."""
DOT = '#3f93ba'
SMALL = (4.4, 3.0)


def slice_(sweep: Sweep, hyper: Hyper) -> str:
    """The metric against one hyperparameter: a dot for every training, and where values are few, the best point at each with its interval."""
    valued = [line for line in sweep.lines if line.values]
    with drawing(SMALL) as (figure, svg):
        axes = figure.add_subplot()
        limits = _metric_axis(axes, sweep, valued)
        for line in reversed(valued):
            best = sweep.ranked[:1] == [line]
            style = {'color': BEST, 'zorder': 4} if best else {'color': DOT, 'alpha': 0.7, 'markeredgewidth': 0}
            axes.plot([hyper.place(line)] * len(line.values), line.values, 'o', markersize=5 if best else 4, **style)
        if hyper.gridded:
            sign = -1 if sweep.study.mode == 'max' else 1
            at = [[line for line in sweep.ranked if hyper.level(line) == level] for level in range(len(hyper.levels))]
            _with_intervals(axes, hyper, [min(of, key=lambda line: sign * line.mean) for of in at if of], color=DOT, zorder=3)
        _gone(axes, sweep, hyper, limits)
        _hyper_axis(axes, hyper)
    return svg()


def lines(sweep: Sweep, across: Hyper, by: Hyper) -> str:
    """The metric over one hyperparameter, a line for each value of the other, with 95 % intervals over seeds; hollow where a seed is missing."""
    with drawing((6.4, 4.0)) as (figure, svg):
        axes = figure.add_subplot()
        limits = _metric_axis(axes, sweep, [line for line in sweep.lines if line.values])
        marks = itertools.cycle('os^Dv<>p')
        for index, (label, mark) in enumerate(zip(by.labels, marks)):
            mine = [line for line in sweep.lines if line.values and by.level(line) == index]
            style = {'color': shade(len(by.levels) - 1 - index, len(by.levels)), 'marker': mark}
            _with_intervals(axes, across, [line for line in mine if line.complete], label=plain(f'{by.name} {label}'), **style)
            part = [line for line in mine if not line.complete]
            _with_intervals(axes, across, part, **style, markerfacecolor='none', linestyle='', alpha=0.7)
        if sweep.ranked:
            best = sweep.ranked[0]
            axes.plot(across.place(best), best.mean, 'o', markersize=13, markerfacecolor='none', color=BEST, markeredgewidth=2, zorder=5)
        _gone(axes, sweep, across, limits)
        _hyper_axis(axes, across)
        figure.legend(frameon=False, fontsize=9, loc='outside right upper')
    return svg()


def heat(sweep: Sweep, across: Hyper, up: Hyper) -> str | None:
    """The best mean at each pair of values, as numbers on colours; None where less than half of the pairs have one."""
    there: dict[tuple[int, int], Line] = {}
    for line in reversed([line for line in sweep.lines if line.values]):  # the best comes last, and stays
        there[up.level(line), across.level(line)] = line
    if len(there) < max(len(up.levels) * len(across.levels) / 2, 4):
        return None
    colours, ends = _colours(sweep, np.array([line.mean for line in there.values()]))
    cells = np.full((len(up.levels), len(across.levels)), math.nan)
    for at, line in there.items():
        cells[at] = line.mean
    with drawing((6.4, max(2.4, min(0.9 + 0.6 * len(up.levels), 6.0)))) as (figure, svg):
        axes = figure.add_subplot()
        mesh = axes.pcolormesh(np.ma.masked_invalid(cells), cmap=colours, vmin=ends[0], vmax=ends[1], edgecolor='face')
        for at in np.ndindex(cells.shape):
            shown, colour = (
                _cell(sweep, there.get(at), mesh) if at in there else (_absent(sweep, across, up, at), ENDS['diverged']['color'])
            )
            axes.text(at[1] + 0.5, at[0] + 0.5, shown, ha='center', va='center', fontsize=9 if len(across.levels) < 9 else 7, color=colour)
        if sweep.ranked:
            axes.add_patch(_frame((across.level(sweep.ranked[0]), up.level(sweep.ranked[0]))))
        dress(axes)
        axes.grid(visible=False)
        axes.spines[['left', 'bottom']].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xticks(np.arange(len(across.levels)) + 0.5, [plain(label) for label in across.labels])
        axes.set_yticks(np.arange(len(up.levels)) + 0.5, [plain(label) for label in up.labels])
        axes.set_xlabel(plain(across.name))
        axes.set_ylabel(plain(up.name))
    return svg()


def _cell(sweep: Sweep, line: Line, mesh: Any) -> tuple[str, str]:
    """(text, its colour) of a cell with a number: of a point without all its seeds it says how many there are."""
    total = sum(line.states.values())
    part = '' if line.complete else f'\n{len(line.values)} of {total}'
    return f'{line.mean:#.4g}'.rstrip('.') + part, _ink(mesh.cmap(mesh.norm(line.mean)))


def contour(sweep: Sweep, across: Hyper, up: Hyper) -> str | None:
    """The metric over two hyperparameters whose values are scattered; None where the points do not span an area."""
    if not (across.numeric and up.numeric):
        return None
    means: dict[tuple[float, float], float] = {}
    for line in reversed(sweep.ranked):
        means[_unit(across, line), _unit(up, line)] = line.mean
    points = np.array(list(means)).reshape(-1, 2)
    if len(points) < FEWEST or np.linalg.matrix_rank(points - points.mean(0), tol=1e-6) < 2:
        return None
    values = np.array(list(means.values()))
    colours, (low, high) = _colours(sweep, values)
    if not high > low:
        return None
    with drawing((6.4, 4.4)) as (figure, svg):
        axes = figure.add_subplot()
        places = np.array([[across.place(line), up.place(line)] for line in reversed(sweep.ranked)])
        triangles = _triangles(points)
        filled = axes.tricontourf(
            _back(across, points[:, 0]),
            _back(up, points[:, 1]),
            triangles,
            np.clip(values, low, high),
            levels=np.linspace(low, high, 12),
            cmap=colours,
        )
        figure.colorbar(filled, ax=axes, format='%.4g').outline.set_visible(False)
        axes.plot(*places.T, 'o', color='#555555', markersize=3, markeredgecolor='white', markeredgewidth=0.6)
        axes.plot(*places[-1], '*', color=BEST, markersize=14, markeredgecolor='white')
        dress(axes, log_x=across.log, log_y=up.log)
        axes.set_xlabel(plain(across.name))
        axes.set_ylabel(plain(up.name))
    return svg()


def bars(shares: Mapping[str, float], names: Mapping[str, str]) -> str:
    """Importances, the largest on top."""
    with drawing((6.4, 0.7 + 0.34 * len(shares))) as (figure, svg):
        axes = figure.add_subplot()
        shown = list(shares.items())[::-1]
        axes.barh([plain(names[path]) for path, _ in shown], [share for _, share in shown], color=DOT, height=0.6)
        for index, (_, share) in enumerate(shown):
            axes.text(share, index, f' {share:.0%}', va='center', fontsize=9)
        dress(axes)
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.spines['bottom'].set_visible(False)
        axes.tick_params(length=0)
    return svg()


def _with_intervals(axes: Any, hyper: Hyper, found: Sequence[Line], **style: Any) -> None:
    """Means joined in the order of the axis, with bars where there is an interval."""
    ordered = sorted(found, key=hyper.place)
    x, y = [hyper.place(line) for line in ordered], [line.mean for line in ordered]
    half = [0.0 if math.isnan(line.low) else line.high - line.mean for line in ordered]
    joined = {'linestyle': '-' if hyper.numeric else ''}
    axes.errorbar(x, y, yerr=half, **{'linewidth': 1.6, 'capsize': 3, 'elinewidth': 1.1, 'marker': 'o', 'markersize': 5, **joined, **style})


def _gone(axes: Any, sweep: Sweep, hyper: Hyper, limits: tuple[float, float] | None) -> None:
    """A mark at the edge of the bad side for every training that diverged, and one for values beyond the axis."""
    edge = 0.985 if sweep.study.mode == 'min' else 0.015
    place = {line.number: hyper.place(line) for line in sweep.lines}
    where = axes.get_xaxis_transform()
    diverged = [place[row.trial.number] for row in sweep.listed if row.state == 'diverged']
    cross = {**ENDS['diverged'], 'linestyle': '', 'clip_on': False, 'zorder': 5}
    axes.plot(diverged, [edge] * len(diverged), transform=where, **{**cross, 'label': 'diverged' if diverged else '_'})
    if limits is not None:
        beyond = [place[line.number] for line in sweep.lines for value in line.values if not limits[0] <= value <= limits[1]]
        mark = '^' if sweep.study.mode == 'min' else 'v'
        axes.plot(beyond, [edge] * len(beyond), mark, transform=where, color='#888888', markersize=5, clip_on=False)


def _metric_axis(axes: Any, sweep: Sweep, valued: Sequence[Line]) -> tuple[float, float] | None:
    limits = span([value for line in valued for value in line.values], sweep.study.mode)
    if limits is not None:
        axes.set_ylim(*limits)
    axes.set_ylabel(plain(sweep.study.metric))
    return limits


def _hyper_axis(axes: Any, hyper: Hyper) -> None:
    """Ticks at the values where they are few."""
    dress(axes, log_x=hyper.log)
    axes.set_xlabel(plain(hyper.name))
    if hyper.gridded or not hyper.numeric:
        places = [float(level) for level in hyper.levels] if hyper.numeric else list(range(len(hyper.levels)))
        axes.set_xticks(places, [plain(label) for label in hyper.labels])
        axes.set_xticks([], minor=True)
        if sum(map(len, hyper.labels)) > 40:
            axes.tick_params(axis='x', rotation=30)
    if not hyper.numeric:
        axes.set_xlim(-0.6, len(hyper.levels) - 0.4)


def _colours(sweep: Sweep, values: np.ndarray) -> tuple[str, tuple[float, float]]:
    """(colour map whose bright end is the better one, its ends)."""
    ends = span(values.tolist(), sweep.study.mode) or (float(values.min()) - 1.0, float(values.max()) + 1.0)
    return ('viridis_r' if sweep.study.mode == 'min' else 'viridis'), (max(ends[0], values.min()), min(ends[1], values.max()))


def _ink(colour: Sequence[float]) -> str:
    """Text that is read on a colour."""
    red, green, blue = colour[:3]
    return '#111111' if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else '#ffffff'


def _frame(corner: tuple[int, int]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, fill=False, edgecolor=BEST, linewidth=3, clip_on=False, zorder=4)


def _absent(sweep: Sweep, across: Hyper, up: Hyper, at: tuple[int, ...]) -> str:
    """What a cell without a number says: how its trainings stand."""
    there = [line for line in sweep.lines if (up.level(line), across.level(line)) == at]
    return next((state for line in there for state in line.states), '')


def _unit(hyper: Hyper, line: Line) -> float:
    """The place on the axis between 0 and 1, so that triangles are drawn as they look."""
    low, high, at = (math.log(x) if hyper.log else x for x in (hyper.levels[0], hyper.levels[-1], hyper.place(line)))
    return (at - low) / (high - low)


def _back(hyper: Hyper, unit: np.ndarray) -> np.ndarray:
    low, high = hyper.levels[0], hyper.levels[-1]
    return low * (high / low) ** unit if hyper.log else low + (high - low) * unit


def _triangles(points: np.ndarray) -> Any:
    from matplotlib.tri import Triangulation

    return Triangulation(*points.T).triangles
