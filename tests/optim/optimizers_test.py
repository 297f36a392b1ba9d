"""Optimizers: first steps equal PyTorch's, numbers may be traced, masks, frozen parameters, averages, stacked layers."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

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
        # PyTorch factors every matrix; its first eps is a floor and not a summand, so both are chosen too small to count.
        ({'rule': optim.adafactor(min_dim=2)}, ('Adafactor', {'eps': (1e-15, 1e-3), 'weight_decay': 0.0})),
    ],
    ids=lambda case: None if isinstance(case, dict) else case[0],
)
def test_first_steps_equal_pytorch(ours, theirs):
    torch = pytest.importorskip('torch', reason='needs lmx[test]')
    name, options = theirs
    tree = params()
    layers = lambda tree: jax.tree.leaves({**tree, 'blocks': jax.tree.map(list, tree['blocks'])})  # noqa: E731
    leaves = [torch.nn.Parameter(torch.tensor(np.asarray(leaf))) for leaf in layers(tree)]
    reference = getattr(torch.optim, name)(leaves, lr=0.05, **options)
    for seed in range(3):
        for leaf, grad in zip(leaves, layers(gradients(tree, seed))):
            leaf.grad = torch.tensor(np.asarray(grad))
        reference.step()
    got, _ = run(optim.optimizer(schedule=0.05, decay='.*', **ours), tree)
    for a, b in zip(layers(got), leaves):
        # float32, the same operations in another order, on parameters of size 1
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parity
def test_muon_follows_pytorch_on_a_matrix():
    torch = pytest.importorskip('torch', reason='needs lmx[test]')
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(16, 24)).astype(np.float32)
    leaf = torch.nn.Parameter(torch.tensor(matrix.T.copy()))  # PyTorch's weights are [out, in]
    reference = torch.optim.Muon([leaf], lr=0.05, weight_decay=0.0, momentum=0.95, nesterov=False)
    tree = {'kernel': jnp.asarray(matrix)}
    tx = optim.optimizer(rule=optim.muon(momentum=0.95, nesterov=False), schedule=0.05)
    state = tx.init(tree)
    for _ in range(4):
        grad, before = rng.normal(size=matrix.shape).astype(np.float32), leaf.detach().numpy().T.copy()
        leaf.grad = torch.tensor(grad.T.copy())
        reference.step()
        updates, state = tx.update({'kernel': jnp.asarray(grad)}, state, tree)
        ours, theirs = np.asarray(updates['kernel']), leaf.detach().numpy().T - before
        # PyTorch orthogonalises in bfloat16 (8 bits of mantissa, five iterations): 0.99987 and 0.4 % were the worst of six steps.
        assert np.sum(ours * theirs) / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.9995
        assert np.linalg.norm(ours) == pytest.approx(np.linalg.norm(theirs), rel=0.01)


@pytest.mark.parametrize('nesterov', [True, False])
def test_muon_equals_a_loop_in_float64(nesterov):
    """Momentum, its bias correction, five Newton-Schulz iterations, the factor of the shape: by hand, per layer."""
    tree = {'kernel': params()['blocks']['mlp']['kernel']}
    tx = optim.optimizer(rule=optim.muon(momentum=0.9, nesterov=nesterov), schedule=0.05)
    state, mean = tx.init(tree), np.zeros(tree['kernel'].shape)
    for t in range(1, 4):
        grad = gradients(tree, t)
        updates, state = tx.update(grad, state, tree)
        g = np.asarray(grad['kernel'], np.float64)
        mean = 0.9 * mean + 0.1 * g
        x = 0.9 * mean / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t) if nesterov else mean / (1 - 0.9**t)
        x /= np.linalg.norm(x, axis=(1, 2), keepdims=True)
        for _ in range(5):
            gram = x @ x.swapaxes(1, 2)
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        # float32 against float64; five iterations stretch small singular values, and their rounding, up to 3.4445 ** 5 = 485 times
        np.testing.assert_allclose(updates['kernel'], -0.05 * (6 / 4) ** 0.5 * x, rtol=5e-5, atol=2e-6)


def test_lion_equals_a_loop():
    tree = params()
    got, _ = run(optim.optimizer(rule=optim.lion(b1=0.8, b2=0.9), schedule=0.05, weight_decay=0.1, decay='.*'), tree)
    want, mean = tree, jax.tree.map(jnp.zeros_like, tree)
    for seed in range(3):
        grad = gradients(tree, seed)
        want = jax.tree.map(lambda p, m, g: p - 0.05 * (jnp.sign(0.8 * m + 0.2 * g) + 0.1 * p), want, mean, grad)
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, grad)
    close(got, want)


NUMBERS = {
    optim.adam: {'b1': 0.9, 'b2': 0.95, 'eps': 1e-8},
    optim.sgd: {'momentum': 0.9},
    optim.lion: {'b1': 0.9, 'b2': 0.99},
    optim.adafactor: {'decay_rate': 0.8, 'eps': 1e-30, 'clip': 1.0},
    optim.muon: {'momentum': 0.95, 'b1': 0.9, 'b2': 0.95, 'eps': 1e-8},
}


STATIC = {'steps', 'min_dim'}  # whole numbers that decide the program: iterations, which matrices are factored


def numbers_of(function):
    """The keywords of a rule that hold a number."""
    keywords = inspect.signature(function).parameters.values()
    return {one.name for one in keywords if one.name not in STATIC and not isinstance(one.default, (bool, str))}


def test_no_number_is_left_out_below():
    here = {f for name, f in inspect.getmembers(rules, inspect.isfunction) if f.__module__ == rules.__name__ and name[0] != '_'}
    assert here - {rules.absent, rules.matching, rules.named} == set(NUMBERS)
    assert {rule: numbers_of(rule) for rule in NUMBERS} == {rule: set(values) for rule, values in NUMBERS.items()}


@pytest.mark.parametrize('rule', NUMBERS, ids=lambda rule: rule.__name__)
def test_every_number_may_be_traced(rule):
    """Two settings in one program equal the two alone."""
    common = {'schedule': 0.01, 'weight_decay': 0.1, 'clip_norm': 1.0, 'ema_decay': 0.9, 'multiplier': 0.5}

    def after(numbers, rest):
        rest = dict(rest)
        tx = optim.optimizer(rule=rule(**numbers), scale=(('bias$', rest.pop('multiplier')),), **rest)
        tree, state = run(tx, params(), steps=2)
        return tree, optim.eval_params(state, tree), optim.learning_rate(state)

    low = (
        {name: jnp.float32(value) for name, value in NUMBERS[rule].items()},
        {name: jnp.float32(value) for name, value in common.items()},
    )
    high = jax.tree.map(lambda x: x * jnp.float32(0.9), low)
    both = jax.jit(jax.vmap(after))(*jax.tree.map(lambda a, b: jnp.stack([a, b]), low, high))
    alone = jax.jit(after)
    for index, one in enumerate((low, high)):
        # float32; Newton-Schulz magnifies rounding about tenfold
        close(jax.tree.map(lambda x: x[index], both), alone(*one), rtol=1e-4, atol=1e-6)  # noqa: B023


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


def test_the_average_of_what_is_frozen_is_itself():
    after, state = run(optim.optimizer(rule=optim.adam(), schedule=0.1, frozen='^embed', ema_decay=0.5), params())
    averaged = optim.eval_params(state, after)
    close(averaged['embed'], params()['embed'])  # 0.5 x + 0.5 x
    assert jax.tree.structure(averaged) == jax.tree.structure(after)


@pytest.mark.parametrize('frozen', ['^blocks', '^embed', 'kernel$', '.'])
@pytest.mark.parametrize('rule', NUMBERS, ids=lambda rule: rule.__name__)
def test_every_rule_goes_on_where_a_part_is_frozen(rule, frozen):
    tx = optim.optimizer(rule=rule(), schedule=0.1, weight_decay=0.1, clip_norm=1.0, frozen=frozen, scale=(('embedding', 2.0),))
    after, _ = jax.eval_shape(functools.partial(run, tx, steps=1), params())
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, params())


def test_adafactor_needs_no_stacked_layers():
    tree = {'embed': params()['embed']}
    after, _ = run(optim.optimizer(rule=optim.adafactor(), schedule=0.1), tree, steps=1)
    assert not jnp.array_equal(after['embed']['embedding'], tree['embed']['embedding'])


@pytest.mark.parametrize(
    'options',
    [
        {'frozen': 'nothing'},
        {'scale': (('nothing', 2.0),)},
        {'decay': 'nothing', 'weight_decay': 0.1},
        {'rule': optim.muon(matrices='nothing')},
        {'frozen': '^embed', 'scale': (('nothing', 2.0),)},
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(options):
    with pytest.raises(BadInput, match="pattern 'nothing' matches no parameter"):
        optim.optimizer(**{'rule': optim.sgd(), 'schedule': 0.1, **options}).init(params())


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(BadInput, match='no regular expression'):
        optim.optimizer(rule=optim.sgd(), schedule=0.1, frozen='kernel(').init(params())


@pytest.mark.parametrize('value', [0, 0.0, None])
def test_what_is_switched_off_leaves_no_state(value):
    plain = optim.optimizer(rule=optim.sgd(), schedule=0.1)
    off = optim.optimizer(rule=optim.sgd(momentum=value), schedule=0.1, weight_decay=value, clip_norm=value, ema_decay=value)
    assert jax.tree.structure(off.init(params())) == jax.tree.structure(plain.init(params()))


@pytest.mark.parametrize('rule', NUMBERS, ids=lambda rule: rule.__name__)
def test_sharded_equals_one_device(rule):
    """Under jit the state of every rule follows the layout of its parameters; layers are whole, columns are split."""
    mesh = jax.make_mesh((2,), ('tensor',), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    tx = optim.optimizer(rule=rule(), schedule=0.1, weight_decay=0.1, clip_norm=1.0, ema_decay=0.9)
    step = jax.jit(lambda tree: optim.eval_params(run(tx, tree, steps=2)[1], tree))
    split = jax.tree.map(lambda p: jax.device_put(p, NamedSharding(mesh, PartitionSpec(*[None] * (p.ndim - 1), 'tensor'))), params())
    # float32; sums over the split axis are taken in another order, which Newton-Schulz magnifies
    close(step(split), step(params()), rtol=1e-4, atol=1e-6)


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
