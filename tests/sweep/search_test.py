"""Searches by a real Optuna: shared by processes, gone on with after a kill, pruned; every number of trainings is exact."""

import contextlib
import json
import math
import signal
import subprocess
import sys
import time

import pytest

from lmx import run, study
from lmx.study import Choice, Integer, LogUniform, Search, Study, Trial, Uniform
from lmx.sweep import search
from lmx.sweep.folder import Folder
from lmx.sweep.search import Searched
from lmx.types import BadInput
from tests.sweep.worker import DROPOUT, PEAK, exhaust, loss

LAYERS = 'model.num_layers'
SPACE = {PEAK: LogUniform(1e-4, 1e-1), DROPOUT: Uniform(0.0, 0.5)}
BASE = run.load('tests/tiny.py')


def made(**changed) -> Study:
    asked = {'space': SPACE, 'trials': 8, **changed}
    return Study(BASE, points=Search(**asked))


def begun(path, wanted: Study) -> Folder:
    folder = Folder(path, wanted)
    folder.record()
    return folder


def searched(path, wanted: Study, part=(0, 1)) -> list[Trial]:
    folder = begun(path, wanted)
    with contextlib.closing(Searched(folder, part)) as source:
        return exhaust(folder, source)


@pytest.mark.parametrize('sampler', study.SAMPLERS)
def test_a_search_makes_as_many_trainings_as_it_says_and_the_same_again(tmp_path, sampler):
    wanted = made(sampler=sampler, trials=14)
    first = searched(tmp_path / 'a', wanted)
    assert [trial.number for trial in first] == list(range(14))
    assert len({trial.point[PEAK] for trial in first}) == 14
    assert all(1e-4 <= trial.point[PEAK] <= 1e-1 and 0 <= trial.point[DROPOUT] <= 0.5 for trial in first)
    assert searched(tmp_path / 'b', wanted) == first
    assert searched(tmp_path / 'c', made(sampler=sampler, trials=14, seed=1)) != first
    assert searched(tmp_path / 'a', wanted) == []
    more = searched(tmp_path / 'a', made(sampler=sampler, trials=16))
    assert [trial.number for trial in more] == [14, 15]


def test_a_sampler_learns_from_what_it_is_told(tmp_path):
    tpe, random = (searched(tmp_path / name, made(sampler=name, trials=40)) for name in ('tpe', 'random'))
    late = {name: sum(loss(trial.point) for trial in found[20:]) for name, found in (('tpe', tpe), ('random', random))}
    assert late['tpe'] < 0.6 * late['random']


def test_points_become_configs_whatever_their_kind(tmp_path):
    options = (BASE.optim.rule, {'call': 'lmx.optim.rules:lion', 'b1': 0.9, 'b2': 0.99})
    space = {
        PEAK: LogUniform(1e-4, 1e-1),
        LAYERS: Integer(1, 3),
        'optim.rule': Choice(options),
        'evaluate': Choice((('validation',), ('train',))),
    }
    wanted = made(space=space, trials=12)
    trials = searched(tmp_path, wanted)
    configs = [study.config_of(wanted, trial) for trial in trials]
    assert {config.optim.rule.call for config in configs} == {BASE.optim.rule.call, 'lmx.optim.rules:lion'}
    assert {config.model.num_layers for config in configs} == {1, 2, 3}
    assert {tuple(config.evaluate) for config in configs} == {('validation',), ('train',)}
    again = Folder(tmp_path)  # from its study.json
    assert {trial.name: trial.point for trial in again.trials()} == {trial.name: trial.point for trial in trials}
    with contextlib.closing(Searched(again)) as source:
        assert source.next() is None


@pytest.mark.parametrize('pruner', study.PRUNERS)
def test_those_that_fall_behind_are_pruned(tmp_path, pruner):
    wanted = made(sampler='random', trials=24, pruner=pruner, first=10, factor=2)
    folder = begun(tmp_path, wanted)
    with contextlib.closing(Searched(folder)) as source:
        trials = exhaust(folder, source)
        states = {trial.number: folder.row(trial).state for trial in trials}
        kept = [loss(trial.point) for trial in trials if states[trial.number] == 'done']
        assert 4 < list(states.values()).count('pruned') < 24
        assert min(kept) == min(loss(trial.point) for trial in trials)
        told = {one.number: one.state.name for one in source.trials.get_trials()}
    assert told == {number: {'pruned': 'PRUNED', 'done': 'COMPLETE'}[state] for number, state in states.items()}


def test_a_training_at_its_last_step_is_not_pruned(tmp_path):
    folder = begun(tmp_path, made(pruner='halving', first=10, factor=2, trials=2))
    with contextlib.closing(Searched(folder)) as source:
        good, bad = source.next(), source.next()
        assert not source.report(good, 40, 1.0)
        assert not source.report(bad, 40, 2.0)
        assert not source.report(bad, 40, math.nan)


