"""GPT-2's shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx import models, trees
from lmx.nn.positions import Rotary


def shapes(**changes):
    sizes = {'vocab_size': 50_257, 'dim': 768, 'num_layers': 12, 'num_heads': 12, 'max_length': 1024}
    model = models.gpt(**{**sizes, **changes})
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))['params'])


@pytest.mark.parametrize(
    ('changes', 'count'),
    [
        ({}, 124_439_808),  # GPT-2 small as published
        ({'dim': 1024, 'num_layers': 24, 'num_heads': 16}, 354_823_168),  # GPT-2 medium
        ({'positions': Rotary()}, 124_439_808 - 1024 * 768),
        ({'tied': False}, 124_439_808 + 50_257 * 768),
        ({'use_bias': False}, 124_439_808 - 12 * (4 + 4 + 1 + 2) * 768 - 768),
        ({'num_kv_heads': 4}, 124_439_808 - 12 * 2 * (768 + 1) * 512),
    ],
)
def test_parameter_count(changes, count):
    assert trees.size(shapes(**changes)) == count


def test_every_layer_parameter_is_stacked():
    tree = shapes()
    for name, leaf in zip(trees.names(tree), jax.tree.leaves(tree)):
        assert leaf.dtype == jnp.float32
        if name.startswith('blocks/'):
            assert leaf.shape[0] == 12, name
    assert tree['decoder']['blocks']['attention']['query']['kernel'].shape == (12, 768, 768)


def test_initial_weights_are_gpt2s():
    model = models.gpt(vocab_size=300, dim=64, num_layers=8, num_heads=4, max_length=64)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))['params']
    std = jax.tree.map(lambda x: float(np.std(x)), params)
    # Some ten thousand draws each: 2 % is three standard errors and more.
    np.testing.assert_allclose(std['embed']['embedding'], 0.02, rtol=0.03)
    np.testing.assert_allclose(std['decoder']['blocks']['attention']['query']['kernel'], 0.02, rtol=0.02)
    np.testing.assert_allclose(std['decoder']['blocks']['mlp']['up']['kernel'], 0.02, rtol=0.02)
    np.testing.assert_allclose(std['decoder']['blocks']['attention']['out']['kernel'], 0.02 / 4, rtol=0.02)
    np.testing.assert_allclose(std['decoder']['blocks']['mlp']['down']['kernel'], 0.02 / 4, rtol=0.02)
    first, second = params['decoder']['blocks']['attention']['query']['kernel'][:2]
    assert not np.allclose(first, second)
