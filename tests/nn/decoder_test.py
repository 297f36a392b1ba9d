"""The assembled decoder: what it may see, and that packing, caching, stacking and rematerialisation change nothing."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lmx import models
from lmx.nn import cache as caches
from lmx.nn import stack
from lmx.nn.attention import Attention, Context
from lmx.nn.block import Block
from lmx.nn.decoder import CausalDecoder
from lmx.nn.masks import Causal, Window
from lmx.nn.mlp import GatedMlp
from lmx.nn.norms import RMSNorm
from lmx.nn.positions import Learned, Rotary
from lmx.types import BadInput

B, T, V, D, L = 2, 12, 19, 16, 2
gpt = partial(models.gpt, vocab_size=V, dim=D, num_layers=L, num_heads=4, max_length=32)


def llama_like(window: int | None = None) -> CausalDecoder:
    """Other parts in the same frame: RMSNorm, SwiGLU, rotary positions, grouped heads, untied, perhaps a window."""
    attention = partial(
        Attention,
        num_heads=4,
        num_kv_heads=2,
        positions=Rotary(500.0),
        use_bias=False,
        mask=None if window is None else Window(window),
    )
    block = partial(Block, attention=attention, mlp=partial(GatedMlp, mlp_dim=24), norm=RMSNorm)
    empty = partial(caches.empty, num_layers=L, num_kv_heads=2, head_dim=D // 4)
    return CausalDecoder(vocab_size=V, dim=D, num_layers=L, block=block, norm=RMSNorm, empty_cache=empty, tied=False)


MODELS = {
    'learned': gpt(),
    'rotary': gpt(positions=Rotary(), num_kv_heads=2, use_bias=False),
    'llama': llama_like(),
    'window': llama_like(window=3),
}
every_model = pytest.mark.parametrize('model', MODELS.values(), ids=MODELS.keys())


def tokens(seed: int = 0, length: int = T) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(seed).integers(0, V, (B, length), np.int32))


@cache
def params_of(model):
    """Fresh weights, all kernels of one size, so that attention is neither uniform nor a choice of one."""
    params = jax.jit(model.init)(jax.random.key(0), tokens())['params']
    return {'params': jax.tree.map(lambda x: 0.3 * x / x.std() if x.ndim == 3 else x, params)}


@partial(jax.jit, static_argnums=0, static_argnames='method')
def forward(model, params, ids, **kwargs):
    return model.apply(params, ids, **kwargs)


# Equal up to float32 rounding of other products and sums; logits are of order 1.
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


@every_model
def test_no_token_sees_the_future(model):
    """The gradient of the output at t with respect to the embedding behind t is exactly zero, and before it is not."""
    params, ids = params_of(model)['params'], jnp.arange(T)[None]  # one row of the table per place

    def hidden(table):
        return model.apply({'params': {**params, 'embed': {'embedding': table}}}, ids, method='hidden')[0][0]

    direction = jax.random.normal(jax.random.key(1), (D,))  # the norm fixes the sum of squares, so a random direction
    jacobian = jax.jit(jax.jacrev(lambda table: hidden(table) @ direction))(jax.random.normal(jax.random.key(2), (V, D)))
    reach = np.abs(jacobian).sum(-1)[:, :T]  # [T out, T in]
    distance = np.subtract.outer(np.arange(T), np.arange(T))
    furthest = 2 * L if model is MODELS['window'] else T  # a window of 3 reaches two tokens further back in every layer
    np.testing.assert_array_equal(reach > 0, (distance >= 0) & (distance <= furthest))


@every_model
def test_packed_segments_equal_separate_sequences(model):
    params, row = params_of(model), tokens()[:1]
    segments, positions = jnp.array([[1] * 5 + [2] * 5 + [0] * 2]), jnp.array([[*range(5), *range(5), *range(2)]])
    packed, none = forward(model, params, row, segments=segments, positions=positions)
    assert none is None
    for start in (0, 5):
        close(packed[:, start : start + 5], forward(model, params, row[:, start : start + 5])[0])
    assert np.isfinite(packed).all()


@every_model
def test_cached_decoding_equals_the_full_forward(model):
    params, ids = params_of(model), tokens()
    full, _ = forward(model, params, ids)
    cache, got = model.init_cache(B, T + 3), []
    for start, end in ((0, 5), (5, 10), (10, 11), (11, 12)):
        logits, cache = forward(model, params, ids[:, start:end], cache=cache)
        got.append(logits)
    close(jnp.concatenate(got, axis=1), full)
    np.testing.assert_array_equal(cache.length_B, [T, T])


@pytest.mark.parametrize('side', ['right', 'left'])
@every_model
def test_ragged_prompts_share_a_cache(model, side):
    """Rows of 5 and 3 tokens, padded with garbage: padding takes no slot, is never seen, and the rows go on as if alone."""
    params, ids = params_of(model), tokens()
    full, _ = forward(model, params, ids)
    lengths = np.array([5, 3])
    width = 6
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
    assert np.isfinite(logits).all()


def test_cache_rows_can_be_taken_and_rewound():
    model = MODELS['rotary']
    params, ids = params_of(model), tokens()
    full, _ = forward(model, params, ids)
    _, cache = forward(model, params, ids[:, :6], cache=model.init_cache(B, T))
    _, astray = forward(model, params, tokens(1, 3), cache=cache)
    logits, _ = forward(model, params, ids[:, 6:8], cache=astray.rewind(jnp.array([6, 6])))
    close(logits, full[:, 6:8])
    swapped, _ = forward(model, params, ids[jnp.array([1, 0, 1]), 6:8], cache=cache.take(jnp.array([1, 0, 1])))
    close(swapped, full[jnp.array([1, 0, 1]), 6:8])


@pytest.mark.parametrize('model', [MODELS['learned'], MODELS['llama']], ids=['learned', 'llama'])
def test_stacked_layers_equal_a_loop_and_remat(model, monkeypatch):
    params, ids = params_of(model), tokens()

    def loss(model, params):
        return jnp.sum(jnp.square(forward(model, params, ids)[0]))

    def looped(params):
        """The same parameters in a Python loop over single layers."""
        bound, own = model.bind(params), params['params']
        x = bound.embed(ids)
        if 'position_embed' in own:
            x = x + bound.position_embed(jnp.arange(T)[None])
        context = Context(positions_BT=jnp.arange(T)[None], index_BT=jnp.arange(T)[None], mask=Causal())
        for layer in range(L):
            x, _ = model.block().apply({'params': jax.tree.map(lambda p: p[layer], own['blocks'])}, x, context)  # noqa: B023
        return jnp.sum(jnp.square(bound.unembed(bound.final_norm(x))))

    want = jax.jit(jax.value_and_grad(looped))(params)
    for name in ('unrolled', 'full', 'dots', 'rolled'):
        if name == 'rolled':  # what accelerators run
            monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
        variant = model.clone(remat=name if name in ('full', 'dots') else None)
        got = jax.jit(jax.value_and_grad(partial(loss, variant)))(params)
        # Relative to each gradient's size: float32 rounding in another order of the same operations.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * (1 + np.abs(b).max())), got, want)


def test_dropout_rate_may_be_traced_under_vmap_scan_and_remat():
    ids = tokens()
    params = params_of(gpt())

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    def grads(rate, key):
        model = gpt(dropout_rate=rate, remat='full')
        return jax.value_and_grad(lambda p: jnp.sum(model.apply(p, ids, rngs={'dropout': key})[0] ** 2))(params)

    values, gradients = grads(jnp.array([0.0, 0.3, 0.6]), jax.random.key(3))
    assert len(set(np.asarray(values).tolist())) == 3
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    static = gpt(dropout_rate=0.3)
    alone = jnp.sum(forward(static, params, ids, rngs={'dropout': jax.random.key(3)})[0] ** 2)
    np.testing.assert_allclose(values[1], alone, rtol=1e-5)  # the same masks; sums in another order
    np.testing.assert_allclose(values[0], jnp.sum(forward(gpt(), params, ids)[0] ** 2), rtol=1e-5)


def test_dropout_is_on_exactly_with_a_key():
    model = gpt(dropout_rate=0.5)
    params, ids = params_of(model), tokens()
    np.testing.assert_array_equal(forward(model, params, ids)[0], forward(gpt(), params, ids)[0])
    assert not np.allclose(*(forward(model, params, ids, rngs={'dropout': jax.random.key(k)})[0] for k in range(2)))


def test_every_layer_draws_its_own_dropout():
    """In layers without weights but for output biases of 1 and 10, what a layer adds is its dropout mask."""
    model = gpt(dropout_rate=0.5)
    own = jax.tree.map(jnp.zeros_like, params_of(model)['params']['blocks'])
    own['attention']['out']['bias'] = 10.0 ** jnp.arange(L)[:, None] * jnp.ones((L, D))
    context = Context(positions_BT=jnp.zeros((1, 1), int), index_BT=jnp.zeros((1, 1), int), mask=Causal())

    def layers(bound):
        return stack.scan(bound.blocks, jnp.zeros((1, 1, D)), context, num_layers=L)[0]

    out = nn.apply(layers, model)({'params': {'blocks': own}}, rngs={'dropout': jax.random.key(0)})[0, 0]
    first, second = np.asarray(out) % 10 > 1, np.asarray(out) >= 20  # what is kept counts twice
    assert set(np.asarray(out).tolist()) <= {0.0, 2.0, 20.0, 22.0}
    assert first.any()
    assert second.any()
    assert (first != second).any()


@pytest.mark.parametrize('rate', [1.0, -0.1, 3])
def test_a_dropout_rate_outside_its_range_is_refused(rate):
    with pytest.raises(BadInput, match=r'dropout_rate .* not in \[0, 1\)'):
        gpt(dropout_rate=rate).init(jax.random.key(0), tokens())


def test_bfloat16_computes_with_float32_parameters_and_logits():
    model = gpt(dtype='bfloat16')
    params, ids = params_of(model), tokens()
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}
    (hidden, _), (logits, _) = (forward(model, params, ids, method=name) for name in ('hidden', None))
    assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    assert model.init_cache(B, T).layers.keys.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: 0.4 % per operation, a few percent of the largest logit after three layers.
    exact, _ = forward(gpt(), params, ids)
    assert np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()


def test_what_is_too_long_for_learned_positions_is_refused():
    model = gpt(positions=Learned(8))
    with pytest.raises(BadInput, match='the input has 12 tokens, the limit is max_length 8'):
        model.init(jax.random.key(0), tokens())
    with pytest.raises(BadInput, match='the cache has 9 slots, the limit is max_length 8'):
        model.init_cache(B, 9)
    gpt(positions=Rotary()).init_cache(B, 9999)


def test_an_unknown_remat_policy_is_refused():
    with pytest.raises(BadInput, match="remat 'some' is unknown; there are None, 'full', 'dots'"):
        gpt(remat='some').init(jax.random.key(0), tokens())


def test_an_unknown_token_does_not_pass_unseen():
    model = MODELS['rotary']
    assert np.isnan(model.apply(params_of(model), tokens().at[0, 3].set(V))[0][0, 3]).all()
