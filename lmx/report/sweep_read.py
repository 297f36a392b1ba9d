"""A sweep's folder as its page needs it: points best first, hyperparameters as axes, curves."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from lmx import spec
from lmx.report.read import RunFiles, column
from lmx.study import LogUniform, Search, Study
from lmx.sweep import table
from lmx.sweep.answer import answer
from lmx.sweep.folder import Folder, Row

STATES = ('done', 'running', 'waiting', 'failed', 'diverged', 'pruned')


@dataclasses.dataclass(frozen=True)
class Hyper:
    """A config path that the points change.

    Attributes:
      name: the end of the path that tells it from the others.
      values: number of the point -> the value there; the base's, where the point does not say.
      levels: the different values; numbers in order, others as they come.
      numeric: whether all are numbers.
      log: whether a logarithmic axis shows them better: more than a decade, steps of equal ratio, or a space that says so.
      gridded: whether there are few values, which several points share.
    """

    path: str
    name: str
    values: Mapping[int, Any]
    levels: Sequence[Any]
    numeric: bool
    log: bool
    gridded: bool

    def place(self, line: table.Line) -> float:
        """Where a point lies on the axis: the number itself, or the place of its value among the levels."""
        value = self.values[line.number]
        return float(value) if self.numeric else float(self.levels.index(value))

    def level(self, line: table.Line) -> int:
        return self.levels.index(self.values[line.number])

    @property
    def labels(self) -> list[str]:
        """The levels, as short as an axis needs them."""
        told = [table.value_text(value) for value in self.levels]
        return [text if len(text) <= 24 else f'{text[:23]}…' for text in told]


def hypers(study: Study, lines: Sequence[table.Line]) -> list[Hyper]:
    """The hyperparameters with at least two values."""
    paths = table.paths(lines)
    short = table.shorts(paths)
    values = {path: {line.number: _plain(line.point.get(path, spec.get(study.base, path))) for line in lines} for path in paths}
    different = {path: _levels(list(values[path].values())) for path in paths}
    paths = [path for path in paths if len(different[path]) > 1]
    space = study.points.space if isinstance(study.points, Search) else {}
    out = []
    for path in paths:
        levels = different[path]
        numeric = all(_is_number(level) for level in levels)
        log = numeric and (isinstance(space.get(path), LogUniform) or _is_log(levels))
        gridded = len(levels) <= 12 and (len(paths) == 1 or 2 * len(levels) <= len(lines))
        out.append(Hyper(path, short[path], values[path], levels, numeric, log, gridded))
    return out


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(spec.to_plain(value)))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _levels(values: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return sorted(found) if all(_is_number(value) for value in found) else found


def _is_log(levels: Sequence[float]) -> bool:
    if levels[0] <= 0:
        return False
    ratios = [after / before for before, after in itertools.pairwise(levels)]
    return levels[-1] / levels[0] > 10 or (len(ratios) >= 2 and ratios[0] >= 1.5 and max(ratios) < 1.05 * min(ratios))


class Sweep:
    """All that a sweep's files tell, at one moment.

    Attributes:
      rows: every training.
      lines: a line per point: the complete ones, best first; then those with a value; then the others by number.
      ranked: the complete ones alone.

    Raises:
      BadInput: the folder holds no sweep.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.folder = Folder(path)
        self.study = self.folder.study
        self.rows = self.folder.rows()
        self.listed = [row for row in self.rows if not row.trial.fresh]
        found = table.lines(self.listed, self.study.metric)
        self.ranked = table.ranked(self.study, found)
        best = {line.number for line in self.ranked}
        sign = -1.0 if self.study.mode == 'max' else 1.0
        rest = [line for line in found if line.number not in best]
        self.lines = [
            *self.ranked,
            *sorted(rest, key=lambda line: (not line.values, sign * line.mean if line.values else 0.0, line.number)),
        ]
        self.answer = answer(self.study, self.rows)
        self.hypers = hypers(self.study, self.lines)
        self.path = self.folder.path

    def counts(self) -> dict[str, int]:
        """State -> listed trainings; of a search, those that it has not begun wait."""
        found = {state: sum(row.state == state for row in self.listed) for state in STATES}
        if isinstance(self.study.points, Search):
            found['waiting'] += max(self.study.points.trials - len(self.listed), 0)
        return {state: count for state, count in found.items() if count}

    def rows_of(self, line: table.Line) -> list[Row]:
        return [row for row in self.listed if row.trial.number == line.number]

    def label(self, line: table.Line) -> str:
        """'peak 0.002, dim 128'."""
        told = [f'{each.name} {table.value_text(each.values[line.number])}' for each in self.hypers]
        return ', '.join(told) or f'point {line.number}'

    @functools.cached_property
    def runs(self) -> dict[str, RunFiles]:
        """The files of every listed training that has begun."""
        return {row.trial.name: RunFiles(row.path, row.trial.name) for row in self.listed if row.state != 'waiting'}

    def evaluated(self, row: Row) -> tuple[list[float], list[float]]:
        """(steps, values) of the study's metric in one training."""
        split, _, name = self.study.metric.partition('/')
        run = self.runs.get(row.trial.name)
        return column([line for line in run.evaluations.get(split, []) if 'checkpoint' not in line], name) if run else ([], [])

    def trained(self, row: Row) -> tuple[list[float], list[float]]:
        """(steps, training losses) of one training."""
        run = self.runs.get(row.trial.name)
        return column(run.metrics, 'loss') if run else ([], [])
