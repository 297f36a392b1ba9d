"""The winner, the number that is reported of it, and the tables that others read."""

import csv
import io
import re

import numpy as np
import pytest
from scipy import stats

from lmx.report.sweep_read import Sweep
from lmx.study import Trial
from lmx.sweep import table
from lmx.sweep.answer import answer, span
from tests.report import sweeps

BEST = {sweeps.LR: 2e-3, sweeps.DIM: 128}


def student(values):
    mean = np.mean(values)
    return (mean, *stats.t.interval(0.95, len(values) - 1, loc=mean, scale=stats.sem(values)))


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    return sweeps.finished_grid(tmp_path_factory.mktemp('sweeps') / 'a', fresh=(10, 11, 12), fresh_seeds=(10, 11, 12, 13))


def test_the_winner_has_the_best_mean_of_the_complete_points(finished):
    best = answer(finished.study, finished.rows()).best
    values = [sweeps.loss(BEST, seed) for seed in (0, 1, 2)]
    assert best.point == BEST
    assert (best.mean, best.low, best.high) == pytest.approx(student(values), rel=1e-9)
    means = {n: np.mean([sweeps.loss(point, seed) for seed in (0, 1, 2)]) for n, point in enumerate(finished.points)}
    assert best.number == min(means, key=means.get)


def test_the_reported_number_is_of_fresh_seeds_of_the_winner_alone(finished):
    sweeps.trained(finished, Trial(8, finished.points[8], 13, fresh=True))  # of a point that led before
    found = answer(finished.study, finished.rows())
    values = [sweeps.loss(BEST, seed) for seed in (10, 11, 12)]
    assert list(found.fresh) == pytest.approx(values)
    assert (found.mean, found.low, found.high) == pytest.approx(student(values), rel=1e-9)
    assert found.wanted == 4


def test_a_choice_is_final_when_nothing_is_left(tmp_path):
    folder = sweeps.Folder(tmp_path / 'a', sweeps.grid_study(points=({}, {sweeps.DIM: 64}), seeds=(0,)))
    folder.record()
    first, second = folder.trials()
    assert answer(folder.study, folder.rows()).best is None
    sweeps.trained(folder, first)
    assert not answer(folder.study, folder.rows()).final
    folder.mark(second, 'failed', why='killed')  # is tried again
    assert not answer(folder.study, folder.rows()).final
    sweeps.trained(folder, second, 'diverged')
    found = answer(folder.study, folder.rows())
    assert found.final
    assert found.best.number == 0


def test_a_search_is_not_final_before_all_its_points(tmp_path):
    folder = sweeps.search(tmp_path / 'a', begun=3)
    assert not answer(folder.study, folder.rows()).final


def test_the_csv_reads_back(finished):
    sweep = Sweep(finished.path)
    rows = list(csv.DictReader(io.StringIO(table.csv_of(sweep.lines, sweep.study.metric, sweep.answer))))
    assert [int(row['number']) for row in rows] == [line.number for line in sweep.lines]
    for row, line in zip(rows, sweep.lines):
        assert float(row['optim.schedule.peak']) == line.point[sweeps.LR]
        assert int(row['model.dim']) == line.point[sweeps.DIM]
        assert [float(row[key]) for key in ('validation/loss mean', 'low', 'high')] == [line.mean, line.low, line.high]
    assert [row['choice'] for row in rows] == ['best'] + [''] * 11
    assert float(rows[0]['fresh validation/loss mean']) == sweep.answer.mean
    assert {row['fresh validation/loss mean'] for row in rows[1:]} == {''}


def test_the_latex_table_reads_back(finished):
    sweep = Sweep(finished.path)
    text = table.latex_of(sweep.study, sweep.lines, sweep.answer)
    rows = [line.removesuffix(' \\\\').split(' & ') for line in text.splitlines() if line.endswith('\\\\')]
    assert rows[0] == ['peak', 'dim', 'validation/loss']
    assert rows[1] == ['0.002', '128', f'\\textbf{{{sweep.ranked[0].mean:.4f} $\\pm$ {sweep.ranked[0].high - sweep.ranked[0].mean:.4f}}}']
    for row, line in zip(rows[2:13], sweep.lines[1:]):
        assert float(row[0]) == line.point[sweeps.LR]
        assert re.match(r'[\d.]+', row[2])[0] == f'{line.mean:.4f}'
        assert ('2 of 3 seeds' in row[2]) == (line.number in (1, 10, 11))
    assert text.count('\\textbf') == 1
    assert rows[13][0] == r'\multicolumn{2}{l}{best, validation/loss over 3 fresh seeds}'
    assert rows[13][1].startswith(f'{sweep.answer.mean:.4f} ')


@pytest.mark.parametrize(
    ('text', 'shown'), [('a_b&c', r'a\_b\&c'), ('\\{x}', r'\textbackslash{}\{x\}'), ('5 % #1 $', r'5 \% \#1 \$'), ('~^', None)]
)
def test_latex_shows_text_as_it_is(tmp_path, text, shown):
    folder = sweeps.Folder(tmp_path, sweeps.grid_study(points=({'optim.decay': text}, {}), seeds=(0,)))
    lines = table.lines(folder.rows(), 'validation/loss')
    made = table.latex_of(folder.study, lines)
    assert (shown or r'\textasciitilde{}\textasciicircum{}') in made


@pytest.mark.parametrize(
    ('metric', 'fresh', 'in_table', 'comment'), [('validation/loss', (), 0, 1), ('validation/loss', (9,), 0, 0), ('test/loss', (9,), 1, 0)]
)
def test_exports_mark_a_choice_that_was_made_on_test(tmp_path, metric, fresh, in_table, comment):
    folder = sweeps.Folder(tmp_path / 'a', sweeps.grid_study(metric=metric, fresh_seeds=fresh, seeds=(0,), points=({}, {sweeps.DIM: 32})))
    for trial in folder.trials():
        sweeps.trained(folder, trial)
    rows = folder.rows()
    lines, found = table.lines(rows, metric), answer(folder.study, rows)
    latex = table.latex_of(folder.study, lines, found)
    assert len(re.findall(r'multicolumn.*chosen on test', latex)) == in_table
    assert len(re.findall(r'^% the value of the winner', latex, re.MULTILINE)) == comment
    assert ('best, chosen on test' in table.csv_of(lines, metric, found)) == bool(in_table)


def test_a_span_says_how_many():
    assert span(1.5, 1.4, 1.6, 3) == '1.5000 (1.4000 to 1.6000) over 3 seeds'
    assert span(1.5, float('nan'), float('nan'), 1, 'fresh seeds') == '1.5000 over 1 fresh seed'
