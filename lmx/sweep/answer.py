"""What a sweep answers: the winner so far, and the number that is reported of it, from seeds that had no part in the choice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from lmx.study import Search, Study
from lmx.sweep import table
from lmx.sweep.folder import Row, ended


@dataclasses.dataclass(frozen=True)
class Answer:
    """The winner and its number.

    Attributes:
      best: the point with the best mean of those that are complete; None = none is.
      final: whether nothing is left that could change the choice.
      metric: of the reported number.
      fresh: its values, one of every fresh seed of this winner that came to its end; [] = the number is that of the choice.
      mean, low, high: of the fresh values, with Student's 95 % interval; NaN as in `table.interval`.
      wanted: how many fresh seeds there are to be.
      note: what is wrong with the number, '' for nothing.
    """

    best: table.Line | None
    final: bool
    metric: str
    fresh: Sequence[float]
    mean: float
    low: float
    high: float
    wanted: int
    note: str


def answer(study: Study, rows: Sequence[Row]) -> Answer:
    """The answer that all of a sweep's trainings give, those with fresh seeds among them."""
    listed = [row for row in rows if not row.trial.fresh]
    best = next(iter(table.ranked(study, table.lines(listed, study.metric))), None)
    metric = study.reported or study.metric
    mine = [row for row in rows if row.trial.fresh and best is not None and row.trial.number == best.number]
    fresh = [row.values[metric] for row in mine if row.state == 'done' and metric in row.values]
    begun = not isinstance(study.points, Search) or len(listed) >= study.points.trials
    return Answer(best, begun and ended(listed), metric, fresh, *table.interval(fresh), len(study.fresh_seeds), table.honest(study))


def span(mean: float, low: float, high: float, count: int, what: str = 'seeds') -> str:
    """'1.5230 (1.5200 to 1.5260) over 3 seeds'; without an interval where there is none."""
    within = '' if math.isnan(low) else f' ({low:.4f} to {high:.4f})'
    return f'{mean:.4f}{within} over {count} {what if count != 1 else what.removesuffix("s")}'
