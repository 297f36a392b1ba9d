"""Speculative decoding says what the large model alone would say: the same tokens without randomness, the same distribution with it."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx import models
from lmx.decode.sample import Sampling, filter_logits, generate
from lmx.decode.speculative import speculate
from lmx.types import BadInput

V, CONTEXT = 11, 24


@functools.cache
def decoder(layers: int, seed: int):
    """(step, empty cache) of a random decoder with learnt positions, which has none behind its context."""
    model = models.gpt(vocab_size=V, dim=16, num_layers=layers, num_heads=2, max_length=CONTEXT)
    fresh = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 4), jnp.int32))
    params = jax.tree.map(lambda x: 6 * x, fresh)

    def step(tokens, cache, segments=None):
        return model.apply(params, tokens, segments=segments, cache=cache)

    return step, lambda rows, length: model.apply(params, rows, length, method='init_cache')


def prompts(lengths=(5, 3, 7), width=8):
    ids = np.random.default_rng(0).integers(0, V, (len(lengths), width), np.int32)
    return jnp.asarray(ids), jnp.asarray(lengths, jnp.int32)


def alone(prompt, lengths, **options):
    step, empty = decoder(2, 0)
    cache = empty(len(lengths), prompt.shape[1] + options['max_tokens'] - 1)
    return jax.jit(lambda: generate(step, cache, prompt, lengths, jax.random.key(1), **options))()


def together(prompt, lengths, draft, key=1, **options):
    (step, empty), (draft_step, draft_empty) = decoder(2, 0), draft
    room = prompt.shape[1] + options['max_tokens'] - 1
    caches = empty(len(lengths), room), draft_empty(len(lengths), room)
    run = jax.jit(lambda key: speculate(step, caches[0], draft_step, caches[1], prompt, lengths, key, **options))
    return run(jax.random.key(key) if isinstance(key, int) else key)


@pytest.mark.parametrize('draft_tokens', [1, 4, 20])
@pytest.mark.parametrize('eos_id', [None, 3])
def test_greedy_tokens_are_those_of_generate(draft_tokens, eos_id):
    prompt, lengths = prompts()
    options = {'max_tokens': 15, 'sampling': Sampling(temperature=0), 'eos_id': eos_id}
    wanted = alone(prompt, lengths, **options)
    for draft in (decoder(1, 5), decoder(2, 0)):
        found = together(prompt, lengths, draft, draft_tokens=draft_tokens, **options)
        np.testing.assert_array_equal(found['tokens'], wanted['tokens'])
        np.testing.assert_array_equal(found['lengths'], wanted['lengths'])
        # one pass over several tokens sums in another order than one pass each
        np.testing.assert_allclose(found['logprobs'], wanted['logprobs'], atol=1e-4)
    if eos_id is None:  # the last draft was the model itself, which keeps all that it says
        assert found['rounds'].tolist() == [-(-14 // (draft_tokens + 1))] * 3


def test_it_reaches_the_end_of_the_context_and_not_beyond():
    prompt, lengths = prompts(lengths=(8, 8), width=8)
    options = {'max_tokens': CONTEXT - 8 + 1, 'sampling': Sampling(temperature=0)}
    wanted = alone(prompt, lengths, **options)
    found = together(prompt, lengths, decoder(1, 5), draft_tokens=6, **options)
    np.testing.assert_array_equal(found['tokens'], wanted['tokens'])
    assert np.isfinite(found['logprobs']).all()


@pytest.mark.parametrize('sampling', [Sampling(), Sampling(temperature=0.7, top_k=3), Sampling(top_p=0.7)], ids=str)
def test_samples_have_the_distribution_of_the_large_model(sampling):
    """Of all texts of three tokens: their frequencies against their probabilities, by chi squared."""
    size, count, rows = 4, 3, 20_000
    tables = [jnp.asarray(np.random.default_rng(seed).normal(size=(size, size)) * 1.5, jnp.float32) for seed in (0, 1)]

    from flax import struct

    class Memory(struct.PyTreeNode):
        length: jax.Array

        def rewind(self, length):
            return self.replace(length=length)

    def steps(table):
        return lambda tokens, cache, segments: (table[tokens], cache)

    prompt = jnp.full((rows, 1), 2, jnp.int32)
    lengths = jnp.ones((rows,), jnp.int32)
    found = jax.jit(
        lambda key: speculate(
            steps(tables[0]),
            Memory(lengths),
            steps(tables[1]),
            Memory(lengths),
            prompt,
            lengths,
            key,
            draft_tokens=2,
            max_tokens=count,
            sampling=sampling,
        )
    )(jax.random.key(0))
    chances = np.asarray(jax.nn.softmax(filter_logits(tables[0], sampling)))
    seen = collections.Counter(map(tuple, np.asarray(found['tokens']).tolist()))
    wanted = {
        text: rows * np.prod([chances[a, b] for a, b in zip((2, *text), text)]) for text in itertools.product(range(size), repeat=count)
    }
    assert all(wanted[text] > 0 for text in seen)
    likely = {text: value for text, value in wanted.items() if value >= 5}
    statistic = sum((seen[text] - value) ** 2 / value for text, value in likely.items())
    freedom = len(likely) - 1
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)  # four standard deviations; the draws are always the same
    assert 0.2 < found['accepted'].sum() / (2 * found['rounds'].sum()) < 0.9  # both what is kept and what is not was met


def test_a_row_does_not_depend_on_its_neighbours():
    prompt, lengths = prompts()
    options = {'draft_tokens': 3, 'max_tokens': 10, 'sampling': Sampling(temperature=1.0), 'eos_id': 3}
    keys = jax.random.split(jax.random.key(4), 3)
    whole = together(prompt, lengths, decoder(1, 5), key=keys, **options)
    for row in range(3):
        one = together(prompt[row : row + 1], lengths[row : row + 1], decoder(1, 5), key=keys[row : row + 1], **options)
        np.testing.assert_array_equal(one['tokens'][0], whole['tokens'][row])


@pytest.mark.parametrize(
    ('options', 'said'),
    [({'draft_tokens': 0}, 'draft_tokens 0 is below 1'), ({'sampling': Sampling(repetition_penalty=1.2)}, 'a repetition penalty')],
)
def test_what_is_wrong_is_said(options, said):
    with pytest.raises(BadInput, match=said):
        together(*prompts(), decoder(1, 5), **{'draft_tokens': 2, 'max_tokens': 4, **options})


def test_recurrent_states_are_refused():
    prompt, lengths = prompts()
    with pytest.raises(BadInput, match='recurrent state'):
        speculate(None, object(), None, object(), prompt, lengths, jax.random.key(0), draft_tokens=2, max_tokens=4)
