"""A run leaves as a Hugging Face directory and comes back as a run, and says the same in both places."""

import json

import numpy as np
import pytest

from lmx import run
from lmx.run.config import load
from lmx.spec import spec
from lmx.train import init
from lmx.types import BadInput
from tests.run.cli_test import call, refused

ALLOW = ('tests',)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp('runs') / 'tiny'
    run.train(load('tests/tiny.py:steps=20,ema=0.5'), path)
    return path


@pytest.fixture(scope='module')
def exported(trained, tmp_path_factory):
    target = tmp_path_factory.mktemp('hf') / 'model'
    assert 'transformers.GPT2LMHeadModel' in run.export_model(trained, target)
    return target


@pytest.fixture(scope='module')
def imported(exported, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('runs') / 'imported'
    report = run.import_model(exported, workdir, config='tests/tiny.py')
    assert 'decoder/blocks/attention/key/kernel [2, 16, 16] <- transformer.h.{}.attn.c_attn.weight, part 2 of 3' in report
    return workdir


def greedy(workdir):
    from lmx.train.workdir import read_config

    config = read_config(workdir)
    with config.unlocked(), config.ignore_type():
        config.task.temperature = 0.0
    return [made['continuation'] for made in run.predict(workdir, ['1+2=', '55+41'], config=config, allow=ALLOW)]


def test_the_same_parameters_predictions_and_evaluation(trained, imported):
    import jax

    jax.tree.map(np.testing.assert_array_equal, init.read_params(str(imported)), init.read_params(str(trained)))
    assert greedy(imported) == greedy(trained)
    there, back = run.evaluate(trained, allow=ALLOW), run.evaluate(imported, allow=ALLOW)
    assert back['validation']['loss'] == pytest.approx(there['validation']['loss'], rel=1e-6)  # two compilations
    assert json.loads((imported / 'huggingface.json').read_text())['config']['model_type'] == 'gpt2'


@pytest.mark.parity
def test_transformers_says_the_same(trained, exported):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    model = transformers.AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    ids = torch.tensor([tokenizer('1+2=')['input_ids']])
    made = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert tokenizer.decode(made) == greedy(trained)[0]


def test_a_new_run_starts_from_an_imported_model(imported, tmp_path, capsys):
    config = load('tests/tiny.py:steps=1')
    with config.unlocked(), config.ignore_type():
        config.init = spec(init.run, workdir=str(imported))
    run.train(config, tmp_path)
    assert '0 fresh, 0 of the source unused' in capsys.readouterr().err


def test_out_and_in_again_is_bitwise(imported, tmp_path):
    run.export_model(imported, tmp_path / 'again')
    run.import_model(tmp_path / 'again', tmp_path / 'run')
    assert (tmp_path / 'run' / 'params.safetensors').read_bytes() == (imported / 'params.safetensors').read_bytes()


def test_the_commands(exported, tmp_path, capsys):
    workdir = f'--workdir={tmp_path / "w"}'
    code, out, err = call(capsys, 'import', f'--from={exported}', workdir)
    assert code == 0, err
    assert '7,184 numbers, for lmx.tasks.language_modelling' in out
    assert call(capsys, 'predict', workdir, '--input=1+2=', '--max_tokens=3')[0] == 0
    assert 'bfloat16' in call(capsys, 'export', workdir, f'--to={tmp_path / "out"}', '--dtype=bfloat16')[1]


@pytest.mark.parametrize(
    ('args', 'says'),
    [
        (('import', '--workdir=w'), 'give --from=DIR'),
        (('import', '--from=./nowhere', '--workdir=w'), 'is no folder'),
        (('import', '--from={exported}', '--workdir={trained}'), 'holds a run'),
        (('import', '--from={exported}', '--workdir={tmp}/w', '--task=translation_'), "there is no task 'translation_'"),
        (('import', '--from={exported}/..', '--workdir={tmp}/w'), 'holds no config.json'),
        (('export', '--workdir={trained}', '--to={exported}'), 'is not empty; give a new --to'),
        (('export', '--workdir={trained}', '--to={tmp}/out', '--checkpoint=99'), "no checkpoint '99'"),
    ],
)
def test_bad_input_is_one_line(trained, exported, tmp_path, capsys, args, says):
    assert says in refused(capsys, *(arg.format(trained=trained, exported=exported, tmp=tmp_path) for arg in args))


def test_what_transformers_does_not_have_is_refused(tmp_path):
    config = load('tests/tiny.py:steps=1')
    with config.unlocked(), config.ignore_type():
        config.model.positions = spec('lmx.nn.positions:Rotary')
    run.train(config, tmp_path / 'rotary')
    with pytest.raises(BadInput, match=r'model.positions.* which gpt2 of transformers does not have'):
        run.export_model(tmp_path / 'rotary', tmp_path / 'out')
