"""Copying equals its definition, word by word, and trains by the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmx import models, objectives
from lmx.nn.masks import Segments
from lmx.nn.pointer import Pointer
from lmx.types import BadInput
from tests.families import D, V

B, T, S = 2, 3, 7
SMALL = {'vocab_size': 40, 'dim': 16, 'num_layers': 1, 'num_heads': 2, 'max_length': 8, 'dropout_rate': 0.0}
SIZES = {'vocab_size': 40, 'dim': 16, 'num_layers': 1, 'num_heads': 2, 'mlp_dim': 16, 'dropout_rate': 0.0}


def inputs():
    keys = jax.random.split(jax.random.key(0), 3)
    x_BTD, states_BSD, scores_BTV = (jax.random.normal(key, shape) for key, shape in zip(keys, ((B, T, D), (B, S, D), (B, T, V))))
    tokens_BS = jnp.array([[4, 5, 4, 4, 6, 5, 7], [1, 2, 3, 1, 1, 9, 9]])
    return x_BTD, states_BSD, scores_BTV, tokens_BS


def mixed(module, states_BSD, x_BTD, scores_BTV, tokens_BS, mask):
    return module.mix(x_BTD, scores_BTV, module.point(x_BTD, module.keys(states_BSD), tokens_BS, mask), tokens_BS)


def defined(params, states_BSD, x_BTD, scores_BTV, tokens_BS, segments_BS):
    """p(w), summed in float64 as the paper writes it."""

    def linear(name, x):
        return np.float64(x) @ np.float64(params[name]['kernel']) + np.float64(params[name]['bias'])

    p_BTV = np.zeros((B, T, V))
    for b in range(B):
        scores_TS = linear('query', x_BTD[b]) @ linear('key', states_BSD[b]).T / np.sqrt(D)
        attention_TS = np.exp(scores_TS) * (np.asarray(segments_BS[b]) == 1)
        attention_TS /= attention_TS.sum(-1, keepdims=True)
        gate_T1 = 1 / (1 + np.exp(-linear('switch', x_BTD[b])))
        words_TV = np.exp(np.float64(scores_BTV[b]))
        p_BTV[b] = gate_T1 * words_TV / words_TV.sum(-1, keepdims=True)
        for s in range(S):
            p_BTV[b, :, int(tokens_BS[b, s])] += ((1 - gate_T1) * attention_TS)[:, s]
    return p_BTV


def test_equals_the_definition():
    x_BTD, states_BSD, scores_BTV, tokens_BS = inputs()
    segments_BS = jnp.array([[1, 1, 1, 1, 1, 0, 0], [1] * S])
    module, mask = Pointer(D), Segments(jnp.ones((B, T), jnp.int32), segments_BS)
    args = (states_BSD, x_BTD, scores_BTV, tokens_BS, mask)
    variables = module.init(jax.random.key(1), *args, method=mixed)
    log_p = module.apply(variables, *args, method=mixed)
    wanted = defined(variables['params'], states_BSD, x_BTD, scores_BTV, tokens_BS, segments_BS)
    np.testing.assert_allclose(np.exp(log_p), wanted, rtol=1e-5, atol=1e-7)  # float32 beside float64
    np.testing.assert_allclose(np.exp(log_p).sum(-1), 1, rtol=1e-5)


def test_gradients_are_those_of_the_sum():
    x_BTD, states_BSD, scores_BTV, tokens_BS = inputs()
    module, targets_BT = Pointer(D), jnp.array([[4, 5, 0], [1, 9, 12]])  # copied, in the source more than once, and in no source
    args = (states_BSD, x_BTD, scores_BTV, tokens_BS, None)
    params = module.init(jax.random.key(1), *args, method=mixed)

    def ours(params):
        log_p = module.apply(params, *args, method=mixed)
        return -jnp.take_along_axis(log_p, targets_BT[..., None], axis=-1).mean()

    def plain(params):
        bound = module.bind(params)
        scores_BTS = jnp.einsum('BTD,BSD->BTS', bound.query(x_BTD), bound.key(states_BSD)) / np.sqrt(D)
        gate_BT = jax.nn.sigmoid(bound.switch(x_BTD))[..., 0]
        copied_BT = jnp.sum(jax.nn.softmax(scores_BTS) * (tokens_BS[:, None] == targets_BT[..., None]), axis=-1)
        word_BT = jnp.take_along_axis(jax.nn.softmax(scores_BTV), targets_BT[..., None], axis=-1)[..., 0]
        return -jnp.log(gate_BT * word_BT + (1 - gate_BT) * copied_BT).mean()

    got, wanted = jax.grad(ours)(params), jax.grad(plain)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), got, wanted)


@pytest.mark.parametrize('pointer', [True, False])
def test_only_a_pointer_says_words_that_no_target_had(pointer):
    """Targets are the third and fourth token of the source; in training from one half of the vocabulary, then from the other."""
    model = models.transformer(**SIZES, pointer=pointer, encoder=models.bert(**SMALL))
    draw, rule = np.random.default_rng(0), optax.adam(1e-2)

    def batch(low, high):
        source = draw.integers(1, 40, (32, 5)).astype(np.int32)
        source[:, 2:4] = targets = draw.integers(low, high, (32, 2))
        inputs = np.concatenate([np.zeros((32, 1), np.int32), targets[:, :1]], axis=1)
        weights = np.ones(targets.shape, np.float32)
        return {'source': source, 'source_segments': np.ones_like(source), 'inputs': inputs, 'targets': targets, 'weights': weights}

    def loss(params, batch):
        sums = objectives.seq2seq(lambda *args, **keywords: (model.apply({'params': params}, *args, **keywords), {}), batch)
        return sums['loss/seq2seq'].total / sums['loss/seq2seq'].count, sums['accuracy'].total / sums['accuracy'].count

    @jax.jit
    def step(params, state, batch):
        (_, accuracy), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        updates, state = rule.update(grads, state)
        return optax.apply_updates(params, updates), state, accuracy

    first = batch(1, 20)
    params = model.init(jax.random.key(0), first['source'], first['inputs'])['params']
    state = rule.init(params)
    for _ in range(150):
        params, state, accuracy = step(params, state, batch(1, 20))
    other = step(params, state, batch(20, 40))[2]
    assert accuracy > 0.8
    assert other > 0.1 if pointer else other == 0


@pytest.mark.parametrize(
    ('changed', 'message'),
    [({'target_vocab_size': 40}, 'one vocabulary'), ({'encoder': models.bert(**{**SMALL, 'dim': 8})}, 'must agree')],
)
def test_what_does_not_fit_is_refused(changed, message):
    with pytest.raises(BadInput, match=message):
        models.transformer(**SIZES, pointer=True, **changed)
