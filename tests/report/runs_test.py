"""The list of runs below a folder."""

import fcntl
import os

import pytest

from lmx.report import runs
from lmx.types import BadInput
from tests.report.fakes import fake, write


def test_runs_are_listed_newest_first(tmp_path):
    for name in ('old', 'new'):
        fake(tmp_path / 'sub' / name, steps=50)
    for path in (tmp_path / 'sub' / 'old').iterdir():
        os.utime(path, (1, 1))
    rows = runs.find(tmp_path)
    assert [row['name'] for row in rows] == ['sub/new', 'sub/old']
    assert rows[0]['state'] == 'done'
    assert 'validation 2.8000' in runs.table(rows)
    assert runs.table([]) == 'no runs here'


def test_the_state_tells_done_running_and_stopped(tmp_path):
    for name in ('done', 'running', 'stopped'):
        fake(tmp_path / name)
        if name != 'done':
            write(tmp_path / name, config={'steps': 99})
    with open(tmp_path / 'running' / '.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        states = {row['name']: row['state'] for row in runs.find(tmp_path)}
    assert states == {name: name for name in states}
    assert len(states) == 3


@pytest.mark.parametrize(
    'odd',
    [
        {'config': {}, 'metrics': []},
        {'config': {'steps': None}},
        {'metrics': [{'step': None, 'loss': 'x'}]},
        {'metrics': [{'step': 3, 'loss': None}], 'eval': [{'step': 1, 'loss': 2.0}, {'loss': None}]},
    ],
)
def test_odd_values_do_not_end_the_list(tmp_path, odd):
    write(fake(tmp_path / 'odd'), **odd)
    fake(tmp_path / 'good')
    assert len(runs.table(runs.find(tmp_path)).splitlines()) == 3


def test_the_newest_evaluation_of_every_split_is_shown(tmp_path):
    lines = [{'step': step, 'split': split, 'loss': step / 10} for step in (1, 2) for split in ('validation', 'test')]
    write(fake(tmp_path / 'a'), eval=[*lines, {'step': 2, 'split': 'test', 'baseline/xz': 1.6}])
    assert runs.find(tmp_path)[0]['evaluation'] == 'validation 0.2000, test 0.2000'


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(BadInput, match='no folder'):
        runs.find(tmp_path / 'none')
