"""A run that is killed at any moment and started again ends with the bits of a run that was not."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

STEPS = 120
TIMES = ('tokens_per_second', 'step_seconds', 'goodput')


def command(workdir: pathlib.Path) -> list[str]:
    return [sys.executable, '-m', 'lmx.cli', 'train', f'--config=tests/tiny.py:steps={STEPS}', f'--workdir={workdir}']


def start(workdir: pathlib.Path, root: pathlib.Path) -> subprocess.Popen:
    return subprocess.Popen(command(workdir), cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(workdir: pathlib.Path, root: pathlib.Path) -> None:
    process = start(workdir, root)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def result(workdir: pathlib.Path) -> tuple[dict, list, list]:
    """(last checkpoint's arrays, metrics without times, evaluations)."""
    import jax
    import orbax.checkpoint as ocp

    folder = workdir / 'checkpoints' / str(STEPS) / 'state'
    with ocp.PyTreeCheckpointer() as reader:
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(folder).item_metadata.tree)
        state = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=kinds))
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    metrics = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    return state, metrics, (workdir / 'eval.jsonl').read_text().splitlines()


def steps_done(workdir: pathlib.Path) -> int:
    path = workdir / 'metrics.jsonl'
    return path.read_bytes().count(b'\n') if path.exists() else 0


def kill_when(process: subprocess.Popen, ready) -> bool:
    """SIGKILL as soon as ready() holds; False if the process ended first."""
    deadline = time.monotonic() + 120
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.0005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return True


def _ready(workdir: pathlib.Path, target: int, inside_a_save: bool) -> bool:
    return steps_done(workdir) >= target and (not inside_a_save or any((workdir / 'checkpoints').glob('*tmp*')))


@pytest.fixture(scope='module')
def undisturbed(root: pathlib.Path, tmp_path_factory: pytest.TempPathFactory):
    workdir = tmp_path_factory.mktemp('runs') / 'undisturbed'
    finish(workdir, root)
    return result(workdir)


def same(a, b) -> None:
    import jax

    for one, other in zip(jax.tree.leaves(a[0]), jax.tree.leaves(b[0]), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    assert a[1] == b[1]
    assert a[2] == b[2]


def kill_and_compare(kills: int, root: pathlib.Path, workdir: pathlib.Path, undisturbed, seed: int) -> None:
    draw, done = random.Random(seed), 0
    for kill in range(kills):
        process, before = start(workdir, root), steps_done(workdir)
        inside_a_save = kill % 3 == 2
        target = before + draw.randint(1, max(1, (STEPS - 40) // kills))
        done += kill_when(process, lambda: _ready(workdir, target, inside_a_save))  # noqa: B023 - called before the next turn
        process.stderr.close()  # type: ignore[union-attr]
    assert done >= (kills + 1) // 2, 'too few processes were caught alive for this test to mean anything'
    finish(workdir, root)
    same(undisturbed, result(workdir))


def test_three_kills(root, tmp_path, undisturbed):
    kill_and_compare(3, root, tmp_path / 'killed', undisturbed, seed=0)


@pytest.mark.full
def test_fifty_kills(root, tmp_path, undisturbed):
    kill_and_compare(50, root, tmp_path / 'killed', undisturbed, seed=1)


@pytest.mark.parametrize('number', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.full)])
def test_signal_saves_and_exits_75_and_the_next_start_goes_on(root, tmp_path, undisturbed, number):
    workdir = tmp_path / 'asked'
    process = start(workdir, root)
    deadline = time.monotonic() + 120
    while steps_done(workdir) < 33 and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert 'checkpoint written' in errors
    finish(workdir, root)
    same(undisturbed, result(workdir))