def test_what_was_under_way_goes_on_with_its_number_and_point(tmp_path):
    folder = begun(tmp_path, made(trials=6, pruner='halving', first=10))
    dead = Searched(folder)
    done, running, failed, diverged, pruned, lost = (dead.next() for _ in range(6))
    for trial, state in ((done, 'done'), (running, 'running'), (failed, 'failed'), (diverged, 'diverged'), (pruned, 'running')):
        folder.mark(trial, state)
    dead.end(failed, 'failed', None)
    assert not dead.report(done, 10, 1.0)
    assert dead.report(pruned, 10, 2.0)
    assert dead.next() is None  # one that failed is not tried twice by the same process
    with contextlib.closing(Searched(folder)) as beside:
        assert beside.next() == failed  # all others are in living hands
        assert beside.next() is None
    dead.close()
    with contextlib.closing(Searched(folder)) as source:
        assert [source.next(), source.next()] == [running, failed]
        assert folder.row(pruned).state == 'pruned'  # it had been told to end
        new = source.next()
        assert (new.number, source.next()) == (6, None)  # in place of the one that nobody began
        for trial in (running, running, done, diverged):
            folder.mark(trial, 'done')
            source.end(trial, 'done', 1.0)
        told = {one.number: one.state.name for one in source.trials.get_trials()}
    assert {told[trial.number] for trial in (diverged, lost)} == {'FAIL'}
    assert {told[trial.number] for trial in (failed, new)} == {'RUNNING'}
    assert told[running.number] == 'COMPLETE'


def test_a_part_goes_on_with_its_own_and_the_whole_with_all(tmp_path):
    folder = begun(tmp_path, made(trials=4))
    parts = [Searched(folder, (index, 2)) for index in range(2)]
    mine, theirs = parts[0].next(), parts[1].next()
    for part, trial in zip(parts, (mine, theirs)):
        folder.mark(trial, 'running')
        part.close()
    for part, expected in (((0, 2), [mine]), ((1, 2), [theirs]), ((0, 1), [mine, theirs])):
        with contextlib.closing(Searched(folder, part)) as source:
            assert source.left == expected


def worker(root, path) -> subprocess.Popen:
    asked = [sys.executable, '-m', 'tests.sweep.worker', str(path)]
    process = subprocess.Popen(asked, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'ready\n'
    return process


def test_processes_share_a_journal_and_make_exactly_the_trainings_though_one_is_killed(root, tmp_path):
    folder = begun(tmp_path, made(sampler='random', trials=45))
    processes = [worker(root, tmp_path) for _ in range(3)]
    for process in processes:
        process.stdin.write('go\n')
        process.stdin.flush()
    deadline = time.monotonic() + 60
    while len(folder.trials()) < 9:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    processes[0].send_signal(signal.SIGKILL)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [-signal.SIGKILL, 0, 0]
    numbers = [[int(word) for word in text.split()] for text in outputs[1:]]
    assert numbers[0]
    assert numbers[1]
    assert not set(numbers[0]) & set(numbers[1])
    rest = searched(tmp_path, made(sampler='random', trials=45))
    assert len(rest) <= 2  # what the killed one was at, or had just asked for
    rows = folder.rows()
    assert [row.state for row in rows] == ['done'] * 45
    assert len({json.dumps(row.trial.point) for row in rows}) == 45


def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path):
    first = searched(tmp_path, made(trials=3))
    journal = tmp_path / search.JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 4, "wor')
    assert [trial.number for trial in searched(tmp_path, made(trials=5))] == [3, 4]
    assert len(Folder(tmp_path).rows()) == len(first) + 2
    assert all(json.loads(line) for line in journal.read_text().splitlines())


@pytest.mark.parametrize(
    ('asked', 'says'),
    [
        (
            {'sampler': 'cmaes', 'space': {PEAK: LogUniform(1e-4, 1e-1), DROPOUT: Choice((0.0, 0.1))}},
            'cmaes.* takes numbers alone, and model.drop',
        ),
        ({'sampler': 'cmaes', 'space': {PEAK: LogUniform(1e-4, 1e-1)}}, 'needs at least two numbers'),
        ({'pruner': 'halving', 'first': 40}, 'would look first after 40 of 40 steps; give first in 1..39'),
    ],
)
def test_searches_that_cannot_be(tmp_path, asked, says):
    with pytest.raises(BadInput, match=says):
        Searched(begun(tmp_path, made(**asked)))


def test_files_of_another_study(tmp_path):
    searched(tmp_path / 'a', made(trials=2))
    other = begun(tmp_path / 'b', made(trials=2, space={PEAK: LogUniform(1e-4, 1e-2)}))
    (tmp_path / 'b' / search.JOURNAL).write_bytes((tmp_path / 'a' / search.JOURNAL).read_bytes())
    with pytest.raises(BadInput, match='a storage file from another study'):
        Searched(other)
    (tmp_path / 'b' / search.JOURNAL).write_text('no journal\nat all\n')
    with pytest.raises(BadInput, match='is no journal of Optuna'):
        Searched(other)
    (tmp_path / 'a' / search.JOURNAL).unlink()
    with pytest.raises(BadInput, match='holds training 0, which its optuna'):
        Searched(Folder(tmp_path / 'a'))


def test_without_optuna(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'optuna', None)
    with pytest.raises(BadInput, match=r"pip install 'lmx\[sweep\]'"):
        Searched(begun(tmp_path, made()))
