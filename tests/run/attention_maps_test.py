"""Attention as pictures: the weights of the run's own calls, with the tokens that they belong to."""

import numpy as np
import pytest

from lmx import run
from lmx.report.read import maps
from lmx.run.attention import return_weights
from lmx.types import BadInput
from tests.families import SEQ2SEQ, V


@pytest.mark.parametrize('name', ['transformer', 't5'])
def test_every_kind_of_attention_with_its_tokens(name):
    import jax

    model = SEQ2SEQ[name]()
    rng = np.random.default_rng(0)
    batch = {'source': rng.integers(0, V, (1, 7)), 'source_segments': np.array([[1] * 5 + [0] * 2]), 'target': rng.integers(0, V, (1, 6))}
    params = model.init(jax.random.key(0), batch['source'], batch['target'])['params']

    def objective(apply, batch):
        memory, _ = apply(batch['source'], segments=batch['source_segments'], method='encode')
        apply(batch['target'], memory, method='hidden')

    found = return_weights(model, params, objective, batch)
    shapes = {path: weights.shape for path, (weights, _, _) in found.items()}
    layers = 'encoder/blocks/attention', 'decoder/blocks/attention', 'decoder/blocks/cross_attention'
    assert shapes == dict(zip(layers, [(2, 1, 4, 5, 5), (2, 1, 4, 6, 6), (2, 1, 4, 6, 5)]))
    for path, (weights, queries, keys) in found.items():
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
        np.testing.assert_array_equal(keys, batch['target' if path.startswith('decoder/blocks/att') else 'source'][:, : keys.shape[1]])
        np.testing.assert_array_equal(queries, batch['source' if path.startswith('enc') else 'target'][:, : queries.shape[1]])


def test_the_report_draws_what_a_run_attends_to(tmp_path):
    config = run.load('tests/tiny.py:steps=1')
    run.train(config, tmp_path)
    path = run.attention(tmp_path, '12+34=46', allow=('tests',))
    ((weights, queries, keys),) = maps(path).values()
    assert (weights.shape, queries, keys) == ((2, 2, 7, 7), list('12+34=4'), list('12+34=4'))
    assert np.all(np.triu(weights[0, 0], 1) == 0)
    page = run.report(tmp_path).read_text()
    assert 'decoder/blocks/attention, layer 1' in page
    assert page.count('head 1') == 2
    with pytest.raises(BadInput, match="'x'"):
        run.attention(tmp_path, 'xyz', allow=('tests',))
