"""Sweeps by processes, for real: states, retries, going on after SIGTERM and SIGKILL, pruning that makes room."""

import fcntl
import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from lmx import run, study
from lmx.study import LogUniform, Search, Study
from lmx.sweep import processes
from lmx.sweep.folder import Folder
from lmx.sweep.source import Listed
from lmx.types import BadInput
from tests.sweep.worker import PEAK


def begun(path: pathlib.Path, config: str, points, **asked) -> Folder:
    base = run.load(f'tests/tiny.py:{config}')
    base.every = {'log': 1, 'evaluate': 10, 'checkpoint': 20}
    folder = Folder(path, Study(base, points=points, **asked))
    folder.record()
    return folder


def start(root: pathlib.Path, folder: Folder, jobs: int) -> subprocess.Popen:
    asked = [sys.executable, '-m', 'tests.sweep.local', str(folder.path), str(jobs)]
    return subprocess.Popen(asked, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    errors = process.communicate(timeout=240)[1]
    return process.returncode, errors


def steps(path: pathlib.Path) -> list[int]:
    file = path / 'metrics.jsonl'
    return [json.loads(line)['step'] for line in file.read_text().splitlines() if line.endswith('}')] if file.exists() else []


def wait(ready, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_free(path: pathlib.Path) -> bool:
    """Whether nobody trains in a folder."""
    with open(path / '.lock') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def test_what_fails_says_why_and_is_tried_again_alone(root, tmp_path):
    folder = begun(tmp_path, 'steps=20', [{}, {PEAK: 1e30}, {'model.num_heads': 3}])
    good, wild, wrong = (folder.folder(trial) for trial in folder.trials())
    good.mkdir(parents=True)
    (good / 'checkpoints').write_text('in the way')
    code, errors = finish(start(root, folder, jobs=2))
    assert code == 0, errors
    rows = folder.rows()
    assert [row.state for row in rows] == ['failed', 'diverged', 'failed'], errors
    assert 'Error: [Errno' in rows[0].why
    assert 'is not finite at step' in rows[1].why
    assert '3' in rows[2].why
    assert all(f'{row.trial.name} {row.state}: {row.why}' in errors for row in rows)
    (good / 'checkpoints').unlink()
    before = (wild / 'train.log').read_bytes()
    code, errors = finish(start(root, folder, jobs=2))
    rows = folder.rows()
    assert [row.state for row in rows] == ['done', 'diverged', 'failed'], errors
    assert rows[0].values['validation/loss'] < 3
    assert steps(good) == list(range(1, 21))
    assert (wild / 'train.log').read_bytes() == before
    assert (wrong / 'train.log').read_text().count(rows[2].why) == 2
    assert 'best=' in errors


def test_a_sweep_goes_on_after_sigterm_and_after_sigkill(root, tmp_path):
    folder = begun(tmp_path, 'steps=200', [{PEAK: 1e-3}])
    path = folder.folder(folder.trials()[0])
    process = start(root, folder, jobs=1)
    wait(lambda: len(steps(path)) >= 10, process)
    process.send_signal(signal.SIGTERM)
    code, errors = finish(process)
    assert code == 75, errors
    assert 'SIGTERM: the trainings have saved' in errors
    assert [row.state for row in folder.rows()] == ['running']
    assert is_free(path)
    before = len(steps(path))
    process = start(root, folder, jobs=1)
    wait(lambda: len(steps(path)) >= before + 10, process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20  # the kernel ends the training with it
    while not is_free(path):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(steps(path)) < 200
    code, errors = finish(start(root, folder, jobs=1))
    assert code == 0, errors
    assert [row.state for row in folder.rows()] == ['done']
    assert steps(path) == list(range(1, 201))
    assert (path / 'train.log').read_text().count('resuming at step') == 2


def test_a_training_that_is_pruned_makes_room(root, tmp_path):
    space = {PEAK: LogUniform(1e-5, 1e-2)}
    folder = begun(tmp_path, 'steps=200', Search(space, trials=3, sampler='random', pruner='halving', first=20, factor=2, seed=3))
    code, errors = finish(start(root, folder, jobs=1))
    assert code == 0, errors
    first, second, third = folder.rows()
    peaks = [row.trial.point[PEAK] for row in (first, second, third)]
    assert peaks[0] > peaks[1]
    assert (first.state, second.state) == ('done', 'pruned')
    assert first.step == 200
    assert 20 <= second.step < 200
    assert (second.path / 'checkpoints' / str(second.step)).is_dir()  # it can be trained on by hand
    assert third.state == 'pruned'


def test_a_metric_that_is_not_evaluated(root, tmp_path):
    folder = begun(tmp_path, 'steps=400', [{}], metric='validation/perplexit')
    path = folder.folder(folder.trials()[0])
    path.mkdir(parents=True)
    (path / 'eval.jsonl').write_text('{"step": 10, "split": "validation", "loss": 2.0, "perplexity": 7.4}\n')
    code, errors = finish(start(root, folder, jobs=1))
    assert code == 2
    assert 'metric validation/perplexit is not evaluated; validation has' in errors
    assert 'perplexity' in errors


def test_parts_share_what_there_is(tmp_path):
    folder = begun(tmp_path, 'steps=20', study.grid({PEAK: (1e-3, 2e-3, 3e-3)}), seeds=(0, 1))
    folder.mark(folder.trials()[1], 'done')
    parts = [Listed(folder, folder.trials(), (index, 4)) for index in range(4)]
    found = [trial.name for part in parts for trial in iter(part.next, None)]
    assert sorted(found) == sorted(trial.name for trial in folder.trials() if trial.name != folder.trials()[1].name)


def test_no_job_at_all(tmp_path):
    folder = begun(tmp_path, 'steps=20', [{}])
    with pytest.raises(BadInput, match='--jobs=0 must be at least 1'):
        processes.run(folder, Listed(folder, folder.trials()), jobs=0)


def test_gpus_are_shared_out(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5,6,7')
    monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
    seen = [[processes.devices(place, jobs).get('CUDA_VISIBLE_DEVICES') for place in range(jobs)] for jobs in (1, 2, 4, 6)]
    assert seen == [[None], ['4,6', '5,7'], ['4', '5', '6', '7'], ['4', '5', '6', '7', '4', '5']]
    assert processes.devices(0, 6)['XLA_PYTHON_CLIENT_MEM_FRACTION'] == '0.45'
    assert 'XLA_PYTHON_CLIENT_MEM_FRACTION' not in processes.devices(0, 4)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert processes.devices(0, 4) == {}
