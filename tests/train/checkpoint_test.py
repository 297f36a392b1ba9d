"""Checkpoints: what is kept, what is chosen, what is believed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.train.checkpoint import Checkpoints, Damaged, average
from lmx.train.state import TrainState
from lmx.types import BadInput


def state(value: float) -> TrainState:
    params = {'layer': {'kernel': jnp.full((64, 64), value), 'bias': jnp.full((64,), value, jnp.bfloat16)}}
    return TrainState(step=jnp.int32(value), params=params, opt_state=(params, jnp.int32(3)), key=jax.random.key(int(value)))


def fill(folder, losses, **options) -> Checkpoints:
    checkpoints = Checkpoints(folder, **options)
    for step, loss in losses.items():
        checkpoints.save(step, state(step), {'lengths': {'metrics.jsonl': step}}, {'validation/loss': loss})
    checkpoints.wait()
    return checkpoints


def test_restores_bits_dtypes_and_keys(tmp_path):
    checkpoints = fill(tmp_path / 'c', {5: 1.0})
    like = jax.eval_shape(lambda: state(0.0))
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])), like
    )
    restored, meta = checkpoints.restore(5, like)
    assert meta == {'lengths': {'metrics.jsonl': 5}}
    assert jnp.issubdtype(restored.key.dtype, jax.dtypes.prng_key)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state(5.0)), strict=True):
        assert a.dtype == b.dtype
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


@pytest.mark.parametrize(('mode', 'best'), [('min', 2), ('max', 1)])
def test_keeps_the_last_and_the_best(tmp_path, mode, best):
    options = {'keep_last': 2, 'best': 'validation/loss', 'mode': mode}
    fill(tmp_path / 'c', {1: 9.0, 2: 1.0, 3: 5.0}, **options).close()
    checkpoints = fill(tmp_path / 'c', {4: 6.0, 5: 7.0}, **options)  # the values are known again after a restart
    assert checkpoints.steps() == [best, 4, 5]
    assert checkpoints.choose('best') == [best]
    assert checkpoints.choose('last') == [5]
    assert checkpoints.choose('average:2') == [4, 5]
    for wrong in ('average:9', 'average:x', '3', 'newest'):
        with pytest.raises(BadInput, match=f'{best}, 4, 5'):
            checkpoints.choose(wrong)


def test_average_is_the_mean():
    mean = average([state(1.0).params, state(4.0).params])
    assert mean['layer']['bias'].dtype == jnp.bfloat16
    np.testing.assert_array_equal(mean['layer']['kernel'], 2.5)


def largest(folder):
    return max((path for path in folder.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize('damage', [flip, cut, lambda path: path.unlink()])
def test_a_damaged_newest_checkpoint_is_named_and_set_aside(tmp_path, damage):
    checkpoints = fill(tmp_path / 'c', {1: 3.0, 2: 2.0})
    checkpoints.verify(2)
    assert len(json.loads((tmp_path / 'c' / 'checksums' / '2.json').read_text())) > 5
    damage(largest(tmp_path / 'c' / '2'))
    with pytest.raises(Damaged):
        checkpoints.restore(2, state(0.0))
    with pytest.warns(UserWarning, match='checkpoint 2 is damaged'):
        step, restored, _ = checkpoints.newest_good(state(0.0))
    assert (step, int(restored.step)) == (1, 1)
    assert (tmp_path / 'damaged' / '2').is_dir()
    checkpoints.save(2, state(2.0), {}, {})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]


def test_nothing_but_damage_is_an_error(tmp_path):
    checkpoints = fill(tmp_path / 'c', {1: 3.0})
    cut(largest(tmp_path / 'c' / '1'))
    with pytest.warns(UserWarning, match='damaged'), pytest.raises(BadInput, match='all checkpoints'):
        checkpoints.newest_good(state(0.0))


def test_read_only_needs_a_run(tmp_path):
    with pytest.raises(BadInput, match='holds no checkpoints'):
        Checkpoints(tmp_path / 'none', read_only=True)
    assert not (tmp_path / 'none').exists()
