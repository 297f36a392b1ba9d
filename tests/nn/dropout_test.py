"""Dropout keeps what it should, as often as it should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.nn.dropout import dropout


@pytest.mark.parametrize('rate', [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize('shape', [(300, 400), (1000, 121)])
def test_the_share_dropped_and_the_mean(rate, shape):
    x = jnp.ones(shape)
    out = np.asarray(jax.jit(dropout)(x, rate, jax.random.key(0)), np.float64)
    error = 4 * 0.5 / x.size**0.5  # four standard errors at the most
    assert abs((out == 0).mean() - rate) <= error
    kept = out[out > 0]
    np.testing.assert_allclose(kept, 1 / (1 - round(rate * 65536) / 65536) if rate < 1 else 0, rtol=1e-6)
    # Neighbours, which share a random number, are independent.
    zero = out == 0
    assert abs((zero[:, :-1] & zero[:, 1:]).mean() - zero.mean() ** 2) <= 2 * error


def test_the_gradient_is_the_mask_and_finite_at_any_traced_rate():
    x = jax.random.normal(jax.random.key(1), (8, 16))
    for rate in (0.0, 0.4, 1.0):
        key = jax.random.key(2)
        gradient = jax.jit(jax.grad(lambda x, rate: dropout(x, rate, key).sum()))(x, rate)  # noqa: B023
        np.testing.assert_allclose(gradient * x, dropout(x, rate, key), rtol=1e-6)


def test_the_dtype_stays():
    assert dropout(jnp.ones((2, 3), jnp.bfloat16), 0.5, jax.random.key(0)).dtype == jnp.bfloat16
