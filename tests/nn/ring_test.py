"""Ring attention on eight devices: outputs and gradients of plain attention, under every mask and feature; what is sent, and what is computed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.nn import kernels
from lmx.nn.attention import attend
from lmx.nn.dropout import Drawn
from lmx.nn.masks import Before, Causal, Segments, Window
from lmx.run.dry_run import collectives
from lmx.train import shard
from lmx.types import BadInput

B, T, H, K, C = 4, 32, 4, 2, 8


def ids() -> jnp.ndarray:
    """Packed segments of unequal length, padding behind them."""
    draw = np.random.default_rng(1)
    rows = [np.repeat(np.arange(1, 5), draw.multinomial(T - 4, [0.4, 0.1, 0.2, 0.3]) + 1)[: T - row] for row in range(B)]
    return jnp.asarray([np.pad(row, (0, T - len(row))) for row in rows], jnp.int32)


MASKS = {
    'none': lambda: None,
    'causal': Causal,
    'window': lambda: Causal() & Window(5),
    'segments': lambda: Segments(ids(), ids()),
    'packed': lambda: Causal() & Segments(ids(), ids()),
    'prefix': lambda: Causal() | Before(jnp.array([3, 0, 20, 32], jnp.int32)),
    'all': lambda: Causal() & Window(9) & Segments(ids(), ids()),
}


FEATURES = {
    'softcap': {'softcap': 2.0},
    'bias': {'bias': jnp.asarray(np.random.default_rng(3).normal(size=(1, H, T, T)), jnp.float32)},
    'scale': {'scale': 0.3},
}


def arrays(length: int = T) -> list[jnp.ndarray]:
    """Queries, of which there may be fewer, and keys and values."""
    draw = np.random.default_rng(0)
    return [jnp.asarray(draw.normal(size=(B, size, heads, C)), jnp.float32) for size, heads in ((length, H), (T, K), (T, K))]


def both(sizes, mask, *arrays, bias=None, **given):
    """((output, gradients) of plain attention on one device, the same of the ring on a mesh)."""
    weights = jnp.asarray(np.random.default_rng(2).normal(size=arrays[0].shape), jnp.float32)

    def run(function):
        def loss(q, k, v, bias, mask):
            out = function(q, k, v, mask=mask, bias=bias, **given)
            return jnp.sum(out * weights), out

        argnums = (0, 1, 2) if bias is None else (0, 1, 2, 3)
        grads, out = jax.jit(jax.grad(loss, argnums, has_aux=True))(*arrays, bias, mask)
        return out, grads

    plain = run(attend)
    with jax.set_mesh(shard.make_mesh(sizes)):
        return plain, run(lambda *qkv, **given: kernels.attend('ring', *qkv, **given))


def assert_equal(expected, found):
    # float32; the running softmax divides once, at the end
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), found, expected)


@pytest.mark.parametrize(
    ('sizes', 'mask'),
    [
        pytest.param(sizes, mask, marks=() if mask in sooner else pytest.mark.full)
        for sizes, sooner in (({'context': 8}, ('none', 'prefix', 'all')), ({'data': 2, 'context': 2, 'tensor': 2}, ('segments', 'packed')))
        for mask in MASKS
    ],
)
def test_the_ring_equals_plain_attention(sizes, mask):
    assert_equal(*both(sizes, MASKS[mask](), *arrays()))


@pytest.mark.parametrize('mask', [pytest.param('segments', marks=pytest.mark.full), 'packed'])
@pytest.mark.parametrize('feature', [pytest.param('scale', marks=pytest.mark.full), 'softcap', 'bias'])
def test_with_every_feature(feature, mask):
    assert_equal(*both({'data': 2, 'context': 4}, MASKS[mask](), *arrays(), **FEATURES[feature]))


def test_queries_of_another_length():
    """Cross-attention: fewer queries than keys."""
    assert_equal(*both({'data': 2, 'context': 4}, Segments(ids()[:, :8], ids()), *arrays(8)))


@pytest.mark.parametrize('mask', [pytest.param('none', marks=pytest.mark.full), 'packed'])
def test_dropped_weights_are_the_same_in_the_backward_pass(mask):
    q, k, v = arrays()
    weights = jnp.asarray(np.random.default_rng(2).normal(size=q.shape), jnp.float32)
    along = jnp.asarray(np.random.default_rng(4).normal(size=q.shape), jnp.float32)

    def loss(q, v, key):
        return jnp.sum(weights * kernels.attend('ring', q, k, v, mask=MASKS[mask](), dropout=Drawn(0.5, key)))

    with jax.set_mesh(shard.make_mesh({'data': 2, 'context': 4})):
        both = jax.jit(jax.value_and_grad(loss, (0, 1)))
        value, (grad_q, grad_v) = both(q, v, jax.random.key(0))
        other = both(q, v, jax.random.key(1))[0]
        higher, lower = (both(q + step * along, v, jax.random.key(0))[0] for step in (1e-2, -1e-2))
    assert not np.isclose(value, other, rtol=1e-2)
    np.testing.assert_allclose(jnp.vdot(grad_v, v), value, rtol=1e-4)  # the output is linear in the values
    np.testing.assert_allclose(jnp.vdot(grad_q, along), (higher - lower) / 2e-2, rtol=1e-2)  # central differences of 1e-2


def test_alone_it_is_plain_attention():
    q, k, v = arrays()
    np.testing.assert_array_equal(kernels.attend('ring', q, k, v, mask=Causal()), attend(q, k, v, mask=Causal()))


@pytest.mark.optimized
@pytest.mark.parametrize('mask', ['none', 'packed'])
def test_keys_travel_and_nothing_is_gathered(mask):
    layout = shard.make_mesh({'context': 8})
    place = jax.sharding.NamedSharding(layout, jax.sharding.PartitionSpec(None, 'context'))
    placed = [jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place) for array in arrays()]

    def loss(q, k, v):
        return jnp.sum(kernels.attend('ring', q, k, v, mask=MASKS[mask]()) ** 2)

    with jax.set_mesh(layout):
        compiled = jax.jit(jax.grad(loss, (0, 1, 2)), out_shardings=place).lower(*placed).compile()
    text = compiled.as_text()
    (operation, (_, sent)), *others = collectives(text).items()
    assert (operation, others) == ('collective-permute', [])
    block = 2 * 4 * B * K * C * T // 8  # bytes of a device's keys and values
    around = 3 * 8 * block  # once forward, and once backward with their gradients
    assert around - block <= sent <= around * (1 if mask == 'none' else 1.5)  # nobody needs the last keys back; dealing out comes on top
    shapes = {tuple(map(int, found.split(','))) for found in re.findall(r'f32\[([\d,]+)\]', text)}
    assert not any(T in shape for shape in shapes)  # no device has the whole length of anything: neither keys nor scores


def products(jaxpr) -> int:
    """The multiplications of all products that one device computes; of branches it takes one, here the larger."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == 'dot_general':
            total += int(np.prod(eqn.outvars[0].aval.shape)) * eqn.invars[0].aval.shape[eqn.params['dimension_numbers'][0][0][0]]
        inner = [products(part) for value in eqn.params.values() for part in subjaxprs(value)]
        total += max(inner, default=0) if eqn.primitive.name == 'cond' else sum(inner) * eqn.params.get('length', 1)
    return total


