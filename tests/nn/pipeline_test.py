"""Layers in stages: what the schedule promises, and outputs, gradients and sums of a plain loop over layers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.nn import pipeline
from lmx.nn.pipeline import Schedule
from lmx.train import shard
from lmx.types import BadInput

SCHEDULES = [Schedule(2, 2), Schedule(4, 4), Schedule(2, 5), Schedule(2, 2, 3), Schedule(4, 6, 2), Schedule(3, 3, 4)]


@pytest.mark.parametrize('schedule', SCHEDULES, ids=str)
def test_every_microbatch_passes_all_layers_in_order_with_the_least_bubble(schedule):
    passed = {number: [] for number in range(schedule.microbatches)}
    idle = dict.fromkeys(range(schedule.stages), 0)
    for tick in range(schedule.ticks):
        for stage in range(schedule.stages):
            turn, number, real = (int(value) for value in schedule.item(tick, stage))
            if real:
                passed[number].append((turn * schedule.stages + stage, tick, stage))
            else:
                idle[stage] += 1
    for visits in passed.values():
        groups, ticks, stages = zip(*visits)
        assert groups == tuple(range(schedule.rounds * schedule.stages))  # all groups of layers, in order
        assert stages == tuple(group % schedule.stages for group in groups)
        assert all(later > earlier for earlier, later in itertools.pairwise(ticks))
    assert set(idle.values()) == {schedule.stages - 1}  # of rounds x microbatches + stages - 1


B, D, L = 24, 3, 12


def layer(own, x, shared, memory, microbatch):
    """Not commutative between layers, and of everything that a layer may read."""
    weights, number = own
    scale, rows = shared
    x = jnp.tanh(x @ weights * scale + rows[:, None] + memory) + number * x
    return x, {'sum': jnp.sum(x * rows[:, None]), 'rows': jnp.float32(x.shape[0])}


def arrays():
    draw = np.random.default_rng(0)
    shapes = {'weights': (L, D, D), 'x': (B, D), 'rows': (B,), 'memory': (L, B, D)}
    return {name: jnp.asarray(draw.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def loss(arrays, through):
    layers, shared = (arrays['weights'], jnp.linspace(0, 0.5, L)), (jnp.float32(0.7), arrays['rows'])
    x, sown = through(layers, arrays['x'], shared, arrays['memory'])
    return jnp.sum(x**2) + jnp.sum(sown['sum']), (x, jax.tree.map(jnp.sum, sown))


def looped(layers, x, shared, memory):
    return jax.lax.scan(lambda x, one: layer(one[0], x, shared, one[1], 0), x, (layers, memory))


@pytest.mark.parametrize(
    ('sizes', 'schedule'),
    [
        ({'data': 4, 'stage': 2}, Schedule(2, 2)),
        ({'data': 2, 'stage': 4}, Schedule(4, 6)),
        ({'data': 4, 'stage': 2}, Schedule(2, 3, 3)),
        ({'data': 2, 'stage': 4}, Schedule(4, 4, 3)),
    ],
)
def test_stages_equal_a_loop(sizes, schedule):
    expected = jax.jit(jax.value_and_grad(lambda arrays: loss(arrays, looped), has_aux=True))(arrays())
    with jax.set_mesh(shard.make_mesh(sizes)):
        staged = lambda *given: pipeline.pipelined(layer, *given, schedule)  # noqa: E731
        found = jax.jit(jax.value_and_grad(lambda arrays: loss(arrays, staged), has_aux=True))(arrays())
    # float32; sums over rows in another order
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


def test_the_mesh_and_the_config_make_the_schedule():
    assert pipeline.current() is None
    with jax.set_mesh(shard.make_mesh({'data': 2, 'stage': 4})):
        assert pipeline.current() == Schedule(4, 4, 1)
        with pipeline.asking(microbatches=8, rounds=2):
            assert pipeline.current() == Schedule(4, 8, 2)
        assert pipeline.current() == Schedule(4, 4, 1)


@pytest.mark.parametrize(
    ('asked', 'says'),
    [
        ({'microbatches': 2}, 'pipeline.microbatches 2 are fewer than the 4 stages of the mesh; take 4 or more'),
        ({'rounds': 0}, 'pipeline.rounds 0 is below 1'),
    ],
)
def test_schedules_that_cannot_be(asked, says):
    with pytest.raises(BadInput, match=says):
        pipeline.scheduled(4, **asked)


@pytest.mark.parametrize(
    ('schedule', 'says'),
    [
        (Schedule(5, 6), '12 layers are not divisible by 5 stages x 1 rounds; take 15 layers'),
        (Schedule(4, 4, 2), '12 layers are not divisible by 4 stages x 2 rounds; take 16 layers'),
        (Schedule(4, 5), '24 rows are not divisible by 5 microbatches'),
    ],
)
def test_what_does_not_divide_is_refused(schedule, says):
    given = arrays()
    with pytest.raises(BadInput, match=says):
        pipeline.pipelined(layer, (given['weights'], jnp.zeros(L)), given['x'], (), given['memory'], schedule)
