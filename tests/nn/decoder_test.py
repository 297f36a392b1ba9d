"""The assembled decoder: what it may see, and that packing, caching, stacking and rematerialisation change nothing."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx import models
from lmx.nn.attention import Context
from lmx.nn.masks import Causal
from lmx.nn.positions import Learned, Rotary
from lmx.types import BadInput

B, T, V, D, L = 2, 12, 19, 16, 2
gpt = partial(models.gpt, vocab_size=V, dim=D, num_layers=L, num_heads=4, max_length=32)


MODELS = {
    'learned': gpt(),
    'rotary': gpt(positions=Rotary(), num_kv_heads=2, use_bias=False),
    'window': models.mistral(vocab_size=V, dim=D, num_layers=L, num_heads=4, num_kv_heads=2, mlp_dim=24, window=3),
}


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


def test_stacked_layers_equal_a_loop_and_what_remat_keeps():
    model = gpt()
    params, ids = params_of(model), tokens()

    def loss(model, params):
        return jnp.sum(jnp.square(forward(model, params, ids)[0]))

    def looped(params):
        """The same parameters in a Python loop over single layers."""
        own, bound = params['params'], model.bind(params)
        layers, place = own['decoder'], jnp.arange(T)[None]
        x = bound.embed(ids)
        if 'position_embed' in layers:
            x = x + layers['position_embed']['embedding'][:T]
        stack = model.stack()
        for layer in range(L):
            context = Context(positions_BT=place, index_BT=place, mask=Causal(), layer=layer)
            x, _ = stack.block().apply({'params': jax.tree.map(lambda p: p[layer], layers['blocks'])}, x, context)  # noqa: B023
        return jnp.sum(jnp.square(bound.unembed(stack.norm().apply({'params': layers['final_norm']}, x))))

    want = jax.jit(jax.value_and_grad(looped))(params)
    for remat in (None, 'dots'):
        got = jax.jit(jax.value_and_grad(partial(loss, gpt(remat=remat))))(params)
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
    own = jax.tree.map(jnp.zeros_like, params_of(model)['params'])
    own['decoder']['blocks']['attention']['out']['bias'] = 10.0 ** jnp.arange(L)[:, None] * jnp.ones((L, D))
    _, sown = model.apply({'params': own}, tokens(), rngs={'dropout': jax.random.key(0)}, mutable=['intermediates'])
    out = sown['intermediates']['decoder']['blocks']['hidden'][0][-1, 0, 0]
    first, second = np.asarray(out) % 10 > 1, np.asarray(out) >= 20  # what is kept counts twice
    assert set(np.asarray(out).tolist()) <= {0.0, 2.0, 20.0, 22.0}
    assert first.any()
    assert second.any()
    assert (first != second).any()


@pytest.mark.parametrize('rate', [1.0, -0.1, 3])
def test_a_dropout_rate_outside_its_range_is_refused(rate):
    with pytest.raises(BadInput, match=r'dropout_rate .* not in \[0, 1\)'):
        gpt(dropout_rate=rate).init(jax.random.key(0), tokens())


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
