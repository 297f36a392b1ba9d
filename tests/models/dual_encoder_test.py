"""Vectors of texts: three ways of pooling, one tower or two, encoders and decoders alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx import models
from lmx.nn import heads

IDS, SEGMENTS = jnp.array([[0, 5, 6, 7], [3, 4, 0, 0]]), jnp.array([[0, 1, 1, 1], [1, 1, 0, 0]])


@pytest.mark.parametrize(('pool', 'places'), [(heads.first, (1, 0)), (heads.last, (3, 1)), (heads.mean, None)])
@pytest.mark.parametrize('model', [models.bert, models.gpt])
def test_pooling_leaves_padding_out_on_either_side(model, pool, places):
    encoder = model(vocab_size=9, dim=8, num_layers=1, num_heads=2, max_length=8, dropout_rate=0.0)
    both = models.dual_encoder(encoder=encoder, pool=pool, normalize=False)
    params = both.init(jax.random.key(0), IDS, segments=SEGMENTS)['params']
    assert set(params) == {'encoder'}
    hidden = encoder.apply({'params': params['encoder']}, IDS, segments=SEGMENTS, method='hidden')
    hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    real = [np.asarray(hidden[row])[np.asarray(SEGMENTS[row]) > 0] for row in range(2)]
    expected = [row.mean(0) for row in real] if places is None else [hidden[row, place] for row, place in enumerate(places)]
    got = both.apply({'params': params}, IDS, segments=SEGMENTS)
    np.testing.assert_allclose(got, np.stack(expected), atol=1e-6)
    np.testing.assert_array_equal(got, both.apply({'params': params}, IDS, segments=SEGMENTS, method='documents'))


def test_two_towers_have_parameters_of_their_own_and_unit_vectors():
    tower = lambda: models.bert(vocab_size=9, dim=8, num_layers=1, num_heads=2, max_length=8)  # noqa: E731
    both = models.dual_encoder(encoder=tower(), document_encoder=tower())
    queries, params = both.init_with_output(jax.random.key(0), IDS)
    more = both.init(jax.random.key(0), IDS, method='documents')['params']
    params = {'params': {**params['params'], **more}}
    documents = both.apply(params, IDS, method='documents')
    np.testing.assert_allclose(jnp.linalg.norm(queries, axis=-1), 1, rtol=1e-6)
    assert np.abs(queries - documents).max() > 0.1
