"""`lmx sweep` as it is typed: a grid with fresh seeds to its report, a search in one program, a kill, bad input."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from lmx import cli
from lmx.sweep.folder import Folder

STUDY = """
from lmx import spec
from lmx.run.config import load
from lmx.study import LogUniform, Search, Study, Uniform, grid

def get_study():
    base = load('tests/tiny.py:steps=12')
    with base.unlocked():
        base.model.num_layers, base.model.dim = 1, 8
        base.every = {'log': 1, 'evaluate': 4, 'checkpoint': 4}
    return Study(spec.finish(base), %s)
"""
GRID = "grid({'optim.schedule.peak': (1e-3, 1e-2)}), fresh_seeds=(7, 8), reported='train/loss'"
SEARCH = "Search({'optim.schedule.peak': LogUniform(1e-4, 1e-1), 'model.dropout_rate': Uniform(0.05, 0.3)}, trials=7, pruner='halving', factor=2)"


def written(tmp_path: pathlib.Path, rest: str) -> str:
    file = tmp_path / 'mine.py'
    file.write_text(STUDY % rest)
    return f'--study={file}'


def lmx(root: pathlib.Path, *args: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, '-m', 'lmx.cli', *args], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def called(capsys, root, monkeypatch, *args: str) -> tuple[int, str, str]:
    monkeypatch.chdir(root)
    with pytest.raises(SystemExit) as end:
        cli.main(['lmx', *args])
    out = capsys.readouterr()
    return int(end.value.code or 0), out.out, out.err


def test_a_grid_that_is_killed_on_the_way_to_its_report(root, tmp_path, capsys, monkeypatch):
    study, place = written(tmp_path, GRID), tmp_path / 'a'
    code, out, _ = called(capsys, root, monkeypatch, 'sweep', study, '--dry_run')
    assert code == 0
    assert 'peak=0.01' in out
    assert '2 trainings (1 seed(s) each and 2 with fresh seeds), 48 updates of 8 examples' in out
    assert 'compiles 1 program(s); its arguments: optim.schedule.peak' in out

    first = lmx(root, 'sweep', study, f'--workdir={place}')
    deadline = time.monotonic() + 300
    while not list(place.glob('trials/*/eval.jsonl')) and time.monotonic() < deadline:
        time.sleep(0.05)
    first.kill()
    first.communicate()
    second = lmx(root, 'sweep', f'--workdir={place}')
    out, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    rows = Folder(place).rows()
    assert [(row.trial.name, row.trial.fresh, row.state) for row in rows[:2]] == [('0000-s0', False, 'done'), ('0001-s0', False, 'done')]
    assert [row.trial.seed for row in rows[2:]] == [7, 8]
    best = min(rows[:2], key=lambda row: row.values['validation/loss']).trial.number
    assert {row.trial.number for row in rows[2:]} == {best}
    values = [row.values['train/loss'] for row in rows[2:]]
    assert f'reported: train/loss {sum(values) / 2:.4f} (' in out
    assert 'note:' not in out
    for name in ('report.html', 'results.csv', 'results.tex', 'results.md'):
        assert (place / name).stat().st_size > 100, name

    code, out, _ = called(capsys, root, monkeypatch, 'sweep', f'--workdir={place}', '--status')
    assert out.startswith('a: 4 done')
    code, out, _ = called(capsys, root, monkeypatch, 'sweep', f'--workdir={place}', '--take=0001-s0', f'--to={tmp_path / "b"}')
    assert out.strip() == f'lmx train --workdir={tmp_path / "b"}'
    assert (tmp_path / 'b' / 'checkpoints' / '12').is_dir()
    script = called(capsys, root, monkeypatch, 'sweep', f'--workdir={place}', '--executor=slurm', '--array=2', '--at_once=1', '--dry_run')
    assert '--array=0-1%1' in script[1]
    assert '--executor=vmap --part=$SLURM_ARRAY_TASK_ID/2' in script[1].replace("'", '')


def test_a_search_in_one_program_prunes_and_goes_on(root, tmp_path):
    study, place = written(tmp_path, SEARCH), tmp_path / 'a'
    first = lmx(root, 'sweep', study, f'--workdir={place}', '--slots=2')
    deadline = time.monotonic() + 300
    while len(list(place.glob('trials/*/eval.jsonl'))) < 3 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    _, err = first.communicate(timeout=300)
    assert first.returncode == 75, err
    second = lmx(root, 'sweep', f'--workdir={place}', '--slots=2')
    out, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    rows = Folder(place).rows()
    assert [row.trial.number for row in rows] == list(range(7))
    assert {row.state for row in rows} == {'done', 'pruned'}
    for row in rows:  # what was pruned has ended at an evaluation, and is still a run's folder
        steps = [json.loads(line)['step'] for line in (row.path / 'metrics.jsonl').read_text().splitlines()]
        assert steps == list(range(1, (12 if row.state == 'done' else steps[-1]) + 1))
        assert steps[-1] % 4 == 0
        assert (row.path / 'checkpoints' / str(steps[-1])).is_dir()
    assert 'note: the value of the winner' in out


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (('sweep',), 'give --study=FILE.py'),
        (('sweep', '--study=nowhere.py'), 'there is no study file'),
        (('sweep', '--study={study}', '--workdir={place}', '--part=2/2'), '--part=2/2 is not I/N with I below N'),
        (('sweep', '--study={study}', '--workdir={place}', '--executor=vamp'), 'vamp'),
        (('sweep', '--study={study}', '--workdir={place}', '--config.optim.schedule.peek=1.0'), "did you mean 'peak'"),
        (('sweep', '--workdir={place}', '--status'), 'holds no sweep'),
    ],
)
def test_bad_input_is_one_line(root, tmp_path, capsys, monkeypatch, arguments, says):
    study = written(tmp_path, GRID).removeprefix('--study=')
    given = [one.format(study=study, place=tmp_path / 'a') for one in arguments]
    code, _, err = called(capsys, root, monkeypatch, *given)
    assert code == 2
    assert says in err
    assert len([line for line in err.splitlines() if line.startswith('lmx: ')]) == 1
    assert not os.path.exists(tmp_path / 'a')
