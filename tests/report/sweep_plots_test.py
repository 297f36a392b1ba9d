"""What is drawn of a sweep: axes, limits, cells, importances."""

import re

import pytest

from lmx.report import importances, sweep_curves, sweep_plots, sweep_read
from lmx.report.sweep_read import Sweep
from lmx.study import grid
from lmx.sweep import table
from tests.report import sweeps


def lines(points, value=lambda point: 1.0, study=None):
    return [table.Line(n, point, {'done': 1}, [value(point)], *table.interval([value(point)])) for n, point in enumerate(points)]


def hypers(points):
    return sweep_read.hypers(sweeps.grid_study(points=points), lines(points))


@pytest.mark.parametrize(
    ('values', 'log'), [((1e-4, 1e-2), True), ((1, 2, 4), True), ((64, 128), False), ((1, 2, 3), False), ((0.0, 0.1, 1.0), False)]
)
def test_an_axis_is_logarithmic_where_that_shows_more(values, log):
    (hyper,) = hypers([{'optim.weight_decay': value} for value in values])
    assert (hyper.numeric, hyper.log) == (True, log)


def test_the_base_supplies_what_a_point_does_not_say():
    points = [{sweeps.DIM: 64}, {}, {sweeps.LR: 1e-2}]
    dim, rate = hypers(points)
    assert dim.levels == [16, 64]
    assert [dim.place(line) for line in lines(points)] == [64.0, 16.0, 16.0]
    assert rate.levels == [3e-3, 1e-2]


def test_what_does_not_vary_is_no_axis():
    assert [hyper.name for hyper in hypers([{sweeps.DIM: 64, sweeps.LR: rate} for rate in (1e-3, 2e-3)])] == ['peak']


def test_values_of_any_kind_are_levels():
    calls = [{'call': 'lmx.nn.positions:Rope', 'base': base} for base in (1.0, 2.0)]
    (hyper,) = hypers([{'model.positions': value} for value in (None, *calls, 'learned')])
    assert (hyper.numeric, len(hyper.levels)) == (False, 4)
    assert hyper.labels == ['None', 'Rope', 'Rope', 'learned']


def test_an_axis_leaves_out_what_is_far_off_on_the_bad_side():
    values = [1.0, 1.1, 1.2, 1.3, 50.0]
    low, high = sweep_curves.span(values, 'min')
    assert low < 1.0 < 1.3 < high < 2.0
    low, high = sweep_curves.span([-value for value in values], 'max')
    assert -2.0 < low < -1.3 < -1.0 < high
    assert sweep_curves.span([], 'min') is None
    assert sweep_curves.span([2.0, 2.0], 'min') is None


class Grid:
    """As much of a sweep as the pictures of a grid look at."""

    def __init__(self, points, value):
        self.study = sweeps.grid_study(points=points)
        self.lines = self.ranked = sorted(lines(points, value), key=lambda line: line.mean)
        self.hypers = sweep_read.hypers(self.study, self.lines)
        self.listed = []


def test_a_heat_map_says_the_best_mean_of_every_cell():
    points = grid({sweeps.LR: (1e-3, 2e-3, 4e-3), sweeps.DIM: (32, 64), 'optim.weight_decay': (0.0, 1.0)})
    made = Grid(points, lambda point: point[sweeps.DIM] + 1000 * point[sweeps.LR] + point['optim.weight_decay'])
    rate, dim, _ = made.hypers
    svg = sweep_plots.heat(made, rate, dim)
    shown = re.findall(r'<text[^>]*>(\d\d\.\d\d)</text>', svg)
    assert sorted(shown) == ['33.00', '34.00', '36.00', '65.00', '66.00', '68.00']  # those without decay


def test_a_heat_map_of_mostly_nothing_is_not_drawn():
    points = [{sweeps.LR: rate, sweeps.DIM: dim} for rate, dim in ((1e-3, 16), (2e-3, 32), (4e-3, 64), (8e-3, 128), (1e-3, 32))]
    made = Grid(points, lambda point: point[sweeps.LR])
    assert sweep_plots.heat(made, *made.hypers) is None


def test_a_contour_needs_points_that_span_an_area():
    scattered = [{sweeps.LR: 1e-3 * (1 + n % 5) * (1 + n), 'optim.weight_decay': n / 10} for n in range(10)]
    made = Grid(scattered, lambda point: point[sweeps.LR])
    assert '<svg' in sweep_plots.contour(made, *made.hypers)
    line = [{sweeps.LR: 1e-3 * 2**n, 'optim.weight_decay': 0.1 * 2**n} for n in range(10)]
    made = Grid(line, lambda point: point[sweeps.LR])
    assert sweep_plots.contour(made, *made.hypers) is None
    few = Grid(scattered[:7], lambda point: point[sweeps.LR])
    assert sweep_plots.contour(few, *few.hypers) is None
    same = Grid(scattered, lambda point: 1.0)
    assert sweep_plots.contour(same, *same.hypers) is None


def test_curves_show_the_winner_on_top_and_the_others_as_what_they_are(tmp_path):
    folder = sweeps.finished_grid(tmp_path / 'a')
    (_, metric), (_, losses) = sweep_curves.figures(Sweep(folder.path))
    for svg in (metric, losses):
        names = re.findall(r'<text[^>]*>([^<]+)</text>', svg)
        assert '1. peak 0.002, dim 128' in names
        assert {'running', 'diverged'} <= set(names)
        assert 'failed' not in names  # it has no curve
        strokes = re.findall(r'stroke: (#[0-9a-f]{6}); stroke-width: (?:0\.9|1\.4|2\.2)', svg)
        assert strokes.count(sweep_curves.BEST) == 4  # three seeds and the legend


def of(points, value):
    study = sweeps.grid_study(points=points)
    found = lines(points, value)
    return importances.of(study, found, sweep_read.hypers(study, found))


def test_importances_find_what_matters():
    pytest.importorskip('optuna')
    points = grid({sweeps.LR: (1e-3, 2e-3, 4e-3, 8e-3, 16e-3), sweeps.DIM: (32, 64, 128, 256), 'model.tied': (True, False)})
    shares, why = of(points, lambda point: 1.0 * point[sweeps.DIM] + point[sweeps.LR])
    assert why == ''
    assert next(iter(shares)) == sweeps.DIM
    assert set(shares) == {sweeps.LR, sweeps.DIM, 'model.tied'}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares['model.tied'] < 0.05


def test_importances_say_why_there_are_none(monkeypatch):
    few = grid({sweeps.LR: (1e-3, 2e-3), sweeps.DIM: (32, 64)})
    enough = grid({sweeps.LR: (1e-3, 2e-3, 4e-3), sweeps.DIM: (32, 64, 128)})
    assert 'there are 4' in of(few, lambda point: point[sweeps.LR])[1]
    assert 'fewer than two vary' in of([{sweeps.LR: rate / 1e3} for rate in range(1, 12)], lambda point: point[sweeps.LR])[1]
    assert 'same value' in of(enough, lambda point: 1.0)[1]
    monkeypatch.setitem(__import__('sys').modules, 'optuna', None)
    assert 'pip install optuna' in of(enough, lambda point: point[sweeps.LR])[1]
