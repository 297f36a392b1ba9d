"""Beam search over a random table of next tokens, where all texts can be enumerated."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from lmx.decode import sample
from lmx.decode.beam import beam_search
from lmx.types import BadInput

V, N, EOS = 4, 4, 0
TABLE = jnp.asarray(np.random.default_rng(0).normal(size=(V, V)) * 1.5, jnp.float32)


class Nothing(struct.PyTreeNode):
    """A cache of a model that only knows the last token, which still is told whose row it is."""

    row_B: jax.Array

    def take(self, rows):
        return Nothing(jnp.take(self.row_B, rows))


def step(tokens_BT, cache, segments):
    assert tokens_BT.shape[0] == cache.row_B.shape[0]
    return TABLE[tokens_BT] + 0.3 * cache.row_B[:, None, None] * jnp.arange(V), cache


def search(rows, prompt, **options):
    prompt = jnp.asarray(prompt)
    cache = Nothing(jnp.repeat(jnp.asarray(rows, jnp.float32), options['beam_size']))
    run = jax.jit(lambda cache: beam_search(step, cache, prompt, jnp.full(len(rows), prompt.shape[1]), max_tokens=N, eos_id=EOS, **options))
    return jax.tree.map(np.asarray, run(cache))


def every_text(row, last):
    """(log-probability, tokens) of all texts of at most N tokens that end in EOS or reach N."""
    logprobs = np.asarray(jax.nn.log_softmax(TABLE + 0.3 * row * jnp.arange(V)))
    for length in range(1, N + 1):
        for text in itertools.product(range(V), repeat=length):
            if EOS not in text[:-1] and (text[-1] == EOS or length == N):
                yield sum(logprobs[a, b] for a, b in zip((last, *text), text)), text


@pytest.mark.parametrize('penalty', [0.0, 1.0, 2.0])
def test_a_wide_beam_finds_the_best_of_all_texts(penalty):
    found = search([0, 1], [[2, 3], [1, 1]], beam_size=V**3, length_penalty=penalty, early_stopping='never', num_return=3)
    for row, last in ((0, 3), (1, 1)):
        known = {text: score / len(text) ** penalty for score, text in every_text(row, last)}
        np.testing.assert_allclose(found['scores'][row], sorted(known.values(), reverse=True)[:3], rtol=1e-5)
        texts = []
        for tokens, length, score in zip(found['tokens'][row], found['lengths'][row], found['scores'][row]):
            texts.append(tuple(tokens[: min(length + 1, N)].tolist()))
            assert known[texts[-1]] == pytest.approx(score, rel=1e-5)  # texts that go round a circle tie
            assert (tokens[length:] == EOS).all()
        assert len(set(texts)) == 3


def test_one_hypothesis_is_greedy():
    found = search([0, 1], [[2, 3], [1, 1]], beam_size=1)
    key, lengths = jax.random.key(0), jnp.array([2, 2])
    cache, prompt = Nothing(jnp.arange(2.0)), jnp.array([[2, 3], [1, 1]])
    greedy = sample.generate(step, cache, prompt, lengths, key, max_tokens=N, sampling=sample.Sampling(temperature=0), eos_id=EOS)
    np.testing.assert_array_equal(found['tokens'][:, 0], greedy['tokens'])
    np.testing.assert_array_equal(found['lengths'][:, 0], greedy['lengths'])


@pytest.mark.parametrize('early_stopping', [True, False, 'never'])
def test_a_row_does_not_depend_on_its_neighbours(early_stopping):
    options = {'beam_size': 3, 'num_return': 3, 'early_stopping': early_stopping}
    together = search([0, 1, 2], [[2], [1], [3]], **options)
    for index, (row, last) in enumerate(((0, 2), (1, 1), (2, 3))):
        alone = search([row], [[last]], **options)
        for name, array in alone.items():
            np.testing.assert_allclose(array[0], together[name][index], rtol=1e-6)


@pytest.mark.parametrize('options', [{'beam_size': 0}, {'beam_size': 2, 'num_return': 3}, {'beam_size': 2, 'early_stopping': 'soon'}])
def test_bad_options_are_refused(options):
    with pytest.raises(BadInput):
        search([0], [[1]], **options)
