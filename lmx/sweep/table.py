"""What a sweep found: a line per point with mean and interval over its seeds, the winner, and the table for papers."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmx.study import Search, Study
from lmx.sweep.folder import Row

if TYPE_CHECKING:
    from lmx.sweep.answer import Answer


@dataclasses.dataclass(frozen=True)
class Line:
    """A point and its trainings.

    Attributes:
      states: how many trainings stand how.
      values: of `metric`, one of every training that came to its end.
      mean, low, high: of them, with Student's 95 % interval; NaN without a value, and an interval that is NaN for a single one.
    """

    number: int
    point: Mapping[str, Any]
    states: Mapping[str, int]
    values: Sequence[float]
    mean: float
    low: float
    high: float

    @property
    def complete(self) -> bool:
        """Whether every seed came to its end."""
        return set(self.states) == {'done'}


def lines(rows: Sequence[Row], metric: str) -> list[Line]:
    """A line per point, by number."""
    out = []
    for number in sorted({row.trial.number for row in rows}):
        mine = [row for row in rows if row.trial.number == number]
        states = {state: sum(row.state == state for row in mine) for state in dict.fromkeys(row.state for row in mine)}
        values = [row.values[metric] for row in mine if row.state == 'done' and metric in row.values]
        out.append(Line(number, mine[0].trial.point, states, values, *interval(values)))
    return out


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): Student's 95 % interval of the mean."""
    if not values:
        return math.nan, math.nan, math.nan
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, math.nan, math.nan
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def ranked(study: Study, found: Sequence[Line]) -> list[Line]:
    """The lines whose trainings all came to their end, best mean first. Of points with an unequal number of seeds none is left out."""
    sign = -1.0 if study.mode == 'max' else 1.0
    return sorted((line for line in found if line.complete and line.values), key=lambda line: (sign * line.mean, line.number))


def chosen_on(study: Study) -> str:
    """The split that the winner is chosen on."""
    return study.metric.partition('/')[0]


def honest(study: Study) -> str:
    """'' where the choice had no part in the reported number, else what is wrong with it, to be printed beside the number."""
    if chosen_on(study) == 'test':
        return 'chosen on test: the value of the winner is too good'
    if not study.fresh_seeds:
        return 'the value of the winner is that by which it was chosen, and so a little too good; fresh_seeds train it again'
    return ''


def steps(study: Study) -> int:
    """The most updates that the study takes, those of its winner's fresh seeds included."""
    fresh = len(study.fresh_seeds) * study.base.steps
    if isinstance(study.points, Search):
        return study.points.trials * study.base.steps + fresh
    return sum(point.get('steps', study.base.steps) for point in study.points) * len(study.seeds) + fresh


def paths(found: Sequence[Line]) -> list[str]:
    """The config paths that the points change."""
    return list(dict.fromkeys(path for line in found for path in line.point))


def shorts(names: Sequence[str]) -> dict[str, str]:
    """Each path by as much of its end as tells it from the others: 'optim.schedule.peak' as 'peak'."""
    out = {}
    for name in names:
        parts = name.split('.')
        ends = ('.'.join(parts[-n:]) for n in range(1, len(parts) + 1))
        out[name] = next(end for end in ends if sum(f'.{other}'.endswith(f'.{end}') for other in names) == 1)
    return out


def csv_of(found: Sequence[Line], metric: str, answer: Answer | None = None) -> str:
    """The lines as CSV, whole paths for heads.

    Args:
      answer: marks the winner in the column 'choice', and puts the reported number of its fresh seeds into columns of their own.
    """
    names = paths(found)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    fresh = answer is not None and bool(answer.fresh)
    extra = [*(['choice'] if answer else []), *([f'fresh {answer.metric} mean', 'fresh low', 'fresh high', 'fresh seeds'] if fresh else [])]
    writer.writerow(['number', *names, f'{metric} mean', 'low', 'high', 'seeds', 'states', *extra])
    for line in found:
        states = ' '.join(f'{count} {state}' for state, count in line.states.items())
        cells = [line.number, *(_cell(line.point.get(name, '')) for name in names), *_numbers(line), len(line.values), states]
        is_best = answer is not None and answer.best is not None and answer.best.number == line.number
        cells += [_choice(metric) if is_best else ''] if answer else []
        cells += ([*_numbers(answer), len(answer.fresh)] if is_best else [''] * 4) if fresh else []
        writer.writerow(cells)
    return file.getvalue()


def latex_of(study: Study, found: Sequence[Line], answer: Answer | None = None) -> str:
    """The lines as a LaTeX table for the package booktabs, the best in bold.

    Args:
      answer: adds the reported number of the winner's fresh seeds below, and says where the choice was made on test.
    """
    names, short = paths(found), shorts(paths(found))
    best = next(iter(ranked(study, found)), None)
    heads = ' & '.join(_escaped(cell) for cell in (*(short[name] for name in names), study.metric))
    rows = [f'\\begin{{tabular}}{{{"l" * len(names)}r}}', '\\toprule', f'{heads} \\\\', '\\midrule']
    for line in found:
        total = sum(line.states.values())
        shown = _plus_minus(line) + (f' ({len(line.values)} of {total} seeds)' if line.values and not line.complete else '')
        shown = f'\\textbf{{{shown}}}' if line is best else shown
        rows.append(' & '.join([*(_escaped(value_text(line.point.get(name, ''))) for name in names), shown]) + ' \\\\')
    rows += _below(answer, len(names)) if answer else []
    return '\n'.join([*rows, '\\bottomrule', '\\end{tabular}']) + '\n'


def _below(answer: Answer, across: int) -> list[str]:
    """What stands under the LaTeX table. In the table itself: the reported number, and that a choice was made on test."""
    told = [(f'best, {answer.metric} over {len(answer.fresh)} fresh seeds', _plus_minus(answer))] if answer.fresh else []
    noted = answer.note if answer.best is not None else ''
    if noted.startswith('chosen on test'):
        told.append((noted, ''))
        noted = ''
    rows = [
        f'\\multicolumn{{{across}}}{{l}}{{{_escaped(text)}}} & {number} \\\\' if across else f'% {text} {number}' for text, number in told
    ]
    return [*(['\\midrule'] if rows and across else []), *rows, *([f'% {noted}'] if noted else [])]


def _plus_minus(found: Line | Answer) -> str:
    shown = '--' if math.isnan(found.mean) else f'{found.mean:.4f}'
    return shown + ('' if math.isnan(found.low) else f' $\\pm$ {found.high - found.mean:.4f}')


def _choice(metric: str) -> str:
    return 'best, chosen on test' if metric.partition('/')[0] == 'test' else 'best'


def _cell(value: Any) -> Any:
    """A call or a sequence as JSON, so that it can be read back."""
    return json.dumps(value) if isinstance(value, (Mapping, list, tuple)) else value


def value_text(value: Any) -> str:
    """A point's value for a reader: numbers short, calls and functions by their name."""
    if isinstance(value, float):
        return f'{value:.4g}'
    if isinstance(value, Mapping) and 'call' in value:
        return str(value['call']).partition(':')[2]
    return value[2:-1].rpartition(':')[2] if isinstance(value, str) and value.startswith('${') else str(value)


def _numbers(found: Line | Answer) -> list[str]:
    return ['' if math.isnan(value) else repr(value) for value in (found.mean, found.low, found.high)]


ESCAPES = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '<': r'\textless{}', '>': r'\textgreater{}'}


def _escaped(text: str) -> str:
    return ''.join(ESCAPES.get(char, f'\\{char}' if char in '&%$#_{}' else char) for char in text)
