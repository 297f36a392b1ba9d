"""Optimizers: first steps equal PyTorch's, numbers may be traced, masks, frozen parameters, averages, stacked layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmx import optim
from lmx.optim import rules, schedules
from lmx.types import BadInput


def params(layers: int = 3):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        'embed': {'embedding': draw(7, 4)},
        'blocks': {'mlp': {'kernel': draw(layers, 4, 6), 'bias': draw(layers, 6)}, 'norm': {'scale': draw(layers, 4)}},
    }


def gradients(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), tree)


def run(tx, tree, steps=3):
    state = tx.init(tree)
    for seed in range(steps):
        updates, state = tx.update(gradients(tree, seed), state, tree)
        tree = optax.apply_updates(tree, updates)
    return tree, state


def close(a, b, rtol=2e-6, atol=1e-7):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parity
@pytest.mark.parametrize(
    ('ours', 'theirs'),
    [
        ({'rule': optim.adam(b1=0.8, b2=0.9), 'weight_decay': 0.1}, ('AdamW', {'betas': (0.8, 0.9), 'weight_decay': 0.1})),
        ({'rule': optim.sgd()}, ('SGD', {})),
        ({'rule': optim.sgd(momentum=0.9)}, ('SGD', {'momentum': 0.9})),
        ({'rule': optim.sgd(momentum=0.9, nesterov=True)}, ('SGD', {'momentum': 0.9, 'nesterov': True})),
    ],
)
def test_first_steps_equal_pytorch(ours, theirs):
    torch = pytest.importorskip('torch', reason='needs lmx[test]')
    name, options = theirs
    tree = params()
    leaves = [torch.nn.Parameter(torch.tensor(np.asarray(leaf))) for leaf in jax.tree.leaves(tree)]
    reference = getattr(torch.optim, name)(leaves, lr=0.05, **options)
    for seed in range(3):
        for leaf, grad in zip(leaves, jax.tree.leaves(gradients(tree, seed))):
            leaf.grad = torch.tensor(np.asarray(grad))
        reference.step()
    got, _ = run(optim.optimizer(schedule=0.05, decay='.*', **ours), tree)
    for a, b in zip(jax.tree.leaves(got), leaves):
        # float32, the same operations in another order
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=2e-5, atol=2e-6)


@pytest.mark.parity
def test_muon_equals_pytorch_on_a_matrix():
    torch = pytest.importorskip('torch', reason='needs lmx[test]')
    matrix = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    leaf = torch.nn.Parameter(torch.tensor(matrix.T.copy()))  # PyTorch's weights are [out, in]
    reference = torch.optim.Muon([leaf], lr=0.05, weight_decay=0.0, momentum=0.9)
    tree = {'kernel': jnp.asarray(matrix), 'bias': jnp.zeros(6)}
    tx = optim.optimizer(rule=optim.muon(momentum=0.9), schedule=0.05)
    state = tx.init(tree)
    grad = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    leaf.grad = torch.tensor(grad.T.copy())
    reference.step()
    updates, _ = tx.update({'kernel': jnp.asarray(grad), 'bias': jnp.ones(6)}, state, tree)
    got = optax.apply_updates(tree, updates)['kernel'] - matrix
    # PyTorch orthogonalises in bfloat16 (8 bits of mantissa, five iterations); the direction must agree to that.
    cosine = np.sum(got * (leaf.detach().numpy().T - matrix)) / np.linalg.norm(got) / np.linalg.norm(leaf.detach().numpy().T - matrix)
    assert cosine > 0.999
    assert np.linalg.norm(got) == pytest.approx(np.linalg.norm(leaf.detach().numpy().T - matrix), rel=0.02)


NUMBERS = {
    optim.adam: {'b1': 0.9, 'b2': 0.95, 'eps': 1e-8},
    optim.sgd: {'momentum': 0.9},
    optim.lion: {'b1': 0.9, 'b2': 0.99},
    optim.adafactor: {'decay_rate': 0.8, 'eps': 1e-30, 'clip': 1.0},
    optim.muon: {'momentum': 0.95, 'b1': 0.9, 'b2': 0.95, 'eps': 1e-8},
}


@pytest.mark.parametrize('rule', NUMBERS, ids=lambda rule: rule.__name__)
def test_every_number_may_be_traced(rule):
    """Two settings in one program equal the two alone."""
    common = {'schedule': 0.01, 'weight_decay': 0.1, 'clip_norm': 1.0, 'ema_decay': 0.9}

    def after(numbers, rest):
        return run(optim.optimizer(rule=rule(**numbers), **rest), params())[0]

    low = (
        {name: jnp.float32(value) for name, value in NUMBERS[rule].items()},
        {name: jnp.float32(value) for name, value in common.items()},
    )
    high = jax.tree.map(lambda x: x * jnp.float32(0.9), low)
    both = jax.vmap(after)(*jax.tree.map(lambda a, b: jnp.stack([a, b]), low, high))
    for index, one in enumerate((low, high)):
        # float32; Newton-Schulz magnifies rounding about tenfold
        close(jax.tree.map(lambda x: x[index], both), after(*one), rtol=1e-4, atol=1e-6)  # noqa: B023


SCHEDULES = {
    schedules.constant: {'peak': 1.0, 'warmup_steps': 4.0},
    schedules.cosine: {'peak': 1.0, 'steps': 20.0, 'warmup_steps': 4.0, 'end': 0.1},
    schedules.linear: {'peak': 1.0, 'steps': 20.0, 'warmup_steps': 4.0, 'end': 0.1},
    schedules.wsd: {'peak': 1.0, 'steps': 20.0, 'decay_steps': 5.0, 'warmup_steps': 4.0, 'end': 0.1},
    schedules.noam: {'dim': 64.0, 'warmup_steps': 4.0, 'factor': 1.0},
    schedules.inverse_sqrt: {'peak': 1.0, 'warmup_steps': 4.0},
}


@pytest.mark.parametrize('schedule', SCHEDULES, ids=lambda schedule: schedule.__name__)
def test_every_number_of_a_schedule_may_be_traced(schedule):
    numbers = {name: jnp.float32([value, 0.8 * value]) for name, value in SCHEDULES[schedule].items()}
    both = jax.vmap(lambda values: jnp.stack([schedule(**values)(step) for step in range(25)]))(numbers)
    for index in range(2):
        alone = [schedule(**{name: float(value[index]) for name, value in numbers.items()})(step) for step in range(25)]
        np.testing.assert_allclose(both[index], alone, rtol=1e-5, atol=1e-6)


def test_schedules_have_the_shape_they_say():
    at = lambda name, **changes: [float(name(**{**SCHEDULES[name], **changes})(step)) for step in range(25)]  # noqa: E731
    for name in (schedules.constant, schedules.cosine, schedules.linear, schedules.wsd, schedules.inverse_sqrt):
        values = at(name)
        assert values[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
        assert max(values) == pytest.approx(1.0)
    for name in (schedules.cosine, schedules.linear, schedules.wsd):
        assert at(name)[20:] == pytest.approx([0.1] * 5)
    assert at(schedules.cosine)[12] == pytest.approx(0.55)
    assert at(schedules.wsd)[4:16] == pytest.approx([1.0] * 12)
    assert at(schedules.inverse_sqrt)[15] == pytest.approx(0.5)
    assert int(np.argmax(at(schedules.noam))) == 3
    assert at(schedules.noam)[3] == pytest.approx((64 * 4) ** -0.5)


def test_decay_reaches_what_its_pattern_names():
    zero = jax.tree.map(jnp.zeros_like, params())
    tx = optim.optimizer(rule=optim.sgd(), schedule=0.5, weight_decay=0.1)
    updates, _ = tx.update(zero, tx.init(params()), params())
    changed = {
        name: bool(jnp.any(leaf != 0))
        for name, leaf in (('kernel', updates['blocks']['mlp']['kernel']), ('bias', updates['blocks']['mlp']['bias']))
    }
    assert changed == {'kernel': True, 'bias': False}
    close(updates['embed']['embedding'], -0.05 * params()['embed']['embedding'])


def test_frozen_parameters_stay_and_hold_no_state():
    tx = optim.optimizer(rule=optim.adam(), schedule=0.1, frozen='^embed')
    after, state = run(tx, params())
    close(after['embed'], params()['embed'], rtol=0, atol=0)
    assert not jnp.array_equal(after['blocks']['mlp']['bias'], params()['blocks']['mlp']['bias'])
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * sum(leaf.size for leaf in jax.tree.leaves(params()['blocks']))
    # The gradient of what is frozen does not count in the norm either.
    free = {'blocks': params()['blocks']}
    alone, _ = run(optim.optimizer(rule=optim.sgd(), schedule=0.1, clip_norm=1.0), free, steps=1)
    tx = optim.optimizer(rule=optim.sgd(), schedule=0.1, clip_norm=1.0, frozen='^embed')
    grads = {**gradients(params(), 9), 'blocks': gradients(free, 0)['blocks']}
    updates, _ = tx.update(grads, tx.init(params()), params())
    close(optax.apply_updates(params(), updates)['blocks'], alone['blocks'])


def test_multipliers_scale_the_rate_first_match_wins():
    base, _ = run(optim.optimizer(rule=optim.sgd(), schedule=0.1), params(), steps=1)
    scaled, _ = run(optim.optimizer(rule=optim.sgd(), schedule=0.1, scale=(('kernel$', 3.0), ('blocks', 0.5))), params(), steps=1)
    moved = lambda tree: jax.tree.map(jnp.subtract, tree, params())  # noqa: E731
    factor = jax.tree.map(lambda a, b: float(jnp.mean(a / b)), moved(scaled), moved(base))
    assert factor['blocks']['mlp'] == pytest.approx({'kernel': 3.0, 'bias': 0.5}, rel=1e-4)
    assert factor['embed']['embedding'] == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize('options', [{'frozen': 'nothing'}, {'scale': (('nothing', 2.0),)}])
def test_a_pattern_that_matches_nothing_is_refused(options):
    with pytest.raises(BadInput, match='matches no parameter'):
        optim.optimizer(rule=optim.sgd(), schedule=0.1, **options).init(params())


def test_the_average_equals_a_loop():
    tx = optim.optimizer(rule=optim.sgd(), schedule=0.1, ema_decay=0.7)
    tree, state = params(), tx.init(params())
    average = tree
    for seed in range(4):
        updates, state = tx.update(gradients(tree, seed), state, tree)
        tree = optax.apply_updates(tree, updates)
        average = jax.tree.map(lambda a, p: 0.7 * a + 0.3 * p, average, tree)
    close(optim.eval_params(state, tree), average)
    plain = optim.optimizer(rule=optim.sgd(), schedule=0.1)
    assert optim.eval_params(plain.init(tree), tree) is tree


def test_the_rate_that_was_used_can_be_read():
    tx = optim.optimizer(rule=optim.sgd(), schedule=schedules.linear(peak=1.0, steps=10))
    assert float(optim.learning_rate(run(tx, params(), steps=3)[1])) == pytest.approx(0.8)


@pytest.mark.parametrize('rule', [rules.muon, functools.partial(rules.adafactor, min_dim=2)])
def test_stacked_layers_equal_layers_alone(rule):
    tree = {'blocks': params()['blocks']}
    tx = optim.optimizer(rule=rule(), schedule=0.1)
    together, _ = run(tx, tree)
    state = [tx.init(jax.tree.map(lambda x: x[i : i + 1], tree)) for i in range(3)]  # noqa: B023
    alone = [jax.tree.map(lambda x: x[i : i + 1], tree) for i in range(3)]  # noqa: B023
    for seed in range(3):
        grads = gradients(tree, seed)
        for i in range(3):
            updates, state[i] = tx.update(jax.tree.map(lambda x: x[i : i + 1], grads), state[i], alone[i])  # noqa: B023
            alone[i] = optax.apply_updates(alone[i], updates)
    close(together, jax.tree.map(lambda *x: jnp.concatenate(x), *alone), rtol=1e-4, atol=1e-6)
