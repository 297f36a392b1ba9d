"""Every implementation of attention does what the reference does, or says why not; through one table of masks and features.

No GPU and no TPU is needed: the TPU's kernel runs in Pallas' interpreter, and cuDNN's call runs as the same call of
`jax.nn.dot_product_attention` with XLA behind it, and is lowered for CUDA.
"""

import dataclasses
import itertools
import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.nn import kernels
from lmx.nn.attention import Attention, Context, attend
from lmx.nn.kernels import IMPLEMENTATIONS, supported
from lmx.nn.masks import Before, Causal, Segments, Window
from lmx.types import BadInput

B, T, H, K, C = 2, 256, 2, 1, 8


def random(*shape: int, seed: int = 0, dtype=jnp.float32) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng((seed, *shape)).normal(size=shape), dtype)


def segments(length: int = T) -> Segments:
    """Packed rows: segments end within and at the edge of blocks of 128, one row ends in padding."""
    ids = np.ones((B, length), np.int32)
    ids[0, 50:128], ids[0, 128:] = 2, 3
    ids[1, 90:150], ids[1, 150:] = 2, 0
    return Segments(jnp.asarray(ids), jnp.asarray(ids))


LEAVES = {'causal': Causal(), 'window': Window(40), 'segments': segments(), 'before': Before(jnp.array([100, 0]))}
MASKS = {'none': None}
for size in range(1, 5):
    for names in itertools.combinations(LEAVES, size):
        first, *others = (LEAVES[name] for name in names)
        for other in others:
            first = first & other
        MASKS['&'.join(names)] = first
MASKS['causal|before'] = Causal() | LEAVES['before']
MASKS['(causal|before)&segments'] = (Causal() | LEAVES['before']) & segments()
MASKS['causal&(window|before)'] = Causal() & (Window(40) | LEAVES['before'])

# The same calls on a CPU: what is replaced is the platform, and the precision with which one can compare.
HERE = {
    'xla': IMPLEMENTATIONS['xla'],
    'cudnn': dataclasses.replace(IMPLEMENTATIONS['cudnn'], platforms=(), dtypes=(), run=partial(kernels.cudnn, backend='xla')),
    'tpu': dataclasses.replace(IMPLEMENTATIONS['tpu'], platforms=(), run=partial(kernels.splash, block=128, interpret=True)),
    'ring': IMPLEMENTATIONS['ring'],  # on one device; on eight in ring_test
}
TPU_REFUSES = {name for name in MASKS if '|' in name}


def inputs(heads: int = H, length: int = T, keys: int = T, channels: int = C, dtype=jnp.float32) -> tuple[jnp.ndarray, ...]:
    shapes = (B, length, heads, channels), (B, keys, K, channels), (B, keys, K, channels)
    return tuple(random(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes))


def assert_equal(implementation, *arrays, atol=2e-6, **features):
    """To the rounding of float32 sums of at most T terms of size 1."""
    got, want = kernels.attend(implementation, *arrays, **features), attend(*arrays, **features)
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(want, np.float32), atol=atol)


def test_the_reference_is_in_the_table():
    assert IMPLEMENTATIONS['xla'].run is attend
    assert set(IMPLEMENTATIONS) == set(HERE)
    for mask in MASKS.values():
        assert supported('xla', (B, T, H, C), (B, T, K, C), jnp.float32, mask, bias=1, softcap=1, dropout=1) is None


@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('name', ['cudnn', 'tpu'])
def test_every_mask_equals_the_reference_or_is_refused(name, mask):
    arrays = inputs()
    reason = supported(HERE[name], arrays[0].shape, arrays[1].shape, jnp.float32, MASKS[mask])
    assert (reason is not None) == (name == 'tpu' and mask in TPU_REFUSES)
    if reason is None:
        assert_equal(HERE[name], *arrays, mask=MASKS[mask])
    else:
        with pytest.raises(BadInput, match=re.escape(reason)):
            kernels.attend(HERE[name], *arrays, mask=MASKS[mask])


FEATURES = {
    'bias': {'bias': random(1, H, T, T, seed=3)},
    'broadcast bias': {'bias': random(B, 1, 1, T, seed=3), 'mask': Causal() & Window(40)},
    'softcap': {'softcap': 2.0},
    'dropout': {'dropout': lambda weights: weights * 0.5},
    'scale': {'scale': 0.3, 'mask': Causal()},
    'own index': {'mask': Causal(), 'q_index': jnp.arange(T)[None] + 1, 'k_index': jnp.arange(T)[None]},
}
DOES = {
    'xla': set(FEATURES),
    'cudnn': {'bias', 'broadcast bias', 'scale'},
    'tpu': {'softcap', 'scale'},
    'ring': set(FEATURES) - {'own index'},
}


