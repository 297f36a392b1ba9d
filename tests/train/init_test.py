"""Warm starts: what is loaded, fresh and unused; subtrees, renames, EMA; and that nothing is loaded in silence."""

import jax
import numpy as np
import pytest

from lmx import run
from lmx.data import sources
from lmx.run.config import load, start_from
from lmx.spec import spec
from lmx.train import init
from lmx.types import BadInput

pytestmark = pytest.mark.usefixtures('one_device')


@pytest.fixture(scope='module')
def source(tmp_path_factory: pytest.TempPathFactory):
    workdir = tmp_path_factory.mktemp('runs') / 'source'
    config = load('tests/tiny.py:steps=10')
    run.train(config, workdir)
    return workdir


def fresh(source):
    return jax.tree.map(lambda leaf: np.zeros_like(leaf) + 7.0, init.read_params(source, which='raw'))


def device(tree):
    return jax.tree.map(jax.numpy.asarray, tree)


def test_everything_loads_into_the_same_model(source):
    loaded = init.run(workdir=str(source))(device(fresh(source)))
    assert not loaded.fresh
    assert not loaded.unused
    jax.tree.map(np.testing.assert_array_equal, loaded.params, init.read_params(source, which='ema'))


def test_ema_and_raw_parameters_differ_and_both_can_be_had(source):
    raw, ema = init.read_params(source, which='raw'), init.read_params(source, which='ema')
    different = [not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(raw), jax.tree.leaves(ema), strict=True)]
    assert any(different)


def test_average_is_the_mean_of_the_last(source):
    mean = init.read_params(source, 'average:2', which='raw')
    five, ten = (init.read_params(source, step, which='raw') for step in ('5', '10'))
    jax.tree.map(lambda m, a, b: np.testing.assert_allclose(m, (a + b) / 2, rtol=1e-6, atol=1e-7), mean, five, ten)


def test_a_part_under_another_name(source):
    target = {'encoder': device(fresh(source))['decoder']['blocks'], 'head': device(np.zeros(3, np.float32))}
    loaded = init.run(workdir=str(source), take='/blocks/', rename=(('^decoder/blocks/', 'encoder/'),))(target)
    assert loaded.fresh == ['head']
    assert 'warm start:' in str(loaded)
    jax.tree.map(np.testing.assert_array_equal, loaded.params['encoder'], init.read_params(source)['decoder']['blocks'])


def test_misfits_are_errors(source):
    with pytest.raises(BadInput, match='use rename'):
        init.run(workdir=str(source))({'other': device(np.zeros(3, np.float32))})
    wrong = device(fresh(source))
    wrong['embed']['embedding'] = wrong['embed']['embedding'][:-1]
    with pytest.raises(BadInput, match='expected'):
        init.run(workdir=str(source))(wrong)
    with pytest.raises(BadInput, match='holds no run'):
        init.read_params('nowhere')


def test_a_new_run_starts_from_it(source, tmp_path, capsys):
    config = load('tests/tiny.py:steps=1,dropout=0')
    with config.unlocked(), config.ignore_type():
        config.init = spec_of(workdir=str(source), checkpoint='best')
        config.optim.schedule = 0.0
    warm = run.train(config, tmp_path / 'warm')
    assert 'loaded, 0 fresh, 0 of the source unused' in capsys.readouterr().err
    known = run.evaluate(source, checkpoint='best', allow=('tests',))
    # The learning rate is 0 and weight decay is scaled by it: only compilation differs.
    assert warm['validation']['loss'] == pytest.approx(known['validation']['loss'], rel=1e-5)


def spec_of(**kwargs):
    return spec(init.run, **kwargs)


def on(text):
    config = load('tests/tiny.py:steps=1,dropout=0')
    with config.unlocked(), config.ignore_type():
        config.data = {split: spec(sources.in_memory, records=[{'text': text * 40}]) for split in ('train', 'validation')}
    return config


def test_a_run_that_starts_from_another_keeps_its_words(source, tmp_path):
    config = on('1+2=3\n')  # of which a tokenizer of its own would have six ids
    with config.unlocked(), config.ignore_type():
        start_from(config, source)
    run.train(config, tmp_path / 'warm')
    assert (tmp_path / 'warm' / 'tokenizer.json').read_bytes() == (source / 'tokenizer.json').read_bytes()


def test_embeddings_of_other_words_are_refused(source, tmp_path):
    config = on('abcdefghijkl\n')
    with config.unlocked(), config.ignore_type():
        config.init = spec_of(workdir=str(source))
    with pytest.raises(BadInput, match=r"token '.' has id \d+ in .* and (is no token|has id \d+) here.*text.load"):
        run.train(config, tmp_path / 'cold')
    with config.unlocked(), config.ignore_type():
        config.init.take = '/blocks/'
    run.train(config, tmp_path / 'blocks')


def test_word_vectors_go_into_any_table(tmp_path):
    from lmx import models, text
    from lmx.data import sources
    from lmx.text import vectors

    tokenizer = text.words(source=sources.in_memory(records=[{'text': 'the cat saw the dog'}]))
    vectors.save(tmp_path / 'v.txt', ['cat', 'bird'], np.arange(8.0).reshape(2, 4), style='glove')
    start = init.vectors(path=str(tmp_path / 'v.txt'), tokenizer=tokenizer)
    for model in (models.gpt, models.llama):
        more = {'mlp_dim': 8} if model is models.llama else {'max_length': 8}
        net = model(vocab_size=tokenizer.vocab_size, dim=4, num_layers=1, num_heads=1, **more)
        fresh = net.init(jax.random.key(0), np.zeros((1, 2), np.int32))['params']
        loaded = start(fresh)
        (cat,) = tokenizer.encode('cat')
        expected = np.asarray(fresh['embed']['embedding']).copy()
        expected[cat] = [0, 1, 2, 3]
        np.testing.assert_array_equal(loaded.params['embed']['embedding'], expected)
        assert loaded.loaded == ['embed/embedding']
    with pytest.raises(BadInput, match='matches no parameter'):
        init.vectors(path=str(tmp_path / 'v.txt'), tokenizer=tokenizer, table='nothing')(fresh)