def subjaxprs(value):
    for part in value if isinstance(value, (tuple, list)) else [value]:
        part = getattr(part, 'jaxpr', part)
        if hasattr(part, 'eqns'):
            yield part


def test_causal_steps_compute_half():
    """Of a device's 8 blocks of scores its own is whole; of the 7 others it computes the half that the mask allows, and nothing else."""
    with jax.set_mesh(shard.make_mesh({'context': 8})):
        full, causal = (
            products(jax.make_jaxpr(lambda q, k, v, mask=mask: kernels.attend('ring', q, k, v, mask=mask))(*arrays()).jaxpr)
            for mask in (None, Causal())
        )
    assert full == 8 * 2 * B * H * (T // 8) ** 2 * C  # scores and sums of values
    assert causal / full == (1 + 7 / 2) / 8


@pytest.mark.parametrize(('mask', 'length', 'pieces'), [(Causal(), 24, 16), (None, 20, 8)])
def test_lengths_that_do_not_split_are_refused(mask, length, pieces):
    q, k, v = (x[:, :length] for x in arrays())
    with jax.set_mesh(shard.make_mesh({'context': 8})), pytest.raises(BadInput, match=f'into {pieces} pieces, and {length} is no multiple'):
        kernels.attend('ring', q, k, v, mask=mask)
