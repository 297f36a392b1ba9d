"""Filters against transformers', and generation that depends on nothing but its row."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx import models
from lmx.decode.sample import Sampling, continue_text, filter_logits, generate
from lmx.nn.positions import Rotary
from lmx.types import BadInput

V, D, CONTEXT = 23, 16, 12
model = models.gpt(vocab_size=V, dim=D, num_layers=1, num_heads=2, max_length=CONTEXT, positions=Rotary())
params = {'params': jax.tree.map(lambda x: 8 * x, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params'])}


def step(tokens, cache, segments=None):
    return model.apply(params, tokens, segments=segments, cache=cache)


@jax.jit
def forward(ids):
    return model.apply(params, ids)[0]


def next_logits(text: list[int]) -> np.ndarray:
    """By a full forward pass over the text, padded behind, where nobody looks."""
    return np.asarray(forward(jnp.array([text + [0] * (CONTEXT - len(text))]))[0, len(text) - 1])


def prompts(lengths=(5, 3, 7), width: int = 8, seed: int = 0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, V, (len(lengths), width), np.int32)
    return jnp.asarray(ids), jnp.asarray(lengths, jnp.int32)


def logits(scale: float = 3.0):
    return jnp.asarray(np.random.default_rng(1).normal(size=(6, V)) * scale, jnp.float32)


SETTINGS = [
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(top_k=5),
    Sampling(top_k=99),
    Sampling(top_p=0.8),
    Sampling(top_p=1e-6),
    Sampling(min_p=0.1),
    Sampling(repetition_penalty=1.7),
    Sampling(temperature=1.3, top_k=9, top_p=0.9, min_p=0.05, repetition_penalty=1.2),
]


def theirs(sampling: Sampling, ids: np.ndarray) -> np.ndarray:
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    chain = [transformers.RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty))]
    chain += [transformers.TemperatureLogitsWarper(float(sampling.temperature))]
    chain += [transformers.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    chain += [transformers.TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    chain += [transformers.MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    out = torch.tensor(np.asarray(logits()))
    for processor in chain:
        out = processor(torch.tensor(ids, dtype=torch.long), out)
    return out.numpy()


@pytest.mark.parity
@pytest.mark.parametrize('traced', [False, True])
@pytest.mark.parametrize('sampling', SETTINGS, ids=str)
def test_filters_equal_transformers(sampling, traced):
    ids = np.random.default_rng(2).integers(0, V, (6, 4))
    seen = jnp.zeros((6, V), bool).at[jnp.arange(6)[:, None], ids].set(True)
    run = jax.jit(filter_logits) if traced else lambda *args: filter_logits(args[0], sampling, args[2])
    got, want = run(logits(), sampling, seen), theirs(sampling, ids)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))  # the kept set
    # Float32 rounding of one division.
    np.testing.assert_allclose(jax.nn.softmax(got), jax.nn.softmax(want), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('temperature', [0, 0.0, jnp.zeros(())])
def test_temperature_zero_is_greedy(temperature):
    kept = np.isfinite(filter_logits(logits(), Sampling(temperature=temperature, top_p=0.9)))
    np.testing.assert_array_equal(kept.sum(-1), 1)
    np.testing.assert_array_equal(kept.argmax(-1), logits().argmax(-1))


def test_greedy_generation_is_the_argmax_of_full_forwards():
    ids, lengths = prompts()
    new = 5
    run = partial(generate, step, model.init_cache(3, CONTEXT), max_tokens=new, sampling=Sampling(temperature=0))
    out = jax.device_get(jax.jit(run)(ids, lengths, jax.random.key(0)))
    for row, length in enumerate(lengths.tolist()):
        text = ids[row, :length].tolist()
        for index in range(new):
            full = next_logits(text)
            best = np.sort(full)
            assert best[-1] - best[-2] > 1e-4  # no near tie that rounding could turn
            assert out['tokens'][row, index] == int(full.argmax())
            # The same logits from a cache: float32 rounding.
            np.testing.assert_allclose(out['logprobs'][row, index], jax.nn.log_softmax(full).max(), atol=1e-4)
            text.append(int(full.argmax()))
    np.testing.assert_array_equal(out['lengths'], new)


def test_a_rows_text_does_not_depend_on_its_neighbours():
    ids, lengths = prompts()
    keys = jax.random.split(jax.random.key(5), 3)
    run = jax.jit(partial(continue_text, step, model.init_cache, context=CONTEXT, max_tokens=30, eos_id=1))
    together = run(ids, lengths, keys)
    for row in range(3):
        alone = run(ids[row : row + 1], lengths[row : row + 1], keys[row : row + 1])
        np.testing.assert_array_equal(alone['tokens'][0], together['tokens'][row])
        assert alone['lengths'][0] == together['lengths'][row]
    other = run(ids.at[1].set(0), lengths.at[1].set(8), keys)
    for row in (0, 2):
        np.testing.assert_array_equal(other['tokens'][row], together['tokens'][row])


def test_draws_follow_the_model():
    """4000 rows of one prompt: the frequencies of the first token are its probabilities."""
    count = 4000
    ids = jnp.tile(prompts()[0][:1, :5], (count, 1))
    out = generate(step, model.init_cache(count, 5), ids, jnp.full(count, 5), jax.random.key(0), max_tokens=1, sampling=Sampling(top_k=4))
    full = next_logits(ids[0].tolist())
    probability = np.exp(jax.nn.log_softmax(jax.lax.top_k(full, 4)[0]))
    seen = np.bincount(np.asarray(out['tokens'][:, 0]), minlength=V)[np.asarray(jax.lax.top_k(full, 4)[1])]
    assert seen.sum() == count
    np.testing.assert_allclose(seen / count, probability, atol=4 * 0.5 / count**0.5)  # four standard errors at the most


def test_the_end_token_ends_a_row_and_the_loop():
    ids, lengths = prompts()
    calls = []
    run = partial(generate, step, model.init_cache(3, 30), max_tokens=20)
    free = jax.jit(run)(ids, lengths, jax.random.key(0))
    eos = int(free['tokens'][0, 4])
    first = [row.tolist().index(eos) if eos in row else 20 for row in np.asarray(free['tokens'])]

    def emit(tokens):
        calls.append(np.asarray(tokens).tolist())
        return np.zeros(3, bool)

    out = jax.jit(partial(run, eos_id=eos, emit=emit))(ids, lengths, jax.random.key(0))
    np.testing.assert_array_equal(out['lengths'], first)
    for row, end in enumerate(first):
        np.testing.assert_array_equal(out['tokens'][row, :end], free['tokens'][row, :end])
        assert (out['tokens'][row, end:] == eos).all()
        assert not np.asarray(out['logprobs'])[row, end + 1 :].any()
    steps = min(max(first) + 1, 20)
    assert np.array(calls).T.tolist() == np.asarray(out['tokens'])[:, :steps].tolist()  # in order, and no step too many


def test_emit_ends_rows_and_the_loop_beyond_the_context():
    ids, lengths = prompts()
    seen = []

    def emit(tokens):
        seen.append(np.asarray(tokens))
        return np.array([len(seen) >= 2, len(seen) >= 30, len(seen) >= 3])

    run = jax.jit(partial(continue_text, step, model.init_cache, context=CONTEXT, max_tokens=40, emit=emit))
    out = run(ids, lengths, jax.random.key(0))
    np.testing.assert_array_equal(out['lengths'], [2, 30, 3])
    assert len(seen) == 30
    np.testing.assert_array_equal(np.stack(seen, 1)[1], out['tokens'][1, :30])


def test_text_beyond_the_context_goes_on_from_its_last_half():
    ids, lengths = prompts(lengths=(5,))
    run = partial(continue_text, step, model.init_cache, context=CONTEXT, max_tokens=30, sampling=Sampling(temperature=0))
    out = jax.device_get(jax.jit(run)(ids, lengths, jax.random.key(0)))
    text = ids[0, :5].tolist()
    hop = CONTEXT // 2
    for index in range(30):
        start = -(-max(len(text) - CONTEXT, 0) // hop) * hop
        full = next_logits(text[start:])
        assert out['tokens'][0, index] == int(full.argmax())
        text.append(int(full.argmax()))


def test_the_repetition_penalty_knows_prompt_and_text():
    """At a huge penalty greedy decoding says nothing twice while positive logits are left; padding of the prompt is not counted."""
    ids = jnp.array([[3, 4, 9, 9]])
    flat = lambda tokens, cache, segments=None: (jnp.broadcast_to(10.0 - jnp.arange(V), (*tokens.shape, V)), cache)  # noqa: E731
    sampling = Sampling(temperature=0, repetition_penalty=1e9)
    out = generate(flat, None, ids, jnp.array([2]), jax.random.key(0), max_tokens=8, sampling=sampling)
    assert out['tokens'][0].tolist() == [0, 1, 2, 5, 6, 7, 8, 9]


def test_what_has_no_room_is_refused():
    ids, lengths = prompts()
    with pytest.raises(BadInput, match='the cache has 10 slots, prompt and new tokens need 12'):
        generate(step, model.init_cache(3, 10), ids, lengths, jax.random.key(0), max_tokens=5)
    with pytest.raises(BadInput, match='the prompt has 8 tokens, the model reads at most 6'):
        continue_text(step, model.init_cache, ids, lengths, jax.random.key(0), context=6, max_tokens=5)
