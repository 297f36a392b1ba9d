"""Jobs of several processes, for real: the same batches and losses as one process, preemption, restarts, other numbers of processes."""

import concurrent.futures
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from lmx.train import hosts
from lmx.types import BadInput

STEPS = 40


def command(workdir: pathlib.Path, *args: str, processes: int = 2, restarts: int = 0) -> list[str]:
    launch = ['launch', 'local', f'--processes={processes}', f'--restarts={restarts}', '--']
    train = ['train', f'--config=tests/tiny.py:steps={STEPS},dropout=0.0', f'--workdir={workdir}', *args]
    return [sys.executable, '-m', 'lmx.cli', *(launch if processes > 1 else []), *train]


def start(root: pathlib.Path, argv: list[str]) -> subprocess.Popen:
    return subprocess.Popen(argv, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


def lines(workdir: pathlib.Path) -> list[dict]:
    path = workdir / 'metrics.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith('}')] if path.exists() else []


def child(launcher: subprocess.Popen, index: int) -> int:
    """The process id of one process of the job."""
    for name in os.listdir('/proc'):
        if name.isdigit():
            try:
                words = pathlib.Path(f'/proc/{name}/cmdline').read_text().split('\0')
                parent = pathlib.Path(f'/proc/{name}/stat').read_text().rpartition(')')[2].split()[1]
            except OSError:
                continue
            if parent == str(launcher.pid) and words[-3:-1] == ['--process', str(index)]:
                return int(name)
    raise AssertionError(f'no process {index}')


def wait_for(launcher: subprocess.Popen, workdir: pathlib.Path, steps: int) -> None:
    deadline = time.monotonic() + 200
    while len(lines(workdir)) < steps:
        assert launcher.poll() is None, launcher.stderr.read()  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope='module')
def alone(root, tmp_path_factory):
    """Of one process with two devices."""
    workdir = tmp_path_factory.mktemp('alone') / 'run'
    finish(start(root, command(workdir, '--config.cpu_devices=2', processes=1)))
    return lines(workdir)


def same(found: list[dict], expected: list[dict], rtol: float) -> None:
    assert [line['batch_hash'] for line in found] == [line['batch_hash'] for line in expected]
    np.testing.assert_allclose([line['loss'] for line in found], [line['loss'] for line in expected], rtol=rtol)


def test_a_process_that_is_killed_takes_the_job_with_it_and_all_start_again(root, tmp_path, alone):
    launcher = start(root, command(tmp_path / 'run', restarts=1))
    wait_for(launcher, tmp_path / 'run', 20)
    os.kill(child(launcher, 1), signal.SIGKILL)
    errors = finish(launcher)
    assert 'restart 1 of 1' in errors
    assert 'resuming at step' in errors
    for line in lines(tmp_path / 'run'):
        assert line['step_seconds_min'] <= line['step_seconds_max']
        assert line['slowest_process'] in (0, 1)
        assert 0 < line['goodput'] <= 1
    assert lines(tmp_path / 'run')[-1]['goodput'] < 0.9  # starting twice took time
    assert 'Seconds a step' in (tmp_path / 'run' / 'report.html').read_text()
    same(lines(tmp_path / 'run'), alone, rtol=1e-6)  # two devices either way: the sums come in the same order


def test_sigterm_to_one_process_saves_in_all_and_other_processes_go_on(root, tmp_path, alone):
    launcher = start(root, command(tmp_path / 'run'))
    wait_for(launcher, tmp_path / 'run', 12)
    os.kill(child(launcher, 1), signal.SIGTERM)
    _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 75, errors
    done = lines(tmp_path / 'run')
    assert len(done) < STEPS
    newest = max(int(path.name) for path in (tmp_path / 'run' / 'checkpoints').iterdir() if path.name.isdigit())
    assert newest == len(done)  # nothing that was done is lost
    sharded = ['--config.cpu_devices=2', '--config.mesh.fsdp=2', '--config.mesh.data=1']
    finish(start(root, command(tmp_path / 'run', *sharded, processes=1)))
    same(lines(tmp_path / 'run'), alone, rtol=1e-4)  # forty updates on another mesh, float32


def test_ctrl_c_stops_the_job(root, tmp_path):
    launcher = start(root, command(tmp_path / 'run'))
    wait_for(launcher, tmp_path / 'run', 2)
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 75, errors
    assert 'checkpoint written' in errors


def test_bad_input_is_said_once_and_not_tried_again(root, tmp_path):
    launcher = start(root, command(tmp_path / 'run', '--config.mesh.data=3', restarts=2))
    _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 2, errors
    assert 'does not multiply to 2 devices; take data=2' in errors
    assert 'restart' not in errors


# -- meeting


def port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def meet(*facts: dict | None, timeout: float = 20, processes: int | None = None) -> list[str]:
    """What each process hears; None = it does not come."""
    address = f'127.0.0.1:{port()}'

    def one(index: int) -> str:
        try:
            hosts.meet(hosts.Job('test', address, processes or len(facts), index), facts[index] or {}, timeout)
        except BadInput as error:
            return str(error)
        return ''

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(one, [index for index, fact in enumerate(facts) if fact is not None]))


SAME = {'run': '{"steps": 1}', 'jax': '0.10'}


@pytest.mark.parametrize(
    ('facts', 'says'),
    [
        ((SAME, SAME, SAME), ['', '', '']),
        ((SAME, SAME, {**SAME, 'run': '{"steps": 2}'}), ['process 2 runs another config and process 0 its own']),
        ((SAME, {**SAME, 'jax': '0.11'}), ['process 1 runs jax 0.11 and process 0 0.10']),
    ],
)
def test_processes_compare_what_they_run(facts, says):
    heard = meet(*facts)
    assert [text.partition(';')[0] for text in heard] == says * (len(facts) // len(says))


def test_who_is_missing_is_named():
    assert 'waited 1 s' in (heard := meet(SAME, SAME, None, SAME, timeout=1))[0]
    assert all('process 2 of 4 did not come' in text for text in heard)
    (heard,) = meet(None, SAME, timeout=1)
    assert heard.startswith('process 1 of 2 waited 1 s for the coordinator 127.0.0.1:')
    assert 'Connection refused' in heard


def test_what_is_no_process_of_the_job_is_ignored():
    number = port()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(hosts.meet, hosts.Job('test', f'127.0.0.1:{number}', 2, 0), SAME, 20)
        while not first.done():
            try:
                with socket.create_connection(('127.0.0.1', number), timeout=1) as stranger:
                    stranger.sendall(b'GET / HTTP/1.1\r\n\r\n')
                break
            except OSError:
                time.sleep(0.01)
        hosts.meet(hosts.Job('test', f'127.0.0.1:{number}', 2, 1), SAME, 20)
        assert first.result() is None


@pytest.mark.parametrize(
    ('given', 'says'),
    [
        (('h:1', 2, None), '--process is missing'),
        ((None, None, 1), '--coordinator, --processes is missing'),
        (('h:1', 2, 2), 'give HOST:PORT and 0 <= process < processes'),
        (('h', 2, 0), 'give HOST:PORT'),
    ],
)
def test_flags_that_do_not_go_together(given, says):
    with pytest.raises(BadInput, match=says):
        hosts.find(*given)


def test_alone_is_alone(monkeypatch):
    assert hosts.find() is None
    assert hosts.find('h:1', 1, 0) is None
    monkeypatch.setenv('OMPI_COMM_WORLD_SIZE', '2')
    assert hosts.find() == hosts.Job('Open MPI')
