"""Attention, masks, positions and norms as pure functions, against PyTorch's own where it has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.nn.attention import Attention, attend, attention_weights
from lmx.nn.masks import Before, Causal, Segments, Window
from lmx.nn.norms import layer_norm, rms_norm
from lmx.nn.positions import Alibi, Rotary
from lmx.types import BadInput

B, T, S, H, C = 2, 7, 9, 4, 8


def random(*shape: int, seed: int = 0) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng((seed, *shape)).normal(size=shape), jnp.float32)


@pytest.mark.parity
@pytest.mark.parametrize('groups', [4, 2, 1])
@pytest.mark.parametrize('causal', [True, False])
def test_attend_equals_pytorch(groups, causal):
    torch = pytest.importorskip('torch')
    keys = T if causal else S
    q, k, v = random(B, T, H, C), random(B, keys, groups, C, seed=1), random(B, keys, groups, C, seed=2)
    heads_first = [torch.tensor(np.asarray(x)).transpose(1, 2) for x in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=causal, enable_gqa=True)
    got = attend(q, k, v, mask=Causal() if causal else None)
    np.testing.assert_allclose(got, want.transpose(1, 2).numpy(), atol=1e-5)  # float32 sums in another order


def test_grouped_heads_equal_repeated_heads():
    q, k, v = random(B, T, H, C), random(B, T, 2, C, seed=1), random(B, T, 2, C, seed=2)
    repeated = attend(q, jnp.repeat(k, 2, axis=2), jnp.repeat(v, 2, axis=2), mask=Causal())
    np.testing.assert_allclose(attend(q, k, v, mask=Causal()), repeated, atol=1e-6)  # the same sums, in another product


def test_weights_are_a_distribution_over_what_the_mask_allows():
    mask = Causal() & Window(3)
    weights = attention_weights(random(B, T, H, C), random(B, T, H, C, seed=1), mask=mask)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    index = np.arange(T)
    allowed = (index[None] <= index[:, None]) & (index[:, None] - index[None] < 3)
    np.testing.assert_array_equal(np.asarray(weights > 0), np.broadcast_to(allowed, weights.shape))


def test_a_query_that_sees_nothing_gets_zero_and_finite_gradients():
    ids = jnp.array([[0, 0, 1, 1, 2, 0, 0]] * B)
    q, k, v = (random(B, T, H, C, seed=seed) for seed in range(3))

    def out(q, k, v):
        return attend(q, k, v, mask=Causal() & Segments(ids, ids))

    padding = np.asarray(ids[0] == 0)
    assert not np.any(out(q, k, v)[:, padding])
    assert np.all(np.any(out(q, k, v)[:, ~padding], axis=(-1, -2)))
    grads = jax.grad(lambda *x: jnp.sum(jnp.square(out(*x))), argnums=(0, 1, 2))(q, k, v)
    assert all(np.isfinite(g).all() for g in grads)


def test_the_prefix_is_seen_by_everyone():
    mask = (Causal() | Before(jnp.array([2, 5]))).dense(jnp.arange(T)[None], jnp.arange(T)[None])
    index = np.arange(T)
    want = [(index[None] <= index[:, None]) | (index[None] < prefix) for prefix in (2, 5)]
    np.testing.assert_array_equal(mask[:, 0], want)


def test_masks_pass_through_jit_and_scan():
    ids = jnp.array([[1, 1, 2, 2]])
    mask = Causal() & Segments(ids, ids) & Window(2)
    index = jnp.arange(4)[None]
    inside = jax.jit(lambda mask: jax.lax.scan(lambda carry, _: (carry, mask.dense(index, index)), 0, None, length=1)[1][0])(mask)
    np.testing.assert_array_equal(inside, mask.dense(index, index))


def test_softmax_is_float32_in_bfloat16():
    q, k = random(1, 1, 1, 4).astype(jnp.bfloat16), random(1, 300, 1, 4, seed=1).astype(jnp.bfloat16)
    weights = attention_weights(q, k)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)  # 300 numbers in bfloat16 would add up to 1 +- 0.01
    assert attend(q, k, k).dtype == jnp.bfloat16


@pytest.mark.parametrize('base', [10_000.0, 500.0])
def test_rotary_scores_depend_on_distance_alone(base):
    rotary = Rotary(base)
    q, k = random(1, 1, 1, C), random(1, 1, 1, C, seed=1)

    def score(i, j):
        turned = [rotary.rotate(x, jnp.array([[at]])) for x, at in ((q, i), (k, j))]
        return float(jnp.vdot(*turned))

    np.testing.assert_allclose(score(3, 1), score(40, 38), atol=1e-4)  # angles of 40 radians in float32: 4e-6 each, times |q||k|
    assert abs(score(3, 1) - score(6, 1)) > 1e-2
    np.testing.assert_allclose(jnp.linalg.norm(rotary.rotate(q, jnp.array([[17]]))), jnp.linalg.norm(q), rtol=1e-6)


@pytest.mark.parity
def test_rotary_equals_llama():
    llama = pytest.importorskip('transformers.models.llama.modeling_llama')
    torch = pytest.importorskip('torch')
    x, positions = random(B, T, H, C), np.arange(T)[None] + np.array([[0], [5]])
    angle = positions[..., None] * (10_000.0 ** (-np.arange(0, C, 2) / C))
    angle = torch.tensor(np.concatenate([angle, angle], -1), dtype=torch.float32)
    want, _ = llama.apply_rotary_pos_emb(*[torch.tensor(np.asarray(x)).transpose(1, 2)] * 2, angle.cos(), angle.sin())
    # Angles come from float64 there.
    np.testing.assert_allclose(Rotary().rotate(x, jnp.asarray(positions)), want.transpose(1, 2).numpy(), atol=1e-5)


@pytest.mark.parity
def test_norms_equal_pytorch():
    torch = pytest.importorskip('torch')
    x, scale, bias = 3 * random(B, T, 16) + 1, random(16, seed=1), random(16, seed=2)
    x_, scale_, bias_ = (torch.tensor(np.asarray(a)) for a in (x, scale, bias))
    # Statistics in float32, summed in another order.
    np.testing.assert_allclose(layer_norm(x, scale, bias, 1e-5), torch.nn.functional.layer_norm(x_, (16,), scale_, bias_), atol=1e-5)
    np.testing.assert_allclose(rms_norm(x, scale, 1e-6), torch.nn.functional.rms_norm(x_, (16,), scale_, 1e-6), atol=1e-5)
    assert layer_norm(x.astype(jnp.bfloat16), scale, bias, 1e-5).dtype == jnp.bfloat16


def test_heads_that_do_not_divide_are_refused():
    from lmx.nn.attention import Context

    context = Context(positions_BT=jnp.arange(T)[None], index_BT=jnp.arange(T)[None], mask=Causal())
    with pytest.raises(BadInput, match='dim 16 is not divisible by num_heads 3'):
        Attention(num_heads=3).init(jax.random.key(0), random(B, T, 16), context)
    with pytest.raises(BadInput, match='num_heads 4 is not divisible by num_kv_heads 3'):
        Attention(num_heads=4, num_kv_heads=3).init(jax.random.key(0), random(B, T, 16), context)


@pytest.mark.parity
@pytest.mark.parametrize('heads', [1, 4, 6, 8])
def test_alibi_equals_blooms(heads):
    """Up to what is the same for all keys of a query, which softmax ignores."""
    torch, bloom = pytest.importorskip('torch'), pytest.importorskip('transformers.models.bloom.modeling_bloom')
    theirs = bloom.build_alibi_tensor(torch.ones(1, T), heads, torch.float32).reshape(heads, 1, T).numpy()
    index = jnp.arange(T)[None]
    ours = np.asarray(Alibi(heads).bias(index, index))[0]
    for query in range(T):
        seen = slice(0, query + 1)
        shift = ours[:, query, seen] - theirs[:, 0, seen]
        np.testing.assert_allclose(shift - shift[:, :1], 0, atol=1e-6)
