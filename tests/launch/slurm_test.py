"""Jobs under a real Slurm of two nodes: preemption, requeue and resume end as an undisturbed run; failures are counted; code is a snapshot."""

import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from lmx.launch import slurm, snapshot
from lmx.types import BadInput
from tests.launch import cluster

STEPS = 60
CONFIG = f'--config=tests/tiny.py:steps={STEPS},dropout=0.0'
LMX = [sys.executable, '-m', 'lmx.cli']


@pytest.fixture(scope='module')
def nodes(tmp_path_factory):
    reason = cluster.missing()
    if reason:
        pytest.skip(f'no Slurm: {reason}')
    with cluster.slurm(tmp_path_factory.mktemp('slurm')):
        yield


def submit(root: pathlib.Path, workdir: pathlib.Path, *args: str, config: str = CONFIG) -> int:
    launch = [
        *LMX,
        'launch',
        'slurm',
        '--nodes=2',
        '--partition=low',
        '--setup=ulimit -c 0',
        *args,
        '--',
        'train',
        config,
        f'--workdir={workdir}',
    ]
    done = subprocess.run(launch, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[2].rstrip(';'))


def lines(workdir: pathlib.Path) -> list[dict]:
    path = workdir / 'metrics.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith('}')] if path.exists() else []


def output(workdir: pathlib.Path) -> str:
    return '\n'.join(path.read_text() for path in sorted((workdir / 'logs').glob('*.out')))


def wait(ready, workdir: pathlib.Path, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, output(workdir)
        time.sleep(0.05)


@pytest.mark.slurm
def test_a_preempted_job_of_two_nodes_ends_as_one_that_was_not(root, tmp_path, nodes):
    workdir = tmp_path / 'run'
    job = submit(root, workdir)
    wait(lambda: len(lines(workdir)) >= 12 or cluster.state(job) == 'FAILED', workdir)
    urgent = ['sbatch', '--parsable', '--partition=high', '--nodes=2', f'--output={tmp_path}/urgent.out', '--wrap', 'sleep 1']
    subprocess.run(urgent, check=True, capture_output=True)
    wait(lambda: cluster.state(job) in ('COMPLETED', 'FAILED'), workdir)
    assert cluster.state(job) == 'COMPLETED', output(workdir)
    assert cluster.restarts(job) >= 1
    told = output(workdir)
    assert 'of 2 processes' in told
    assert 'checkpoint written' in told
    assert 'resuming at step' in told
    alone = tmp_path / 'alone'
    subprocess.run([*LMX, 'train', CONFIG, '--config.cpu_devices=2', f'--workdir={alone}'], cwd=root, check=True, capture_output=True)
    found, expected = lines(workdir), lines(alone)
    assert [line['batch_hash'] for line in found] == [line['batch_hash'] for line in expected]
    losses = ([line['loss'] for line in side] for side in (found, expected))
    np.testing.assert_allclose(*losses, rtol=1e-6)  # two devices either way: the sums come in the same order
    assert (workdir / 'code').is_dir()


@pytest.mark.slurm
def test_bad_input_is_not_queued_again_and_failures_are_counted(root, tmp_path, nodes):
    job = submit(root, tmp_path / 'bad', '--tasks_per_node=1', config='--config=tests/tiny.py:steps=-1')
    wait(lambda: cluster.state(job) == 'FAILED', tmp_path / 'bad')
    assert cluster.restarts(job) == 0
    assert 'steps -1 must be a whole number' in output(tmp_path / 'bad')
    job = submit(root, tmp_path / 'broken', '--restarts=1', '--setup=srun() { return 9; }', '--nosnapshot')
    wait(lambda: cluster.state(job) == 'FAILED', tmp_path / 'broken')
    assert cluster.restarts(job) == 1


def test_the_script_says_what_was_asked(tmp_path):
    folder, workdir = tmp_path / 'a folder', tmp_path / 'run'
    options = {'partition': 'a100', 'time': '12:00:00', 'cpus_per_task': '4'}
    asked = {'nodes': 2, 'gpus_per_node': 8, 'setup': ['module load cuda'], 'container': 'image.sqsh', 'options': options}
    text = slurm.script(['train', '--config=a b.py'], workdir=workdir, folder=folder, **asked)
    for line in ('--nodes=2', '--ntasks-per-node=8', '--gpus-per-node=8', '--partition=a100', '--time=12:00:00', '--cpus-per-task=4'):
        assert f'#SBATCH {line}\n' in text
    assert '\nmodule load cuda\n' in text
    assert '--container-image=image.sqsh' in text
    assert f"cd '{folder}' || exit 1" in text
    assert "'--config=a b.py'" in text
    subprocess.run(['bash', '-n'], input=text, text=True, check=True)


@pytest.mark.parametrize(
    ('asked', 'says'),
    [({'nodes': 0}, '--nodes=0 must be at least 1'), ({'options': {'priority': '1'}}, "sbatch option 'priority' is not among account")],
)
def test_scripts_that_cannot_be(tmp_path, asked, says):
    with pytest.raises(BadInput, match=says):
        slurm.script(['train'], workdir=tmp_path, folder=tmp_path, **asked)


def test_without_sbatch(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', '')
    with pytest.raises(BadInput, match='there is no `sbatch` here'):
        slurm.submit('#!/bin/bash\n', tmp_path)


def test_a_snapshot_is_what_the_folder_holds_now(tmp_path):
    root = tmp_path / 'tree'
    (root / 'sub').mkdir(parents=True)
    for name, text in {'a.py': 'old', 'sub/b.py': 'b', '.gitignore': 'runs\n'}.items():
        (root / name).write_text(text)

    def git(*args: str) -> None:
        subprocess.run(['git', '-C', str(root), '-c', 'user.name=t', '-c', 'user.email=t@t', *args], check=True, capture_output=True)

    with pytest.raises(BadInput, match='in no git repository'):
        snapshot.take(root, tmp_path / 'code')
    git('init')
    git('add', '.')
    git('commit', '-m', 'first')
    (root / 'a.py').write_text('new')
    (root / 'untracked.py').write_text('u')
    (root / 'runs').mkdir()
    (root / 'runs' / 'big').write_text('x')
    made = snapshot.take(root / 'sub', tmp_path / 'code')
    assert made.name == 'sub'
    files = sorted(str(path.relative_to(made.parent)) for path in made.parent.rglob('*') if path.is_file())
    assert files == ['.gitignore', 'SNAPSHOT', 'a.py', 'sub/b.py', 'untracked.py']
    assert (made.parent / 'a.py').read_text() == 'new'
    assert '-old\n' in (made.parent / 'SNAPSHOT').read_text()
    assert snapshot.take(root / 'sub', tmp_path / 'code') == made
    (root / 'a.py').write_text('newer')
    other = snapshot.take(root / 'sub', tmp_path / 'code')
    assert other != made
    assert (made.parent / 'a.py').read_text() == 'new'
