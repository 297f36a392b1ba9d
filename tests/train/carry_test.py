"""Recurrent state goes on from batch to batch where the data is read in streams: in training, in evaluation, over a stop."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx import models, optim, run, tasks
from lmx.data import packing, pipeline, sources
from lmx.data.cache import token_cache
from lmx.run.config import load
from lmx.run.parts import Parts
from lmx.spec import ref, spec
from lmx.text import characters
from lmx.train import init
from lmx.train.checkpoint import Checkpoints
from lmx.train.state import TrainState, init_carry, init_params
from lmx.train.step import train_step
from lmx.types import BadInput

TEXT = ''.join(chr(97 + n) for n in np.random.default_rng(0).integers(0, 6, 203))


def records(*, split: str):
    return sources.in_memory(records=[{'text': TEXT if split == 'train' else TEXT[::-1]}])


def tokenizer():
    return characters(source=records(split='train'))


def windows(length=10):
    return packing.streams(token_cache(records(split='train'), tokenizer()), length=length, eos_id=None)


def test_rows_go_on_where_they_ended_and_cover_everything():
    features, size = windows(), 4
    batches = pipeline.train_batches(features, batch_size=size, seed=0)
    count = len(features)
    order = np.stack([batches.indices(step) for step in range(count)])
    assert (np.diff(order, axis=0) % count == 1).all()
    assert all(sorted(column) == list(range(count)) for column in order.T)
    starts = order[0]
    assert np.diff(starts).min() >= count // size
    np.testing.assert_array_equal(batches(3)['inputs'], features.lmx_windows.rows(order[3])['inputs'])


@pytest.mark.parametrize('size', [1, 4, 6])
def test_evaluation_reads_every_window_once_in_streams(size):
    features = windows()
    batches = pipeline.eval_batches(features, batch_size=size)
    seen = np.zeros(len(features), int)
    for index in range(len(batches)):
        batch = batches[index]
        rows = {tuple(row): n for n, row in enumerate(features.lmx_windows.rows(np.arange(len(features)))['inputs'].tolist())}
        for row, weights in zip(batch['inputs'].tolist(), batch['weights']):
            seen[rows[tuple(row)]] += weights.any()
    assert (seen == 1).all()


def model():
    return models.rnn_lm(vocab_size=6, dim=8, num_layers=2, cell='gru')


def objective(apply, batch):
    from lmx.objectives import next_token

    return next_token(apply, batch)


def batch_of(rows):
    return {'inputs': rows[:, :-1], 'targets': rows[:, 1:], 'weights': np.ones((len(rows), rows.shape[1] - 1), np.float32)}


def test_windows_with_carry_equal_one_long_sequence_cut_for_gradients():
    """Two windows one after the other: the losses are those of the long text, and the state handed on is the one within it."""
    long = np.random.default_rng(1).integers(0, 6, (3, 9))
    first, second = batch_of(long[:, :5]), batch_of(long[:, 4:])
    net = model()
    params = init_params(net, objective, first, jax.random.key(0))
    optimizer = optim.optimizer(rule=optim.sgd(), schedule=0.0)
    make = lambda values: (net, objective, optimizer)  # noqa: E731
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key(0), init_carry(net, objective, first))
    step = jax.jit(lambda state, batch: train_step(state, batch, {}, make=make))
    state, sums = step(state, first)
    middle = state.carry
    state, more = step(state, second)
    whole, _ = net.apply({'params': params}, long[:, :-1])
    nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(whole)), long[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose([sums['nll'].total, more['nll'].total], [nll[:, :4].sum(), nll[:, 4:].sum()], rtol=1e-5)  # float32 sums

    def loss(params):  # the second window from a fixed state
        (logits, _), _ = net.apply({'params': params, 'carry': middle}, second['inputs'], mutable=['carry'])
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), second['targets'][..., None], axis=-1))

    norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(jax.grad(loss)(params))))
    np.testing.assert_allclose(more['grad_norm'].total, norm, rtol=1e-5)
    unaffected = step(state.replace(carry=()), second)[0]
    assert unaffected.carry == ()


def config(**changes):
    c = load('tests/tiny.py:steps=6,ema=0')
    with c.unlocked(), c.ignore_type():
        c.data = {split: spec('tests.train.carry_test:records', split=split) for split in ('train', 'validation')}
        c.task = spec(tasks.language_modelling, tokenizer=ref('tokenizer'), max_length=10, windows=packing.streams)
        c.model = spec(models.rnn_lm, vocab_size=ref('tokenizer.vocab_size'), dim=8, num_layers=2, dropout_rate=0.1)
        c.optim = spec(optim.optimizer, rule=spec(optim.adam), schedule=0.01)
        c.batch_size, c.every = 8, {'log': 1, 'evaluate': 3, 'checkpoint': 3}
        c.keep = {'last': 3, 'best': None, 'mode': 'min'}
        for name, value in changes.items():
            c[name] = value
    return c


def final_state(workdir, made):
    parts = Parts(made)
    checkpoints = Checkpoints(workdir / 'checkpoints', keep_last=3, read_only=True)
    return jax.device_get(checkpoints.restore(6, parts.abstract_state())[0].replace(key=0))


def test_a_run_that_was_stopped_carries_on_with_the_same_bits(tmp_path):
    run.train(config(), tmp_path / 'straight')
    run.train(config(steps=3), tmp_path / 'stopped')
    run.train(config(), tmp_path / 'stopped')
    straight, stopped = (final_state(tmp_path / name, config()) for name in ('straight', 'stopped'))
    assert np.any(jax.tree.leaves(straight.carry)[0])
    jax.tree.map(np.testing.assert_array_equal, stopped, straight)
    lines = [
        [json.loads(line)['loss'] for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
        for name in ('straight', 'stopped')
    ]
    assert lines[0] == lines[1]
    again = run.evaluate(tmp_path / 'straight', allow=('tests',))['validation']['loss']
    last = [json.loads(line) for line in (tmp_path / 'straight' / 'eval.jsonl').read_text().splitlines()][-2]
    assert again == pytest.approx(last['loss'], rel=1e-6)


def test_evaluation_in_streams_is_that_of_whole_texts(tmp_path):
    """Eight streams, each read as one long sequence from a state of zeros."""
    run.train(config(steps=1), tmp_path)
    values = run.evaluate(tmp_path, allow=('tests',))['validation']
    params, ids = init.read_params(str(tmp_path)), tokenizer().encode(TEXT[::-1])
    net, total = models.rnn_lm(vocab_size=6, dim=8, num_layers=2), 0.0
    for start in range(0, len(ids) - 1, 30):  # 21 windows in streams of three
        part = ids[None, start : start + 31]
        logits, _ = net.apply({'params': params}, part[:, :-1])
        total -= np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), part[:, 1:, None], axis=-1).sum()
    assert values['nll'] == pytest.approx(total / (len(ids) - 1), rel=1e-5)  # sums in another order


def test_rows_on_eight_devices_equal_rows_on_four(tmp_path):
    found = []
    for mesh in ({'data': 8}, {'data': 4, 'tensor': 2}):
        run.train(config(steps=2, mesh=mesh), tmp_path / str(len(mesh)))
        found.append([json.loads(line)['loss'] for line in (tmp_path / str(len(mesh)) / 'metrics.jsonl').read_text().splitlines()])
    np.testing.assert_allclose(*found, rtol=1e-5)  # sums in another order


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'accumulate': 2, 'batch_size': 16}, 'state is carried from batch to batch; use accumulate=1'),
        ({'batch_size': 64}, 'batch_size 64 is more than the 21 windows of the text'),
        (
            {'model': spec(models.gpt, vocab_size=ref('tokenizer.vocab_size'), dim=8, num_layers=1, num_heads=1, max_length=10)},
            'carries no state; use windows=packing.concatenated',
        ),
    ],
)
def test_what_cannot_carry_is_refused(tmp_path, changes, says):
    with pytest.raises(BadInput, match=says):
        run.train(config(**changes), tmp_path / 'run')
