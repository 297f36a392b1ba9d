"""The one train step: accumulation, meshes, traced trials and non-finite losses, on a real GPT."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmx import models, objectives, optim
from lmx.train import shard
from lmx.train.state import TrainState, bind, init_state
from lmx.train.step import eval_step, train_step

V, T, B = 17, 12, 8


def make(values, dropout=0.0):
    rate = values.get('dropout', dropout)
    model = models.gpt(vocab_size=V, dim=16, num_layers=2, num_heads=2, max_length=T, dropout_rate=rate)
    rule = optim.optimizer(rule=optim.adam(), schedule=values.get('rate', 1e-2), weight_decay=0.1, clip_norm=1.0, ema_decay=0.9)
    return model, functools.partial(objectives.next_token, z_loss=1e-3), rule


def batch(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, V, (B, T + 1), np.int32)
    weights = (rng.random((B, T)) < 0.7).astype(np.float32)  # unequal counts per row: a mean of means would show
    weights[1:3] = 0
    return {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:], 'weights': weights}


def run(steps: int, values=None, accumulate: int = 1, seed=0, dropout: float = 0.0, first: TrainState | None = None):
    values = values or {}
    built = functools.partial(make, dropout=dropout)
    state = first or init_state(built, values, batch(), seed)
    step = jax.jit(functools.partial(train_step, make=built, accumulate=accumulate))
    sums = {}
    for index in range(steps):
        state, sums = step(state, batch(index), values)
    return state, sums


def assert_close(a, b, rtol: float, atol: float) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize('accumulate', [2, pytest.param(4, marks=pytest.mark.full), 8])
def test_accumulation_equals_the_full_batch(accumulate):
    # One step of SGD-like size: the gradient itself, before Adam's division magnifies rounding. Float32 sums in another order: 1e-6.
    state = init_state(make, {}, batch(), 0)

    def gradient(k):
        def capture():
            def update(grads, opt_state, params=None):
                return grads, opt_state

            return optax.GradientTransformation(lambda params: optim.optimizer(rule=optim.adam(), schedule=1.0).init(params), update)

        def built(values):
            model, objective, _ = make(values)
            return model, objective, capture()

        zero = state.replace(opt_state=built({})[2].init(state.params))
        after, sums = jax.jit(functools.partial(train_step, make=built, accumulate=k))(zero, batch(), {})
        return jax.tree.map(jnp.subtract, after.params, state.params), sums

    (whole, one), (parts, many) = gradient(1), gradient(accumulate)
    assert_close(whole, parts, rtol=1e-4, atol=1e-6)
    assert_close(one, many, rtol=1e-5, atol=1e-5)


def test_the_loss_falls():
    first = run(1)[1]['loss/next_token']
    state = init_state(make, {}, batch(), 0)
    step = jax.jit(functools.partial(train_step, make=make))
    for _ in range(60):
        state, sums = step(state, batch(), {})
    last = sums['loss/next_token']
    assert last.total / last.count < 0.5 * first.total / first.count


@pytest.mark.parametrize(
    ('mesh', 'rules'), [({'data': 8}, ((r'.*', ()),)), ({'data': 2, 'fsdp': 4}, ((r'kernel$', ('fsdp', None)), (r'.*', ())))]
)
def test_eight_devices_equal_one(mesh, rules):
    one, sums_one = run(5)
    layout = shard.make_mesh(mesh)
    abstract = jax.eval_shape(lambda: init_state(make, {}, batch(), 0))
    shardings = shard.state_shardings(abstract, rules, layout)
    state = jax.jit(lambda: init_state(make, {}, batch(), 0), out_shardings=shardings)()
    step = jax.jit(functools.partial(train_step, make=make), out_shardings=(shardings, shard.replicated(layout)))
    for index in range(5):
        state, sums = step(state, shard.put_batch(batch(index), layout), {})
    kernel = state.params['decoder']['blocks']['attention']['query']['kernel']
    assert len(kernel.sharding.device_set) == 8
    # Sums over devices come in another order: float32 rounding, which Adam magnifies to about 1e-5 of a parameter in five steps.
    assert_close(one.params, state.params, rtol=1e-4, atol=2e-5)
    assert_close(sums_one, sums, rtol=1e-4, atol=1e-4)


def test_two_vmapped_trials_equal_the_two_runs():
    """Trials that differ in learning rate, dropout and seed, in one compiled program."""
    values = {'rate': jnp.array([1e-2, 3e-3]), 'dropout': jnp.array([0.1, 0.3])}
    seeds = jnp.array([0, 1])
    first = jax.vmap(lambda v, s: init_state(make, v, batch(), s))(values, seeds)
    step = jax.jit(jax.vmap(functools.partial(train_step, make=make), in_axes=(0, None, 0)))
    state = first
    for index in range(5):
        state, sums = step(state, batch(index), values)
    for trial in range(2):
        alone, sums_alone = run(5, {name: value[trial] for name, value in values.items()}, seed=seeds[trial])
        pick = lambda tree: jax.tree.map(lambda x: x[trial], tree)  # noqa: B023, E731
        # Batched products round differently: 1e-6 in the gradient, magnified by five steps of Adam.
        assert_close(pick(state.params), alone.params, rtol=1e-4, atol=2e-5)
        assert_close(pick(sums), sums_alone, rtol=1e-4, atol=1e-4)
    assert not np.allclose(*state.params['decoder']['blocks']['attention']['query']['kernel'])


def test_dropout_differs_by_step_and_is_off_in_evaluation():
    state = init_state(functools.partial(make, dropout=0.5), {}, batch(), 0)
    model, objective, _ = make({}, dropout=0.5)
    losses = [objective(bind(model, state.params, jax.random.key(index)), batch())['loss/next_token'].total for index in range(2)]
    assert losses[0] != losses[1]
    sums = [eval_step(state.params, batch(), {}, make=functools.partial(make, dropout=0.5)) for _ in range(2)]
    assert_close(*sums, rtol=0, atol=0)


def test_a_non_finite_step_changes_nothing_but_the_step():
    state = init_state(make, {}, batch(), 0)
    state = state.replace(params=jax.tree.map(lambda x: x.at[0].set(jnp.inf), state.params))
    after, sums = jax.jit(functools.partial(train_step, make=make))(state, batch(), {})
    assert sums['skipped'].total == 1
    assert after.step == 1
    assert_close(after.params, state.params, rtol=0, atol=0)
    assert_close(after.opt_state, state.opt_state, rtol=0, atol=0)


def test_initial_parameters_do_not_depend_on_the_layout():
    layout = shard.make_mesh({'fsdp': 8})
    abstract = jax.eval_shape(lambda: init_state(make, {}, batch(), 0))
    shardings = shard.state_shardings(abstract, ((r'kernel$', ('fsdp', None)), (r'.*', ())), layout)
    spread = jax.jit(lambda: init_state(make, {}, batch(), 0), out_shardings=shardings)()
    assert_close(spread.params, init_state(make, {}, batch(), 0).params, rtol=0, atol=1e-6)
