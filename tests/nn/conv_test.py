"""Convolution: PyTorch's numbers and gradients, masks that leave no trace, weight normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.nn import conv
from lmx.types import BadInput

B, T, D, F = 2, 7, 5, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, D)).astype(np.float32)


def module_of(width, **keywords):
    module = conv.Conv(F, width, **keywords)
    params = module.init(jax.random.key(width), X)['params']
    return module, jax.tree.map(lambda x: x + 0.1 * RNG.normal(size=x.shape).astype(np.float32), params)  # biases, too


def torch_conv(torch, params, width, padding):
    """torch.nn.Conv1d with these weights, as a function [B, T, D] -> [B, T, F]; and the weights, to ask for gradients."""
    layer = torch.nn.Conv1d(D, F, width, padding='same' if padding is conv.same else 0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(np.asarray(params['kernel'])).permute(2, 1, 0))
        layer.bias.copy_(torch.tensor(np.asarray(params['bias'])))
    left = width - 1 if padding is conv.causal else 0
    return layer, lambda x: layer(torch.nn.functional.pad(x.transpose(1, 2), (left, 0))).transpose(1, 2)


@pytest.mark.parity
@pytest.mark.filterwarnings('ignore:Using padding=.same. with even kernel:UserWarning')
@pytest.mark.parametrize('padding', [conv.same, conv.causal, conv.valid])
@pytest.mark.parametrize('width', [1, 2, 3, 4])
def test_outputs_and_gradients_are_pytorchs(padding, width):
    torch = pytest.importorskip('torch')
    module, params = module_of(width, padding=padding)
    layer, reference = torch_conv(torch, params, width, padding)
    x = torch.tensor(X, requires_grad=True)
    want = reference(x)
    want.square().sum().backward()
    got = module.apply({'params': params}, X)
    np.testing.assert_allclose(got, want.detach().numpy(), atol=1e-5)  # float32 sums of up to 20 products of order 1
    gradients = jax.grad(lambda params, x: jnp.sum(jnp.square(module.apply({'params': params}, x))), (0, 1))(params, X)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)  # noqa: E731 - of order 10, sums of 14 such
    close(gradients[0]['kernel'], layer.weight.grad.permute(2, 1, 0).numpy())
    close(gradients[0]['bias'], layer.bias.grad.numpy())
    close(gradients[1], x.grad.numpy())


@pytest.mark.parity
def test_weight_norm_is_pytorchs():
    torch = pytest.importorskip('torch')
    module, params = module_of(3, weights=conv.weight_norm)
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(D, F, 3, padding='same'))
    weights = layer.parametrizations.weight
    with torch.no_grad():
        weights.original0.copy_(torch.tensor(np.asarray(params['gain']))[:, None, None])
        weights.original1.copy_(torch.tensor(np.asarray(params['kernel'])).permute(2, 1, 0))
        layer.bias.copy_(torch.tensor(np.asarray(params['bias'])))
    want = layer(torch.tensor(X).transpose(1, 2)).transpose(1, 2)
    want.square().sum().backward()
    np.testing.assert_allclose(module.apply({'params': params}, X), want.detach().numpy(), atol=1e-5)  # as above
    got = jax.grad(lambda params: jnp.sum(jnp.square(module.apply({'params': params}, X))))(params)
    np.testing.assert_allclose(got['gain'], weights.original0.grad[:, 0, 0].numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got['kernel'], weights.original1.grad.permute(2, 1, 0).numpy(), rtol=1e-4, atol=1e-4)


def test_weight_norm_starts_as_its_initializer_and_has_gradients_across_the_direction():
    module = conv.Conv(F, 3, weights=conv.weight_norm)
    params = module.init(jax.random.key(0), X)['params']
    plain = {'kernel': params['kernel'], 'bias': params['bias']}
    # g v / |v| with g = |v| is v but for the rounding of one product and one quotient.
    np.testing.assert_allclose(module.apply({'params': params}, X), conv.Conv(F, 3).apply({'params': plain}, X), atol=1e-6)
    gradient = jax.grad(lambda params: jnp.sum(jnp.square(module.apply({'params': params}, X))))(params)
    along = np.sum(gradient['kernel'] * params['kernel'], axis=(0, 1))
    np.testing.assert_allclose(along, 0, atol=1e-5 * np.abs(gradient['kernel']).max() * np.sqrt(3 * D))  # rounding of 15 terms


@pytest.mark.parametrize('padding', [conv.same, conv.causal])
@pytest.mark.parametrize('width', [2, 5])
def test_segments_and_padding_leave_no_trace(padding, width):
    module, params = module_of(width, padding=padding)
    segments = np.array([[0, 1, 1, 1, 2, 2, 0], [1, 1, 2, 2, 2, 2, 2]])
    got = module.apply({'params': params}, np.where(segments[..., None] == 0, 1e6, X).astype(np.float32), jnp.asarray(segments))
    for row, start, end in ((0, 1, 4), (0, 4, 6), (1, 0, 2), (1, 2, 7)):
        alone = module.apply({'params': params}, X[row : row + 1, start:end])
        np.testing.assert_allclose(got[row, start:end], alone[0], atol=1e-6)  # the same products, in another shape


def test_a_causal_convolution_has_no_gradient_from_the_future():
    module, params = module_of(3, padding=conv.causal)
    reach = jax.jacrev(lambda x: module.apply({'params': params}, x[None])[0].sum(-1))(jnp.asarray(X[0]))
    distance = np.subtract.outer(np.arange(T), np.arange(T))
    np.testing.assert_array_equal(np.abs(reach).sum(-1) > 0, (distance >= 0) & (distance < 3))


def test_bfloat16_in_bfloat16_out_with_float32_parameters():
    module, params = module_of(3, weights=conv.weight_norm)
    half = module.apply({'params': params}, jnp.asarray(X, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype('float32')}
    exact = module.apply({'params': params}, X)
    assert np.abs(half.astype(jnp.float32) - exact).max() < 0.02 * np.abs(exact).max()  # 8 bits: 0.4 % per rounding, four of them


def test_bad_input():
    with pytest.raises(BadInput, match='width 9 finds no window in 7'):
        conv.conv(X, np.zeros((9, D, F), np.float32), conv.valid)
    with pytest.raises(BadInput, match='same or causal'):
        conv.conv(X, np.zeros((2, D, F), np.float32), conv.valid, jnp.ones((B, T), jnp.int32))
    with pytest.raises(BadInput, match='width 0'):
        conv.Conv(F, 0).init(jax.random.key(0), X)
