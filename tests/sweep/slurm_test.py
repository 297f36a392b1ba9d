"""A sweep by a real Slurm of two nodes: an array shares the trainings, one job of it is preempted, the last job does what is left."""

import pathlib
import subprocess
import sys
import time

import pytest

from lmx import run, study
from lmx.study import LogUniform, Search, Study
from lmx.sweep import slurm
from lmx.sweep.folder import Folder
from lmx.types import BadInput
from tests.launch import cluster
from tests.sweep.worker import PEAK

POINTS = [*study.grid({PEAK: (1e-3, 2e-3, 3e-3)}), {'model.num_heads': 3}]


def begun(path: pathlib.Path, points=POINTS, config: str = 'steps=300') -> Folder:
    base = run.load(f'tests/tiny.py:{config}')
    base.every = {'log': 1, 'evaluate': 50, 'checkpoint': 50}
    folder = Folder(path, Study(base, points=points))
    folder.record()
    return folder


@pytest.fixture(scope='module')
def nodes(tmp_path_factory):
    reason = cluster.missing()
    if reason:
        pytest.skip(f'no Slurm: {reason}')
    with cluster.slurm(tmp_path_factory.mktemp('slurm')):
        yield


def output(folder: Folder) -> str:
    files = [*sorted((folder.path / 'logs').glob('*')), *sorted(folder.path.glob('trials/*/train.log'))]
    return '\n'.join(f'{path.name}: {path.read_text()}' for path in files)


def wait(ready, folder: Folder, seconds: float = 500) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, output(folder)
        time.sleep(0.1)


@pytest.mark.slurm
def test_an_array_shares_the_trainings_and_the_last_job_does_what_is_left(root, tmp_path, nodes, monkeypatch):
    monkeypatch.chdir(root)
    folder = begun(tmp_path / 'sweep')
    ids = slurm.submit(folder, array=2, options={'partition': 'low'}, setup=['ulimit -c 0'])
    jobs = [f'{ids["array"]}_{index}' for index in range(2)]
    first = folder.folder(folder.trials()[0])
    wait(lambda: folder.row(folder.trials()[0]).step >= 10, folder)
    held = next(node for node in ('n0', 'n1') if node in ' '.join(cluster.shown(jobs[0])))
    urgent = ['sbatch', '--parsable', '--partition=high', f'--nodelist={held}', f'--output={tmp_path}/urgent.out', '--wrap', 'sleep 1']
    subprocess.run(urgent, check=True, capture_output=True)
    wait(lambda: cluster.state(ids['last']) in ('COMPLETED', 'FAILED'), folder)
    assert [cluster.state(job) for job in jobs] == ['COMPLETED'] * 2, output(folder)
    assert [cluster.restarts(job) for job in jobs] == [1, 0]
    assert [row.state for row in folder.rows()] == ['done'] * 3 + ['failed'], output(folder)
    assert 'resuming at step' in (first / 'train.log').read_text()
    tries = [row.path / 'train.log' for row in folder.rows()]
    assert tries[3].read_text().count(folder.rows()[3].why) == 2  # by the array, and by the last job
    assert 'resuming' not in tries[1].read_text()
    assert (folder.path / 'code').is_dir()


@pytest.mark.full
@pytest.mark.slurm
def test_every_job_of_an_array_trains_a_population(root, tmp_path, nodes, monkeypatch):
    monkeypatch.chdir(root)
    folder = begun(tmp_path / 'sweep', study.grid({PEAK: (1e-3, 2e-3, 3e-3, 4e-3)}), config='steps=4')
    ids = slurm.submit(folder, array=2, executor='vmap', options={'partition': 'high'}, setup=['ulimit -c 0'])
    wait(lambda: cluster.state(ids['last']) in ('COMPLETED', 'FAILED'), folder)
    assert [row.state for row in folder.rows()] == ['done'] * 4, output(folder)
    assert output(folder).count('2 training(s) of 4 updates in 2 slots') == 2, output(folder)
    assert not list(folder.path.glob('trials/*/train.log'))  # no training had a process of its own


def test_the_scripts_say_what_was_asked(tmp_path):
    folder = begun(tmp_path / 'a sweep')
    asked = {'at_once': 2, 'gpus_per_node': 4, 'options': {'time': '1:00:00'}, 'arguments': ['--jobs=4'], 'setup': ['module load cuda']}
    texts = slurm.scripts(folder, code=tmp_path, array=3, **asked)
    for text in texts.values():
        for line in ('--ntasks-per-node=1', '--gpus-per-node=4', '--time=1:00:00', '--requeue'):
            assert f'#SBATCH {line}\n' in text
        assert '\nmodule load cuda\n' in text
        assert f"-m lmx.cli sweep '--workdir={folder.path}' --executor=local --jobs=4" in text
        subprocess.run(['bash', '-n'], input=text, text=True, check=True)
    assert '#SBATCH --array=0-2%2\n' in texts['array']
    assert '--jobs=4 --part=$SLURM_ARRAY_TASK_ID/3 &' in texts['array']
    assert 'scontrol requeue ${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}' in texts['array']
    assert '--part' not in texts['last']
    assert 'scontrol requeue $SLURM_JOB_ID' in texts['last']


def test_no_job_is_without_a_training(tmp_path):
    space = {PEAK: LogUniform(1e-4, 1e-2)}
    for name, points, count in (('listed', POINTS, 4), ('search', Search(space, trials=5), 5)):
        folder = begun(tmp_path / name, points)
        text = slurm.scripts(folder, code=tmp_path, array=100, executor='vmap')['array']
        assert f'#SBATCH --array=0-{count - 1}%{count}\n' in text
        assert f'--executor=vmap --part=$SLURM_ARRAY_TASK_ID/{count} &' in text


def test_a_dry_run_writes_nothing(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    folder = begun(tmp_path / 'sweep')
    text = slurm.dry_run(folder, array=2)
    assert text.count('#!/bin/bash\n') == 2
    assert f'cd {folder.path}/code/' in text
    assert sys.executable in text
    assert [path.name for path in folder.path.iterdir()] == ['study.json']


@pytest.mark.parametrize(
    ('asked', 'says'),
    [
        ({'executor': 'slurm'}, "--inner='slurm' must be one of local, vmap"),
        ({'array': 0}, '--array=0 must be at least 1'),
        ({'at_once': 0}, 'jobs at a time=0 must be at least 1'),
        ({'options': {'priority': '1'}}, "sbatch option 'priority' is not among account"),
    ],
)
def test_sweeps_that_cannot_be(tmp_path, asked, says):
    with pytest.raises(BadInput, match=says):
        slurm.scripts(begun(tmp_path), code=tmp_path, **{'array': 2, **asked})