@pytest.mark.parametrize('feature', FEATURES)
@pytest.mark.parametrize('name', IMPLEMENTATIONS)
def test_every_feature_equals_the_reference_or_is_refused(name, feature):
    if feature in DOES[name]:
        assert_equal(HERE[name], *inputs(), **FEATURES[feature])
    else:
        with pytest.raises(BadInput, match="or take 'xla'"):
            kernels.attend(HERE[name], *inputs(), **FEATURES[feature])


@pytest.mark.parametrize('mask', ['causal&window', 'causal&segments&before'])
@pytest.mark.parametrize('name', ['cudnn', 'tpu'])
def test_gradients_equal_the_references(name, mask):
    arrays, weights = inputs(), random(B, T, H, C, seed=9)

    def gradients(function):
        return jax.jit(jax.grad(lambda *x: jnp.sum(weights * function(*x, mask=MASKS[mask])), argnums=(0, 1, 2)))(*arrays)

    for got, want in zip(gradients(partial(kernels.attend, HERE[name])), gradients(attend)):
        np.testing.assert_allclose(got, want, atol=2e-5)  # sums over T queries in float32: ten times the outputs' rounding


def test_gradients_of_a_softcap_equal_the_references():
    arrays, weights = inputs(), random(B, T, H, C, seed=9)

    def gradients(function):
        return jax.jit(jax.grad(lambda *x: jnp.sum(weights * function(*x, mask=Causal(), softcap=2.0)), argnums=(0, 1, 2)))(*arrays)

    for got, want in zip(gradients(partial(kernels.attend, HERE['tpu'])), gradients(attend)):
        np.testing.assert_allclose(got, want, atol=2e-5)  # as above


@pytest.mark.parametrize('name', ['cudnn', 'tpu'])
def test_queries_and_keys_of_unequal_number_and_bfloat16(name):
    arrays = inputs(length=128, dtype=jnp.bfloat16)
    mask = Segments(segments().q_ids_BT[:, :128], segments().k_ids_BS) & LEAVES['before']
    assert_equal(HERE[name], *arrays, mask=mask, atol=0.02)  # bfloat16 rounds weights and outputs of size 1 to 2^-8
    assert_equal(HERE[name], *inputs(length=128), mask=Causal())


@pytest.mark.parametrize('name', ['cudnn', 'tpu'])
def test_a_traced_scale(name):
    arrays = inputs()
    got = jax.jit(lambda scale: kernels.attend(HERE[name], *arrays, scale=scale))(0.3)
    np.testing.assert_allclose(got, attend(*arrays, scale=0.3), atol=2e-6)  # rounding of float32


LIMITS = {
    'unknown': ('flash', {}, 'there are xla, cudnn, tpu, ring'),
    'cudnn platform': ('cudnn', {'platform': 'cpu'}, 'runs on gpu, not on cpu'),
    'cudnn dtype': ('cudnn', {'dtype': jnp.float32}, 'not float32: compute in bfloat16'),
    'cudnn head_dim': ('cudnn', {'channels': 12}, 'multiple of 8 up to 128, not 12'),
    'cudnn long head_dim': ('cudnn', {'channels': 256}, 'up to 128, not 256'),
    'cudnn odd length': ('cudnn', {'length': 127, 'mask': segments(127)}, 'even lengths only, not 127'),
    'cudnn heads': ('cudnn', {'heads': 3, 'kv_heads': 2}, 'num_heads 3 is not divisible by num_kv_heads 2'),
    'tpu platform': ('tpu', {'platform': 'gpu'}, 'runs on tpu, not on gpu'),
    'tpu dtype': ('tpu', {'dtype': jnp.float16}, 'not float16'),
    'tpu length': ('tpu', {'length': 100}, 'multiples of 128, not 100 queries'),
    'tpu segments twice': ('tpu', {'mask': segments() & segments()}, 'one mask Segments'),
    'tpu window of each layer': ('tpu', {'mask': Window((4, None))}, 'windows of one size'),
    'tpu query beyond': ('tpu', {'length': 256, 'keys': 128, 'mask': Window(40)}, 'window of 40 behind the last of 128 keys'),
    'tpu traced softcap': ('tpu', {'softcap': jnp.ones(())}, 'takes no traced softcap'),
}


@pytest.mark.parametrize('case', LIMITS)
def test_limits_name_value_limit_and_fix(case):
    name, given, message = LIMITS[case]
    sizes = {'length': 128, 'channels': 8, 'heads': 2, 'kv_heads': 1, **given}
    q_shape = (B, sizes['length'], sizes['heads'], sizes['channels'])
    k_shape = (B, sizes.get('keys', sizes['length']), sizes['kv_heads'], sizes['channels'])
    platform = given.get('platform', {'cudnn': 'cuda', 'tpu': 'tpu'}.get(name))
    dtype = given.get('dtype', jnp.bfloat16)
    reason = supported(name, q_shape, k_shape, dtype, given.get('mask'), None, given.get('softcap'), None, platform)
    assert reason is not None
    assert message in reason
    assert '\n' not in reason
    # What is refused is only that: the same without it is taken.
    if name in IMPLEMENTATIONS:
        plain = {'cudnn': 'cuda', 'tpu': 'tpu'}[name]
        assert supported(name, (B, 128, 2, 8), (B, 128, 1, 8), jnp.bfloat16, Causal(), None, None, None, plain) is None


