"""Rules of decoding: by enumeration of all texts of a tiny vocabulary, for beam search and for greedy decoding."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from lmx.decode import rules, sample
from lmx.decode.beam import beam_search
from lmx.types import BadInput

V, N, EOS = 4, 5, 0
TABLE = jnp.asarray(np.random.default_rng(1).normal(size=(V, V)), jnp.float32)


class Nothing(struct.PyTreeNode):
    rows: jax.Array

    def take(self, rows):
        return Nothing(jnp.take(self.rows, rows))


def step(tokens_BT, cache, segments):
    return TABLE[tokens_BT], cache


def holds(text, word):
    return any(text[i : i + len(word)] == word for i in range(len(text)))


def repeats(text, size):
    grams = [text[i : i + size] for i in range(len(text) - size + 1)]
    return len(set(grams)) < len(grams)


RULES = {
    'banned token': (rules.banned(words=[[2]]), lambda text: not holds(text, (2,))),
    'banned words': (rules.banned(words=[[1, 2], [3, 3, 1]]), lambda text: not holds(text, (1, 2)) and not holds(text, (3, 3, 1))),
    'forced': (rules.forced(tokens=[3, 1]), lambda text: text[:2] == (3, 1)),
    'forced end': (rules.forced_end(eos_id=EOS), lambda text: text[-1] == EOS),
    'min tokens': (rules.min_tokens(count=3, eos_id=EOS), lambda text: EOS not in text[:3]),
    'no token twice': (rules.no_repeat(size=1), lambda text: not repeats(text, 1)),
    'no pair twice': (rules.no_repeat(size=2), lambda text: not repeats(text, 2)),
    'no triple twice': (rules.no_repeat(size=3), lambda text: not repeats(text, 3)),
}


def every_text(last, allowed, free=()):
    """{text: log-probability without that of `free` places} of the allowed texts of at most N tokens that end in EOS or reach N."""
    logprobs = np.asarray(jax.nn.log_softmax(TABLE))
    out = {}
    for length in range(1, N + 1):
        for text in itertools.product(range(V), repeat=length):
            if EOS not in text[:-1] and (text[-1] == EOS or length == N) and allowed(text):
                costs = [logprobs[a, b] for a, b in zip((last, *text), text)]
                out[text] = sum(cost for place, cost in enumerate(costs) if place not in free)
    return out


@pytest.mark.parametrize('name', RULES)
def test_a_wide_beam_finds_the_best_of_the_texts_that_are_allowed(name):
    rule, allowed = RULES[name]
    options = {'beam_size': V**3, 'max_tokens': N, 'eos_id': EOS, 'length_penalty': 0.0, 'early_stopping': 'never', 'rules': (rule,)}
    search = jax.jit(lambda cache: beam_search(step, cache, jnp.array([[1]]), jnp.array([1]), **options))
    found = jax.device_get(search(Nothing(jnp.zeros(V**3))))
    known = every_text(1, allowed, {'forced': (0, 1), 'forced end': (N - 1,)}.get(name, ()))
    assert 0 < len(known) < len(every_text(1, lambda text: True))
    text = tuple(found['tokens'][0, 0][: min(found['lengths'][0, 0] + 1, N)].tolist())
    assert text in known
    assert found['scores'][0, 0] == pytest.approx(max(known.values()), rel=1e-5)


@pytest.mark.parametrize('name', RULES)
def test_greedy_takes_the_likeliest_token_that_is_allowed(name):
    rule, allowed = RULES[name]
    generate = jax.jit(
        lambda cache: sample.generate(
            step,
            cache,
            jnp.array([[1], [2]]),
            jnp.array([1, 1]),
            jax.random.key(0),
            max_tokens=N,
            sampling=sample.Sampling(temperature=0),
            eos_id=EOS,
            rules=(rule,),
        )
    )
    found = jax.device_get(generate(Nothing(jnp.zeros(2))))
    logprobs = np.asarray(jax.nn.log_softmax(TABLE))
    for last, tokens, length, scores in zip((1, 2), found['tokens'], found['lengths'], found['logprobs']):
        text = tuple(tokens[: min(length + 1, N)].tolist())
        for place, token in enumerate(text):
            can_go_on = [t for t in range(V) if any(known[: place + 1] == (*text[:place], t) for known in every_text(1, allowed))]
            before = (last, *text)[place]
            assert token == max(can_go_on, key=lambda t: logprobs[before, t])
            assert scores[place] == pytest.approx(logprobs[before, token], rel=1e-5)  # the model's own, not those among the allowed
        assert math.isfinite(scores.sum())


def test_refusals():
    for make in (lambda: rules.banned(words=[[]]), lambda: rules.no_repeat(size=0)):
        with pytest.raises(BadInput):
            make()
