"""Studies as data: points, spaces, what is refused, and a folder that goes on with more of the same."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from lmx import run, study
from lmx.run import sweep as sweeps
from lmx.study import Choice, Integer, LogUniform, Search, Study, Trial, Uniform, grid, random, sobol
from lmx.sweep import table
from lmx.sweep.folder import Folder, study_of
from lmx.types import BadInput

PEAK = 'optim.schedule.peak'


@pytest.fixture(scope='module')
def base():
    return run.load('tests/tiny.py')


def test_a_grid_is_every_combination():
    axes = {'a': (1, 2, 3), 'b': ('x', 'y')}
    assert [tuple(point.values()) for point in grid(axes)] == list(itertools.product(*axes.values()))


@pytest.mark.parametrize('points', [random, sobol])
def test_points_fill_their_space_and_begin_alike(points):
    space = {'a': LogUniform(1e-4, 1e-1), 'b': Integer(1, 4), 'c': Choice(('x', 'y')), 'd': Uniform(-1, 1)}
    many = points(space, 256, seed=3)
    assert many[:10] == points(space, 10, seed=3)
    assert many != points(space, 256, seed=4)
    assert all(1e-4 <= point['a'] <= 1e-1 and -1 <= point['d'] <= 1 for point in many)
    assert {point['b'] for point in many} == {1, 2, 3, 4}
    # Of 256 draws each half of a space has 128, give or take four standard deviations.
    assert abs(sum(math.log10(point['a']) < -2.5 for point in many) - 128) <= 32
    assert abs(sum(point['c'] == 'x' for point in many) - 128) <= 32


def test_a_config_takes_the_values_of_its_point(base):
    of = Study(base, ({'model.dim': 32, PEAK: 0.5},), seeds=(3,))
    config = study.config_of(of, study.trials(of)[0])
    assert (config.model.dim, config.optim.schedule.peak, config.seed) == (32, 0.5, 3)
    assert config.is_locked
    assert base.model.dim == 16


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'points': ({'optim.schedule.peek': 1.0},)}, "did you mean 'peak'"),
        ({'points': ()}, 'no points'),
        ({'points': ({PEAK: 1.0}, {PEAK: 1.0})}, 'is given twice'),
        ({'points': ({'model.dim': 16.5},)}, 'must be a whole number'),
        ({'points': ({PEAK: 'high'},)}, 'is no number'),
        ({'points': ({'seed': 1},)}, r'give seeds=\(0, 1, 2\)'),
        ({'metric': 'test/loss'}, 'no split that is evaluated in training; there are validation'),
        ({'reported': 'test/loss'}, 'no split of the data; there are train, validation'),
        ({'seeds': (0, 0)}, 'none twice'),
        ({'seeds': (0,), 'fresh_seeds': (0,)}, 'none twice'),
        ({'mode': 'least'}, 'must be min or max'),
    ],
)
def test_a_study_that_cannot_be_is_refused(base, change, message):
    with pytest.raises(BadInput, match=message):
        Study(**{'base': base, 'points': ({},), **change})


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: grid({'a': ()}), "'a' has no values"),
        (lambda: grid({}), 'the grid is empty'),
        (lambda: random({}, 3), 'the space is empty'),
        (lambda: Uniform(1, 1), 'is empty'),
        (lambda: LogUniform(0, 1), 'must begin above 0'),
        (lambda: Choice(()), 'is empty'),
        (lambda: Search({}, trials=3), 'the space is empty'),
        (lambda: Search({'a': Uniform(0, 1)}, trials=0), 'at least 1'),
        (lambda: Search({'a': Uniform(0, 1)}, trials=3, sampler='tpee'), "did you mean 'tpe'"),
        (lambda: Search({'a': Uniform(0, 1)}, trials=3, pruner='halvin'), "did you mean 'halving'"),
    ],
)
def test_an_empty_space_is_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make()


def test_a_metric_that_the_run_does_not_log_is_refused(base, tmp_path):
    with pytest.raises(BadInput, match=r"'validation/los' is not evaluated; did you mean 'loss'.*perplexity"):
        sweeps.sweep(Study(base, ({},), metric='validation/los'), tmp_path / 'a')


def test_a_budget_is_kept(base, tmp_path):
    with pytest.raises(BadInput, match='takes 160 updates and its budget is 100'):
        sweeps.sweep(Study(base, grid({PEAK: (1e-3, 2e-3)}), seeds=(0, 1), budget=100), tmp_path / 'a')


def test_a_study_is_data(base):
    for points in (grid({PEAK: (1e-3, 2e-3)}), Search({PEAK: LogUniform(1e-4, 1e-2), 'model.dim': Choice((8, 16))}, trials=3)):
        of = Study(base, points)
        again = study_of(json.loads(json.dumps(study.to_plain(of))))
        assert study.to_plain(again) == study.to_plain(of)


def test_points_and_seeds_may_be_added_and_nothing_else(base, tmp_path):
    first = Study(base, grid({PEAK: (1e-3, 3e-3)}))
    Folder(tmp_path / 'a', first).record()
    more = Folder(tmp_path / 'a', Study(base, grid({PEAK: (1e-3, 2e-3, 3e-3)}), seeds=(0, 1)))
    # Those that were there keep their numbers.
    assert [point[PEAK] for point in more.points] == [1e-3, 3e-3, 2e-3]
    more.record()
    assert [trial.name for trial in Folder(tmp_path / 'a').trials()] == ['0000-s0', '0000-s1', '0001-s0', '0001-s1', '0002-s0', '0002-s1']
    with pytest.raises(BadInput, match=r'holds another study \(points .*0.003.* -> '):
        Folder(tmp_path / 'a', Study(base, grid({PEAK: (1e-3, 2e-3)}), seeds=(0, 1)))
    with pytest.raises(BadInput, match=r"mode 'min' -> 'max'"):
        Folder(tmp_path / 'a', Study(base, more.study.points, seeds=(0, 1), mode='max'))
    with pytest.raises(BadInput, match='seeds'):
        Folder(tmp_path / 'a', Study(base, more.study.points, seeds=(1,)))
    other = run.load('tests/tiny.py:steps=20')
    with pytest.raises(BadInput, match=r'base\.steps 40 -> 20'):
        Folder(tmp_path / 'a', Study(other, more.study.points, seeds=(0, 1)))


def test_other_folders_are_left_alone(base, tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(BadInput, match=r'holds no sweep \(notes.txt\)'):
        Folder(tmp_path, Study(base, ({},)))
    with pytest.raises(BadInput, match=r'no study\.json'):
        Folder(tmp_path / 'nothing')
    (tmp_path / 'study.json').write_text('{')
    with pytest.raises(BadInput, match=r'study\.json is broken .*restore it'):
        Folder(tmp_path)


def test_a_sweep_is_trained_by_one_process(base, tmp_path):
    folder = Folder(tmp_path / 'a', Study(base, ({},)))
    with folder.locked(), pytest.raises(BadInput, match='is in use by process'), folder.locked():
        pass


def made(values) -> list[table.Line]:
    return [
        table.Line(number, {PEAK: 10.0**-number}, {'done': len(some)}, some, *table.interval(some)) for number, some in enumerate(values)
    ]


def test_the_interval_is_students():
    draws = np.random.default_rng(0).normal(size=5)
    low, high = stats.ttest_1samp(draws, 0).confidence_interval(0.95)
    assert table.interval(list(draws)) == pytest.approx((draws.mean(), low, high))
    assert math.isnan(table.interval([1.0])[1])
    assert all(map(math.isnan, table.interval([])))


def test_the_best_mean_wins_and_incomplete_points_do_not(base):
    found = made([[3.0, 3.2], [1.0, 1.2], [2.0, 2.2]])
    broken = table.Line(3, {PEAK: 1.0}, {'done': 1, 'diverged': 1}, [0.1], 0.1, math.nan, math.nan)
    assert [line.number for line in table.ranked(Study(base, ({},)), [*found, broken])] == [1, 2, 0]
    assert [line.number for line in table.ranked(Study(base, ({},), mode='max'), [*found, broken])] == [0, 2, 1]


def test_names_are_as_short_as_tells_them_apart():
    assert table.shorts(['optim.schedule.peak', 'model.dim', 'task.dim']) == {
        'optim.schedule.peak': 'peak',
        'model.dim': 'model.dim',
        'task.dim': 'task.dim',
    }


def test_a_study_file_that_is_not_there_or_fails_says_so(tmp_path):
    (tmp_path / 'mine.py').write_text('def get_study():\n    return 1 / 0\n')
    with pytest.raises(BadInput, match=r'ZeroDivisionError.*mine.py:2'):
        study.load(str(tmp_path / 'mine.py'))
    with pytest.raises(BadInput, match='did you mean'):
        study.load(str(tmp_path / 'mime.py'))
    (tmp_path / 'other.py').write_text('')
    with pytest.raises(BadInput, match='defines no get_study'):
        study.load(str(tmp_path / 'other.py'))


def test_the_reported_split_is_evaluated_for_fresh_seeds_alone(base):
    of = Study(base, ({},), reported='train/loss', fresh_seeds=(1,))
    assert study.config_of(of, Trial(0, {}, 0)).evaluate == ('validation',)
    assert study.config_of(of, Trial(0, {}, 1, fresh=True)).evaluate == ('validation', 'train')
