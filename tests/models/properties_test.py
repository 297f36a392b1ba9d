"""What every family must do, whatever it is made of: causality, packing, padding, caching, stacking, precision."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.families import DECODERS, ENCODERS, ONE_PAIR_A_ROW, RECURRENT, SEQ2SEQ, D, V

B, T, S = 2, 12, 9
ATTENDING = {**DECODERS, **ENCODERS, **SEQ2SEQ}
ALL = {**ATTENDING, **RECURRENT, **ONE_PAIR_A_ROW}

LIKE_ANOTHER = ('llama3', 'yarn', 'roberta', 'distilbert', 'pre_norm', 't5_1_1', 'rnn_multiplicative', 'elman')


def each(names):
    """All under `-m full`; by default one of those that are made of the same parts."""
    return pytest.mark.parametrize('name', [pytest.param(name, marks=pytest.mark.full) if name in LIKE_ANOTHER else name for name in names])


every_decoder = each({**DECODERS, **RECURRENT})
every_encoder = each(ENCODERS)
every_seq2seq = each({**SEQ2SEQ, **ONE_PAIR_A_ROW})
packing_seq2seq = each(SEQ2SEQ)
DIFFERENT = ('gpt', 'gemma2', 'mixtral', 'bert', 'modernbert', 't5', 'pointer')  # in what a stack or a block is made of
some_families = pytest.mark.parametrize(
    'name', [name if name in DIFFERENT else pytest.param(name, marks=pytest.mark.full) for name in ATTENDING]
)

# Equal up to float32 rounding of other products and sums; outputs are of order 1.
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)


def tokens(seed: int = 0, length: int = T) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(seed).integers(0, V, (B, length), np.int32))


def inputs(name: str) -> tuple:
    return (tokens(3, S), tokens()) if name in SEQ2SEQ or name in ONE_PAIR_A_ROW else (tokens(),)


@cache
def model_of(name, **keywords):
    return ALL[name](**keywords)


@cache
def params_of(name):
    """Fresh weights, kernels of layers all of one size, so that attention is neither uniform nor a choice of one."""
    params = jax.jit(model_of(name).init)(jax.random.key(0), *inputs(name))['params']

    def even(path, x):
        return 0.3 * x / x.std() if x.ndim == 3 else x / x.std() if 'embed' in str(path) and x.std() > 0 else x

    return {'params': jax.tree_util.tree_map_with_path(even, params)}


@partial(jax.jit, static_argnums=(0,), static_argnames=('method', 'mutable'))
def forward(model, params, *args, **kwargs):
    return model.apply(params, *args, **kwargs)


def output(name, *args, model=None, **kwargs):
    """Logits, or hidden vectors without a head."""
    out = forward(model_of(name) if model is None else model, params_of(name), *args, **kwargs)
    return out[0] if name in DECODERS or name in RECURRENT else out


# -- decoders


@every_decoder
def test_no_token_sees_the_future(name):
    """The gradient of the output at t with respect to the embedding behind t is exactly zero, and before it is not."""
    model, params, ids = model_of(name), params_of(name)['params'], jnp.arange(T)[None]  # one row of the table per place

    def hidden(table):
        return model.apply({'params': {**params, 'embed': {'embedding': table}}}, ids, method='hidden')[0][0]

    table = jax.random.normal(jax.random.key(2), (V, D))
    width = jax.eval_shape(hidden, table).shape[-1]
    direction = jax.random.normal(jax.random.key(1), (width,))  # the norm fixes the sum of squares, so a random direction
    # One output after the other: the gradient of a ragged product cannot be vmapped.
    at = lambda t: jax.grad(lambda table: hidden(table)[t] @ direction)(table)  # noqa: E731
    jacobian = jax.jit(lambda: jax.lax.map(at, jnp.arange(T)))()
    reach = np.abs(jacobian).sum(-1)[:, :T]  # [T out, T in]
    distance = np.subtract.outer(np.arange(T), np.arange(T))
    furthest = 4 if name == 'mistral' else T  # a window of 3 reaches two tokens further back in each of two layers
    np.testing.assert_array_equal(reach > 0, (distance >= 0) & (distance <= furthest))


@every_decoder
def test_packed_segments_equal_separate_sequences(name):
    row = tokens()[:1]
    segments = jnp.array([[1] * 5 + [2] * 5 + [0] * 2])
    packed = output(name, row, segments=segments)
    for start in (0, 5):
        close(packed[:, start : start + 5], output(name, row[:, start : start + 5]))
    assert np.isfinite(packed).all()


@every_decoder
@pytest.mark.parametrize('side', ['right', 'left'])
def test_cached_decoding_of_ragged_prompts_equals_the_full_forward(name, side):
    """Rows of 5 and 3 tokens, padded with garbage: padding takes no slot, is never seen, and the rows go on as if alone."""
    model, params, ids = model_of(name), params_of(name), tokens()
    full = output(name, ids)
    lengths, width = np.array([5, 3]), 6
    prompt, segments = np.full((B, width), V - 1, np.int32), np.zeros((B, width), np.int32)
    where = [slice(0, n) if side == 'right' else slice(width - n, width) for n in lengths]
    for row, n in enumerate(lengths):
        prompt[row, where[row]], segments[row, where[row]] = ids[row, :n], 1
    logits, cache = forward(model, params, jnp.asarray(prompt), segments=jnp.asarray(segments), cache=model.init_cache(B, 10))
    np.testing.assert_array_equal(cache.length_B, lengths)
    for row, n in enumerate(lengths):
        close(logits[row, where[row]], full[row, :n])
    for step in range(4):
        at = lengths + step
        logits, cache = forward(model, params, ids[np.arange(B), at][:, None], cache=cache)
        close(logits[:, 0], full[np.arange(B), at])
    logits, cache = forward(model, params, ids[:, 9:10], cache=cache.take(jnp.array([0, 0])))
    close(logits[0], logits[1] if (ids[0, 9] == ids[1, 9]).all() else logits[0])
    np.testing.assert_array_equal(cache.length_B, [10, 10])


def test_a_prefix_is_seen_by_all_of_its_row():
    ids = tokens()
    plain = output('llama', ids, method='hidden')
    seen = output('llama', ids, prefix=jnp.array([0, 4]), method='hidden')
    close(seen[0], plain[0])
    changed = output('llama', ids.at[1, 3].set((ids[1, 3] + 1) % V), prefix=jnp.array([0, 4]), method='hidden')
    assert np.abs(changed[1, :3] - seen[1, :3]).max(-1).min() > 1e-3  # tokens before hear of it
    later = output('llama', ids.at[1, 5].set((ids[1, 5] + 1) % V), prefix=jnp.array([0, 4]), method='hidden')
    close(later[1, :5], seen[1, :5])


# -- encoders


@every_encoder
@pytest.mark.parametrize('side', ['right', 'left'])
def test_padding_changes_nothing(name, side):
    ids, alone = tokens()[:1, :5], output(name, tokens()[:1, :5])
    pad, real = jnp.full((1, 4), V - 1), jnp.ones((1, 5), jnp.int32)
    order = (lambda a, b: [a, b]) if side == 'right' else (lambda a, b: [b, a])
    padded = output(name, jnp.concatenate(order(ids, pad), 1), segments=jnp.concatenate(order(real, 0 * pad), 1))
    close(padded[:, :5] if side == 'right' else padded[:, 4:], alone)
    assert np.isfinite(padded).all()


@every_encoder
def test_packed_texts_equal_separate_texts(name):
    row, segments = tokens()[:1], jnp.array([[1] * 5 + [2] * 5 + [0] * 2])
    packed = output(name, row, segments=segments)
    for start in (0, 5):
        close(packed[:, start : start + 5], output(name, row[:, start : start + 5]))


@every_encoder
def test_every_token_sees_both_sides(name):
    ids = tokens()
    plain = output(name, ids, method='hidden')
    for at in (0, T - 1):
        changed = output(name, ids.at[:, at].set((ids[:, at] + 1) % V), method='hidden')
        assert np.abs(changed - plain).max(-1).min() > 1e-4


# -- encoder-decoders


@every_seq2seq
def test_targets_are_causal_and_read_the_source(name):
    source, target = inputs(name)
    plain = output(name, source, target)
    changed = output(name, source, target.at[:, 6].set((target[:, 6] + 1) % V))
    close(changed[:, :6], plain[:, :6])
    assert np.abs(changed[:, 6:9] - plain[:, 6:9]).max(-1).min() > 1e-4  # two convolutions of width 3 reach no further
    other = output(name, source.at[:, 2].set((source[:, 2] + 1) % V), target)
    assert np.abs(other - plain).max(-1).min() > 1e-5


@every_seq2seq
@pytest.mark.parametrize('side', ['right', 'left'])
def test_source_padding_changes_nothing(name, side):
    source, target = inputs(name)
    pad = jnp.full((B, 3), V - 1)
    both = [source, pad] if side == 'right' else [pad, source]
    real = [jnp.ones_like(source), 0 * pad] if side == 'right' else [0 * pad, jnp.ones_like(source)]
    padded = output(name, jnp.concatenate(both, 1), target, source_segments=jnp.concatenate(real, 1))
    close(padded, output(name, source, target))


@packing_seq2seq
def test_packed_pairs_equal_separate_pairs(name):
    source, target = inputs(name)
    segments = {'source_segments': jnp.array([[1] * 4 + [2] * 4 + [0]]), 'segments': jnp.array([[1] * 5 + [2] * 6 + [0]])}
    packed = output(name, source[:1], target[:1], **segments)
    close(packed[:, :5], output(name, source[:1, :4], target[:1, :5]))
    close(packed[:, 5:11], output(name, source[:1, 4:8], target[:1, 5:11]))
    assert np.isfinite(packed).all()


@every_seq2seq
def test_cached_decoding_equals_teacher_forcing(name):
    model, params, (source, target) = model_of(name), params_of(name), inputs(name)
    segments = jnp.array([[1] * S, [1] * (S - 3) + [0] * 3])
    full = output(name, source, target, source_segments=segments)
    memory = forward(model, params, source, segments=segments, method='encode')
    cache, got = model.init_cache(B, T), []
    for start, end in ((0, 1), (1, 5), (5, 6), (6, T)):
        hidden, cache = forward(model, params, target[:, start:end], memory, cache=cache, method='hidden')
        got.append(forward(model, params, hidden, memory, method='unembed'))
    close(jnp.concatenate(got, axis=1), full)
    rows = jnp.array([1, 1, 0])
    hidden, _ = forward(model, params, target[rows, :4], memory.take(rows), cache=model.init_cache(3, 4), method='hidden')
    close(forward(model, params, hidden, memory.take(rows), method='unembed'), full[rows, :4])


# -- all


@some_families
def test_stacked_layers_equal_rolled_ones_and_remat(name, monkeypatch):
    params, args = params_of(name), inputs(name)

    def loss(model, params):
        out = model.apply(params, *args)
        return jnp.mean(jnp.square(out[0] if name in DECODERS else out))

    want = jax.jit(jax.value_and_grad(partial(loss, model_of(name))))(params)
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')  # a loop instead of its unrolled body: what accelerators run
    got = jax.jit(jax.value_and_grad(partial(loss, model_of(name, remat='full'))))(params)
    # Relative to each gradient's size: float32 rounding in another order of the same operations. Gradients that are zero but for
    # rounding (of key biases, which softmax ignores) are measured by a hundredth of the largest.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * max(np.abs(b).max(), largest / 100)), got, want)


@pytest.mark.parametrize(
    'name',
    [name if name in DIFFERENT and name not in ('bert', 'mixtral') else pytest.param(name, marks=pytest.mark.full) for name in ATTENDING],
)
def test_bfloat16_computes_with_float32_parameters_softmax_and_norms(name):
    model, args = model_of(name, dtype='bfloat16'), inputs(name)
    params = {'params': jax.jit(model.init)(jax.random.key(0), *args)['params']}  # as its paper draws them: T5's queries are small
    half, sown = forward(model, params, *args, mutable=('intermediates',))
    half = half[0] if name in DECODERS else half
    if name in SEQ2SEQ or name in DECODERS or model.head is not None:
        assert half.dtype == jnp.float32  # scores
    kinds = {jax.tree_util.keystr(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(sown)}
    assert {kind for path, kind in kinds.items() if 'weights' in path} == {jnp.dtype('float32')}  # attention's, which can be asked for
    for path, leaf in jax.tree_util.tree_leaves_with_path(sown):
        if 'weights' in jax.tree_util.keystr(path):
            np.testing.assert_allclose(np.asarray(leaf).sum(-1), 1, rtol=1e-5)
    assert {kind for path, kind in kinds.items() if 'hidden' in path} == {jnp.dtype('bfloat16')}
    exact = forward(model_of(name), params, *args)
    exact = exact[0] if name in DECODERS else exact
    # bfloat16 keeps 8 bits: 0.4 % per operation, 1 to 3 % of the outputs' size after a few layers (root mean squares).
    error, size = (float(jnp.sqrt(jnp.mean(jnp.square(x)))) for x in (half.astype(jnp.float32) - exact, exact))
    assert error < 0.05 * size
