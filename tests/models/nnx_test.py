"""A Linen model inside Flax NNX: what the README promises to those who come from there."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lmx import models


def test_a_model_works_in_nnx():
    model = models.llama(vocab_size=11, dim=16, num_layers=2, num_heads=2, mlp_dim=24)
    tokens = jnp.arange(8).reshape(2, 4)
    wrapped = nnx.bridge.lazy_init(nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)), tokens)

    def loss(module):
        return jnp.mean(jnp.square(module(tokens)[0]))

    gradients = nnx.grad(loss)(wrapped)
    params = nnx.to_pure_dict(nnx.state(wrapped, nnx.Param))
    np.testing.assert_allclose(wrapped(tokens)[0], model.apply({'params': params}, tokens)[0], rtol=1e-6, atol=1e-6)  # another compilation
    assert np.abs(gradients['embed']['embedding'][...]).max() > 0
