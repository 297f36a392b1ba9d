"""The command line: what good input prints, and that bad input is one line on stderr, exit code 2, and nothing lost."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from lmx import cli


def lmx(*args: str, cwd: pathlib.Path, timeout: float = 200, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', 'lmx.cli', *args], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=timeout
    )


def call(capsys, *args: str) -> tuple[int, str, str]:
    """The command in this process: (exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as end:
        cli.main(['lmx', *args])
    out = capsys.readouterr()
    return int(end.value.code or 0), out.out, out.err


def refused(capsys, *args: str) -> str:
    code, _, err = call(capsys, *args)
    lines = [line for line in err.splitlines() if line.startswith('lmx: ')]
    assert code == 2, err
    assert len(lines) == 1
    assert 'Traceback' not in err
    return lines[0]


@pytest.fixture(scope='module')
def trained(root: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp('runs') / 'tiny'
    done = lmx('train', '--config=tests/tiny.py', f'--workdir={workdir}', "--config.samples=('1+1=',)", cwd=root)
    assert done.returncode == 0, done.stderr
    assert 'validation: loss' in done.stdout
    assert 'a continuation of' in done.stdout
    assert str(workdir / 'report.html') in done.stdout
    return workdir


@pytest.fixture(autouse=True)
def in_root(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


def test_a_run_leaves_what_the_contract_says(trained):
    for name in ('config.json', 'provenance.json', 'metrics.jsonl', 'eval.jsonl', 'tokenizer.json', 'report.html', 'samples.jsonl'):
        assert (trained / name).stat().st_size > 0, name
    assert sorted(p.name for p in (trained / 'checkpoints').iterdir() if p.name.isdigit())
    line = json.loads((trained / 'metrics.jsonl').read_text().splitlines()[0])
    assert {'step', 'split', 'loss', 'tokens_per_second', 'step_seconds', 'batch_hash', 'learning_rate', 'grad_norm'} <= set(line)


def test_data_rebuilds_the_batch_that_was_logged(trained, capsys):
    line = json.loads((trained / 'metrics.jsonl').read_text().splitlines()[16])
    code, out, _ = call(capsys, 'data', f'--workdir={trained}', f'--step={line["step"]}')
    assert code == 0
    assert f'batch_hash {line["batch_hash"]}' in out


def test_data_shows_stages_and_padding(capsys):
    code, out, _ = call(capsys, 'data', '--config=tests/tiny.py')
    assert code == 0
    for word in ('train', 'validation', 'records   200', 'inputs [24] int32', 'padding', 'example'):
        assert word in out


def test_data_shows_what_each_cleaning_step_leaves():
    from lmx import run
    from lmx.data import transforms
    from lmx.spec import finish, spec

    config = run.load('tests/tiny.py')
    with config.unlocked(), config.ignore_type():
        steps = (spec(transforms.deduplicate), spec(transforms.length, max_chars=8))
        config.data.train = spec(transforms.apply, source=spec('tests.tiny:records', split='train'), steps=steps)
    out = run.data(finish(config))
    assert '  source    200\n  cleaned   ' in out
    assert 'after deduplicate' in out
    assert 'after length' in out


def test_evaluate_equals_the_last_evaluation_of_training(trained, capsys):
    code, out, _ = call(capsys, 'evaluate', f'--workdir={trained}', '--allow_import=tests')
    lines = [json.loads(line) for line in (trained / 'eval.jsonl').read_text().splitlines()]
    assert code == 0
    assert 'bits_per_byte' in out
    assert lines[-1]['checkpoint'] == 'last'
    # Another process compiled the same program; equal to float32 rounding in case its fusions differ.
    assert lines[-1]['loss'] == pytest.approx(next(line for line in lines if line['step'] == 40)['loss'], rel=1e-6)


@pytest.mark.parametrize('which', ['best', '35', 'average:3'])
def test_evaluate_other_checkpoints(trained, capsys, which):
    code, out, err = call(capsys, 'evaluate', f'--workdir={trained}', f'--checkpoint={which}', '--allow_import=tests')
    assert code == 0, err
    assert 'validation: loss' in out


def test_predict_streams_what_it_returns(trained, capsys):
    _, streamed, _ = call(capsys, 'predict', f'--workdir={trained}', '--input=1+2=', '--temperature=0', '--allow_import=tests')
    from lmx.run.predict import predict
    from lmx.train.workdir import read_config

    config = read_config(trained)
    with config.unlocked(), config.ignore_type():
        config.task.temperature = 0.0
    (made,) = predict(trained, '1+2=', config=config, allow=('tests',))
    assert streamed == '1+2=' + made['continuation'] + '\n'
    assert made['tokens'] == 12


def test_predict_many_keeps_the_order_and_does_not_depend_on_the_batch(trained, tmp_path, capsys):
    prompts = ['1+2=', '55+41=', '7+7', '9']
    (tmp_path / 'prompts.jsonl').write_text(''.join(json.dumps({'text': prompt}) + '\n' for prompt in prompts))
    outputs = []
    for size in (1, 4):
        path = tmp_path / f'{size}.jsonl'
        args = (f'--inputs={tmp_path / "prompts.jsonl"}', f'--output={path}', f'--batch_size={size}', '--allow_import=tests')
        assert call(capsys, 'predict', f'--workdir={trained}', *args)[0] == 0
        outputs.append([json.loads(line) for line in path.read_text().splitlines()])
    assert [line['input']['text'] for line in outputs[0]] == prompts
    assert [line['continuation'] for line in outputs[0]] == [line['continuation'] for line in outputs[1]]
    assert 'exists' in refused(capsys, 'predict', f'--workdir={trained}', *args)


def test_predict_stops_at_a_stop_string(trained, capsys):
    args = ('--input=1+2=', '--temperature=0', '--stop=\n', '--allow_import=tests')
    _, out, _ = call(capsys, 'predict', f'--workdir={trained}', *args)
    assert out.count('\n') == 1


def test_tensorboard_shows_what_was_logged(trained):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator', reason='needs lmx[test]')
    events = accumulator.EventAccumulator(str(trained / 'tensorboard')).Reload()
    lines = [json.loads(line) for line in (trained / 'metrics.jsonl').read_text().splitlines()]
    assert [event.step for event in events.Scalars('train/loss')] == [line['step'] for line in lines]
    assert [event.value for event in events.Scalars('train/loss')] == pytest.approx([line['loss'] for line in lines])
    assert events.Scalars('validation/bits_per_byte')


def test_a_profile_is_written(root, tmp_path):
    done = lmx('train', '--config=tests/tiny.py:steps=6', f'--workdir={tmp_path / "run"}', '--profile=2:4', cwd=root)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / 'run' / 'profile').rglob('*.pb'))


def test_explain_says_who_set_a_value(capsys):
    base = ('explain', '--config=tests/tiny.py:steps=7')
    assert "set by the argument 'steps=7'" in call(capsys, *base, 'steps')[1]
    assert 'model.dim = 16, set by the file' in call(capsys, *base, 'model.dim')[1]
    assert 'set by the flag' in call(capsys, *base, '--config.model.dim=32', 'model.dim')[1]
    assert 'set by the default of lmx.models.gpt:gpt' in call(capsys, *base, 'model.tied')[1]


def test_diff(trained, capsys):
    _, out, _ = call(capsys, 'diff', 'tests/tiny.py:steps=7', str(trained))
    assert 'steps' in out
    assert '7 -> 40' in out


def test_runs_lists_the_run(trained, capsys):
    assert 'tiny' in call(capsys, 'runs', str(trained.parent))[1]


def test_help_of_every_command(capsys):
    assert all(command in call(capsys, '--help')[1] for command in cli.COMMANDS)
    for command in cli.COMMANDS:
        code, out, _ = call(capsys, command, '--help')
        assert code == 0
        assert out.startswith(f'lmx {command}: ')


def test_help_loads_no_heavy_library(root):
    check = (
        'import sys, lmx, lmx.cli; sys.exit(any(m in sys.modules for m in ("jax", "tensorflow_datasets", "matplotlib", "grain", "torch")))'
    )
    assert subprocess.run([sys.executable, '-c', check], cwd=root).returncode == 0


TRAIN = ('train', '--config=tests/tiny.py')


@pytest.mark.parametrize(
    ('args', 'says'),
    [
        (('trian',), "did you mean 'train'"),
        ((*TRAIN, '--wrokdir=x'), 'workdir'),
        ((*TRAIN, '--config.model.dmi=3'), "did you mean 'dim'"),
        ((*TRAIN, '--config.modle.dim=3'), "did you mean 'model'"),
        ((*TRAIN, '--config.steps=many'), 'many'),
        (('train', '--config=tests/tini.py'), "did you mean 'tests/tiny.py'"),
        (('train', '--config=tests/tiny.py:stesp=3'), "did you mean 'steps'"),
        (('train',), 'holds no run'),
        ((*TRAIN, '--config.batch_size=30', '--config.cpu_devices=1', '--config.accumulate=4'), 'try 28 or 32'),
        ((*TRAIN, '--config.mesh.data=3'), 'does not multiply to'),
        ((*TRAIN, "--config.mesh={'dta': 1}"), 'mesh'),
        ((*TRAIN, "--config.rules=(('embed', ()),)"), 'no sharding rule matches'),
        ((*TRAIN, '--config.optim.frozen=nothing'), 'nothing'),
        ((*TRAIN, '--config.model.vocab_size=5'), 'model.vocab_size 5 is smaller than the 13 ids'),
        ((*TRAIN, '--config.model.num_heads=3'), 'num_heads 3'),
        ((*TRAIN, '--config.model.remat=some'), "remat 'some'"),
        ((*TRAIN, '--config.nonfinite=maybe'), 'must be stop or skip'),
        ((*TRAIN, '--profile=5:2'), 'FROM:TO'),
        ((*TRAIN, '--config.wandb=project'), 'lmx[wandb]'),
        (('evaluate', '--workdir=nowhere'), 'holds no run'),
        (('predict', '--workdir=nowhere', '--input=a', '--inputs=b'), 'either'),
        (('explain', '--config=tests/tiny.py', 'model.dmi'), "did you mean 'dim'"),
        (('data', '--config=tests/tiny.py', '--step=0'), 'count from 1'),
    ],
)
def test_bad_input(capsys, tmp_path, args, says):
    if args[0] == 'train':
        args = (*args, f'--workdir={tmp_path / "run"}')
    assert says in refused(capsys, *args)
    left = list((tmp_path / 'run').glob('*')) if (tmp_path / 'run').exists() else []
    assert not any(path.name == 'config.json' for path in left)


@pytest.mark.parametrize(
    ('args', 'says'),
    [
        (('--input=', '--allow_import=tests'), 'the prompt is empty'),
        (('--input=' + '1' * 30, '--allow_import=tests'), 'reads at most 23'),
        (('--input=xyz', '--allow_import=tests'), "'x'"),
        (('--inputs=nowhere.jsonl', '--allow_import=tests'), 'there is no file'),
        (('--input=1', '--checkpoint=3', '--allow_import=tests'), 'no checkpoint'),
        (('--input=1', '--checkpoint=average:9', '--allow_import=tests'), 'needs 9 checkpoints'),
    ],
)
def test_bad_predictions(capsys, trained, args, says):
    assert says in refused(capsys, 'predict', f'--workdir={trained}', *args)


def test_code_that_a_found_config_names_is_not_run_unasked(capsys, trained):
    assert '--allow_import=' in refused(capsys, 'evaluate', f'--workdir={trained}')
    assert call(capsys, 'predict', f'--workdir={trained}', '--input=1+2=')[0] == 0  # needs neither its data nor its tokenizer's source


def test_a_workdir_of_another_config_is_refused_and_untouched(trained, capsys):
    before = {path: path.read_bytes() for path in trained.rglob('*') if path.is_file() and path.name != '.lock'}
    line = refused(capsys, *TRAIN, f'--workdir={trained}', '--config.model.dim=32', '--config.seed=1')
    assert 'model.dim 16 -> 32' in line
    assert 'seed 0 -> 1' in line
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_folder_with_other_files_is_refused(tmp_path, capsys):
    (tmp_path / 'thesis.tex').write_text('years of work')
    assert 'holds no run' in refused(capsys, *TRAIN, f'--workdir={tmp_path}')
    assert (tmp_path / 'thesis.tex').read_text() == 'years of work'


def test_a_locked_workdir_names_its_holder(tmp_path, capsys):
    from lmx.run.config import load
    from lmx.train.workdir import Workdir

    held = Workdir(tmp_path / 'run', load('tests/tiny.py'))
    assert f'in use by process {os.getpid()}' in refused(capsys, *TRAIN, f'--workdir={tmp_path / "run"}')
    held.close()


def test_more_steps_go_on_in_the_same_workdir(root, tmp_path):
    for steps in (10, 20):
        done = lmx(*TRAIN, f'--workdir={tmp_path / "run"}', f'--config.steps={steps}', cwd=root)
        assert done.returncode == 0, done.stderr
    assert 'resuming at step 10 of 20' in done.stderr
    assert [json.loads(line)['step'] for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()] == list(range(1, 21))


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(root, tmp_path):
    workdir = tmp_path / 'run'
    assert lmx('train', '--config=tests/tiny.py:steps=20', f'--workdir={workdir}', cwd=root).returncode == 0
    largest = max((workdir / 'checkpoints' / '20').rglob('*'), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))
    done = lmx('train', '--config=tests/tiny.py:steps=20', f'--workdir={workdir}', cwd=root)
    assert done.returncode == 0, done.stderr
    assert 'checkpoint 20 is damaged' in done.stderr
    assert 'resuming at step 15 of 20' in done.stderr
    assert (workdir / 'damaged' / '20').is_dir()
    assert (workdir / 'checkpoints' / '20').is_dir()


def test_a_full_disk_leaves_the_last_checkpoint_good(root, tmp_path):
    mounted = tmp_path / 'small'
    mounted.mkdir()
    if os.geteuid() or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=700k', 'tmpfs', str(mounted)], capture_output=True).returncode:
        pytest.skip('needs the right to mount a small file system')
    try:
        workdir = mounted / 'run'
        done = lmx(*TRAIN, f'--workdir={workdir}', '--config.keep.last=50', '--config.steps=60', cwd=root)
        lines = [line for line in done.stderr.splitlines() if line.startswith('lmx: ')]
        assert done.returncode == 2, done.stderr
        assert len(lines) == 1
        assert 'No space left' in lines[0]
        subprocess.run(['mount', '-o', 'remount,size=40m', str(mounted)], check=True)
        done = lmx(*TRAIN, f'--workdir={workdir}', '--config.keep.last=50', '--config.steps=60', cwd=root)
        assert done.returncode == 0, done.stderr
        assert 'resuming at step' in done.stderr
    finally:
        subprocess.run(['umount', str(mounted)], check=True)