@pytest.mark.parametrize('name', ['cudnn', 'tpu'])
def test_attention_reaches_the_kernel_and_dropout_that_is_on_is_refused(name):
    x, index = random(1, T, 16), jnp.arange(T)[None]
    context = Context(positions_BT=index, index_BT=index, mask=Causal())
    layer = partial(Attention, num_heads=2, num_kv_heads=1, dropout_rate=0.1)
    params = layer().init(jax.random.key(0), x, context)
    want, _ = layer().apply(params, x, context)
    got, _ = jax.jit(lambda params: layer(implementation=HERE[name]).apply(params, x, context))(params)
    np.testing.assert_allclose(got, want, atol=2e-6)  # rounding of float32
    with pytest.raises(BadInput, match='takes no dropout'):
        layer(implementation=HERE[name]).apply(params, x, context, rngs={'dropout': jax.random.key(1)})


def _cuda_calls(monkeypatch, mask, **features) -> list[tuple[str, dict]]:
    """Names and settings of cuDNN's calls in the program of a forward and backward pass, lowered for CUDA."""
    from jax._src.cudnn import fused_attention_stablehlo

    # The only thing asked of the machine while tracing is the library's version number.
    monkeypatch.setattr(fused_attention_stablehlo, 'check_cudnn_version', lambda: 91000)
    there = dataclasses.replace(IMPLEMENTATIONS['cudnn'], platforms=())
    arrays = inputs(dtype=jnp.bfloat16, channels=64)
    function = jax.jit(jax.grad(lambda *x: jnp.sum(kernels.attend(there, *x, mask=mask, **features)), argnums=(0, 1, 2)))
    text = function.trace(*arrays).lower(lowering_platforms=('cuda',)).as_text()
    calls = re.findall(r'custom_call @(__cudnn\$\w+)\(.*?backend_config = "(.*?)"[,}] ', text)
    return [(target, json.loads(config.replace('\\22', '"'))['cudnn_fmha_backend_config']) for target, config in calls]


CUDNN_CALLS = {
    'none': ('NO_MASK', 0, False),
    'causal': ('CAUSAL', 0, False),
    'causal&window': ('CAUSAL', 40, False),
    'before': ('PADDING', 0, False),
    'causal&before': ('PADDING_CAUSAL', 0, False),
    'causal&segments': ('CAUSAL', 0, True),
    'window': ('NO_MASK', 0, True),
    'causal|before': ('NO_MASK', 0, True),
    'causal&window&before': ('CAUSAL', 0, True),
}


@pytest.mark.parametrize('mask', CUDNN_CALLS)
def test_cudnn_lowers_for_cuda_with_the_masks_that_it_knows(monkeypatch, mask):
    kind, window, dense = CUDNN_CALLS[mask]
    calls = _cuda_calls(monkeypatch, MASKS[mask])
    assert len(calls) == 2  # forward and backward
    for target, config in calls:
        assert config['mask_type'] == kind
        assert config['sliding_window_length'] == window
        assert ('Bias' in target) == dense


@pytest.mark.parametrize('mask', ['none', 'causal&segments&before'])
def test_splash_lowers_for_tpus(mask):
    there = dataclasses.replace(IMPLEMENTATIONS['tpu'], platforms=())
    function = jax.jit(jax.grad(lambda *x: jnp.sum(kernels.attend(there, *x, mask=MASKS[mask])), argnums=(0, 1, 2)))
    text = function.trace(*inputs(dtype=jnp.bfloat16)).lower(lowering_platforms=('tpu',)).as_text()
    assert text.count('custom_call @tpu_custom_call') == 3  # forward, gradient of queries, gradient of keys and values


@pytest.mark.gpu
@pytest.mark.parametrize('mask', CUDNN_CALLS)
def test_cudnn_equals_the_reference_on_a_gpu(mask):
    if jax.default_backend() != 'gpu':
        pytest.skip('needs an NVIDIA GPU')
    arrays = inputs(dtype=jnp.bfloat16, channels=64)
    assert_equal('cudnn', *arrays, mask=MASKS[mask], atol=0.02)  # bfloat16 rounds weights and outputs of size 1 to 2^-8

    def gradients(function):
        return jax.grad(lambda *x: jnp.sum(jnp.square(function(*x, mask=MASKS[mask]).astype(jnp.float32))), argnums=(0, 1, 2))(*arrays)

    for got, want in zip(gradients(partial(kernels.attend, 'cudnn')), gradients(attend)):
        error = np.linalg.norm(np.asarray(got - want, np.float32)) / np.linalg.norm(np.asarray(want, np.float32))
        assert error < 0.02  # a few roundings of bfloat16, 2^-8 each
