"""Curves: thinned, smoothed, told apart."""

import pytest

from lmx.report import plots, read
from tests.report.fakes import fake, write


def test_long_curves_are_thinned_and_gaps_left_out():
    lines = [{'step': s, 'loss': None if s % 7 == 0 else float(s)} for s in range(5000)]
    assert len(read.column(lines, 'loss')[0]) == 5000 - 715
    steps, values = plots.thin(*read.column(lines, 'loss'))
    assert len(steps) == plots.POINTS
    assert (steps[0], steps[-1]) == (1.0, 4999.0)
    assert steps == values


def test_smoothing_is_a_running_mean():
    assert plots.smooth([1.0] * 100) == pytest.approx([1.0] * 100)
    assert plots.smooth([0.0, 2.0, 4.0, 6.0], share=0.5) == pytest.approx([0.0, 1.0, 3.0, 5.0])


def test_smoothing_sees_every_point_before_curves_are_thinned(tmp_path):
    """Of 40,000 points that alternate, 400 would by chance be all of one kind; their mean is known."""
    lines = [{'step': step, 'loss': float(step % 2)} for step in range(40_000)]
    run = read.RunFiles(write(fake(tmp_path / 'a'), metrics=lines))
    smoothed = next(curve for curve in plots._losses([run]) if 'smoothed' in curve[0])
    assert len(smoothed[1]) == plots.POINTS
    assert smoothed[2][20:] == pytest.approx([0.5] * 380, abs=1e-3)  # a window of 2,000 points, one more or less


def test_splits_of_one_run_have_different_marks(tmp_path):
    lines = [{'step': step, 'split': split, 'loss': 1.0} for step in (1, 2) for split in ('validation', 'test')]
    run = read.RunFiles(write(fake(tmp_path / 'a'), eval=lines))
    styles = [curve[3] for curve in plots._losses([run]) if curve[0] in ('validation', 'test')]
    assert len({style['marker'] for style in styles}) == 2
    assert len({style['color'] for style in styles}) == 1


def test_one_evaluation_has_its_baselines_beside_it(tmp_path):
    lines = [{'step': 40, 'split': 'validation', 'bits_per_byte': 1.5}, {'step': 40, 'split': 'validation', 'baseline/xz': 1.65}]
    curves = plots._bits([read.RunFiles(write(fake(tmp_path / 'a'), eval=lines))])
    assert [(label, list(x), list(y)) for label, x, y, _ in curves] == [('validation', [40.0], [1.5]), ('xz', [0.0, 40.0], [1.65, 1.65])]
