"""Experts equal transformers' on the same weights, all ways to compute them agree, and their losses add up."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lmx.nn import moe, stack
from lmx.nn.attention import Attention, Context
from lmx.nn.block import Block
from lmx.nn.mlp import GatedMlp
from lmx.nn.moe import Experts
from lmx.nn.norms import RMSNorm
from lmx.train.state import sown
from lmx.types import BadInput, Mean

B, T, D, F, E, K = 3, 8, 12, 16, 4, 2
PATHS = {'dropless': moe.dropless, 'dense': moe.dense, 'capacity': partial(moe.capacity, num_experts=E, factor=E / K)}
experts = partial(Experts, num_experts=E, num_selected=K, mlp_dim=F)


def random(*shape: int, seed: int = 0) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng((seed, *shape)).normal(size=shape), jnp.float32)


def make(seed: int = 0, **given):
    """A layer with its parameters, the router's large enough that tokens differ in their choice."""
    layer = experts(**given)
    params = jax.eval_shape(layer.init, jax.random.key(0), random(B, T, D))['params']
    sizes = enumerate(jax.tree.leaves(params), start=10 * seed)
    drawn = [random(*leaf.shape, seed=index) / leaf.shape[-2] ** 0.5 for index, leaf in sizes]
    params = jax.tree.unflatten(jax.tree.structure(params), drawn)
    return layer, {**params, 'router': {'kernel': random(D, layer.num_experts, seed=seed + 7)}}


def outputs(layer, params, x):
    return jax.jit(layer.apply)({'params': params}, x)


def losses_of(layer, params, x, **given):
    return jax.jit(lambda params, x, given: sown(layer.apply({'params': params}, x, mutable=['losses'], **given)[1]))(params, x, given)


def close(got, want, tolerance):
    """Within `tolerance` of the largest element, leaf by leaf."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * max(float(np.abs(b).max()), 1e-6))


# References


def _torch_block(torch, params, routing):
    """transformers' block with our weights."""
    if routing is moe.softmax_of_selected:
        from transformers.models.mixtral.modeling_mixtral import MixtralConfig as Config
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock as SparseBlock

        config = Config(hidden_size=D, intermediate_size=F, num_local_experts=E, num_experts_per_tok=K)
    else:
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeConfig as Config
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock as SparseBlock

        config = Config(hidden_size=D, moe_intermediate_size=F, num_experts=E, num_experts_per_tok=K, norm_topk_prob=False)
    config._experts_implementation = 'eager'
    block = SparseBlock(config)
    gate_up = np.concatenate([params['gate'], params['up']], axis=-1).swapaxes(1, 2)
    with torch.no_grad():
        block.gate.weight.copy_(torch.tensor(np.asarray(params['router']['kernel']).T))
        block.experts.gate_up_proj.copy_(torch.tensor(gate_up))
        block.experts.down_proj.copy_(torch.tensor(np.asarray(params['down']).swapaxes(1, 2)))
    return block


@pytest.mark.parity
@pytest.mark.parametrize('routing', [moe.softmax_of_selected, moe.selected_of_softmax])
@pytest.mark.parametrize('path', PATHS)
def test_outputs_and_gradients_equal_transformers(path, routing):
    torch = pytest.importorskip('torch')
    pytest.importorskip('transformers')
    layer, params = make(path=PATHS[path], routing=routing)
    x, weights = random(B, T, D), random(B, T, D, seed=1)
    block = _torch_block(torch, params, routing)
    x_torch = torch.tensor(np.asarray(x), requires_grad=True)
    want = block(x_torch)
    (want * torch.tensor(np.asarray(weights))).sum().backward()
    np.testing.assert_allclose(outputs(layer, params, x), want.detach().numpy(), atol=1e-5)  # float32 sums in another order

    def loss(params, x):
        return jnp.sum(layer.apply({'params': params}, x) * weights)

    grads, x_grad = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
    gate, up = np.split(block.experts.gate_up_proj.grad.numpy().swapaxes(1, 2), 2, axis=-1)
    want_grads = {
        'router': {'kernel': block.gate.weight.grad.numpy().T},
        'gate': gate,
        'up': up,
        'down': block.experts.down_proj.grad.numpy().swapaxes(1, 2),
    }
    close((grads, x_grad), (want_grads, x_torch.grad.numpy()), 1e-4)  # longer sums of the same


@pytest.mark.parity
@pytest.mark.parametrize('padded', [False, True])
def test_batch_balance_equals_transformers(padded):
    torch = pytest.importorskip('torch')
    mixtral = pytest.importorskip('transformers.models.mixtral.modeling_mixtral')
    layer, params = make(balance_coefficient=0.5)
    x, real_BT = random(B, T, D), (np.arange(T) < np.array([[8], [5], [2]])) if padded else np.ones((B, T), bool)
    logits = torch.tensor(np.asarray(x.reshape(-1, D) @ params['router']['kernel']))
    want = mixtral.load_balancing_loss_func((logits,), E, K, attention_mask=torch.tensor(real_BT) if padded else None)
    got = losses_of(layer, params, x, weights=real_BT)['loss/balance']
    np.testing.assert_allclose(got.total / got.count, 0.5 * want.item(), rtol=1e-5)  # float32 sums in another order


# Ways to compute


@pytest.mark.parametrize(('num_experts', 'num_selected'), [(4, 1), (5, 3), (1, 1)])
def test_all_paths_agree(num_experts, num_selected):
    sizes = {'num_experts': num_experts, 'num_selected': num_selected}
    _, params = make(**sizes)
    x, weights = random(B, T, D), random(B, T, D, seed=1)

    def everything(path):
        """Outputs and gradients."""

        def loss(params, x):
            out = experts(**sizes, path=path).apply({'params': params}, x)
            return jnp.sum(out * weights), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x)

    (_, want), want_grads = everything(moe.dropless)
    enough = partial(moe.capacity, num_experts=num_experts, factor=num_experts / num_selected)
    for path in (moe.dense, enough):
        (_, out), grads = everything(path)
        close(out, want, 1e-6)  # float32 sums in another order
        close(grads, want_grads, 1e-5)  # longer sums of the same


@pytest.mark.parametrize('path', PATHS)
def test_permuted_tokens_give_permuted_outputs(path):
    layer, params = make(path=PATHS[path])
    x, order = random(T * B, D), np.random.default_rng(0).permutation(T * B)
    out = outputs(layer, params, x)
    close(outputs(layer, params, x[order]), out[order], 1e-6)  # rows land in other blocks of a product


@pytest.mark.parametrize('routing', [moe.softmax_of_selected, moe.selected_of_softmax])
def test_each_token_gets_k_different_experts_with_the_highest_scores(routing):
    logits = random(50, 8)
    experts, weights = routing(logits, 3)
    assert experts.shape == weights.shape == (50, 3)
    np.testing.assert_array_equal(experts, np.argsort(-np.asarray(logits), axis=-1)[:, :3])
    probabilities = np.take_along_axis(np.asarray(jax.nn.softmax(logits)), np.asarray(experts), axis=-1)
    renormalised = probabilities / probabilities.sum(-1, keepdims=True)
    want = renormalised if routing is moe.softmax_of_selected else probabilities
    np.testing.assert_allclose(weights, want, rtol=1e-5)  # two softmaxes of float32


def _one_expert(path, num_selected=1):
    """A router that sends every token to expert 2, what comes out, and what expert 2 alone makes of the tokens."""
    layer, params = make(path=path, num_selected=num_selected, routing=moe.softmax_of_selected)
    params['router'] = {'kernel': jnp.zeros((D, E)).at[0, 2].set(100.0)}
    x = random(B, T, D).at[..., 0].set(1.0)
    mlp = {name: {'kernel': params[name][2]} for name in ('gate', 'up', 'down')}
    return outputs(layer, params, x), GatedMlp(F).apply({'params': mlp}, x)


@pytest.mark.parametrize('path', [moe.dropless, moe.dense, partial(moe.capacity, num_experts=E, factor=E)])
def test_nothing_is_dropped_when_all_go_to_one_expert(path):
    got, want = _one_expert(path)
    close(got, want, 1e-6)  # float32 sums in another order


def test_a_full_expert_drops_the_later_tokens_and_second_choices_first():
    got, want = _one_expert(partial(moe.capacity, num_experts=E, factor=1.0))
    got, want = got.reshape(-1, D), want.reshape(-1, D)
    room = B * T // E
    close(got[:room], want[:room], 1e-6)  # float32 sums in another order
    assert not np.any(got[room:])
    # Both experts are every token's choice and have room for two tokens each, which those take whose first choice they are.
    routing = moe.Routing(jnp.array([[0, 1], [0, 1], [1, 0], [1, 0]]), jnp.ones((4, 2)))
    scales = jnp.array([[[1.0]], [[10.0]]]) * jnp.eye(4)
    made = moe.capacity(jnp.eye(4), routing, lambda x, product: product(x, scales), num_experts=2, factor=0.5)
    np.testing.assert_array_equal(made, jnp.diag(jnp.array([1.0, 1.0, 10.0, 10.0])))


def test_bfloat16_in_bfloat16_out_and_the_router_in_float32():
    layer, params = make(z_coefficient=1.0)
    x = random(B, T, D).astype(jnp.bfloat16)
    out = outputs(layer, params, x)
    assert out.dtype == jnp.bfloat16
    logits = np.asarray(x, np.float32) @ np.asarray(params['router']['kernel'])
    got = losses_of(layer, params, x)['loss/router_z']
    want = np.square(np.log(np.exp(logits).sum(-1))).sum()
    np.testing.assert_allclose(got.total, want, rtol=1e-5)  # float32; a router in bfloat16 is off by 1e-3
    want = outputs(layer, params, x.astype(jnp.float32))
    close(out.astype(jnp.float32), want, 0.03)  # three products rounded to 2^-8
    for path in PATHS.values():
        close(outputs(dataclasses.replace(layer, path=path), params, x).astype(jnp.float32), out.astype(jnp.float32), 0.01)


def test_vmapped_trials_equal_single_ones():
    layer, _ = make(path=moe.dense, balance_coefficient=0.1)
    trials, x = [make(seed, path=moe.dense)[1] for seed in (0, 1)], random(B, T, D)

    def loss(params, coefficient):
        out, collected = dataclasses.replace(layer, balance_coefficient=coefficient).apply({'params': params}, x, mutable=['losses'])
        return jnp.sum(jnp.square(out)) + sown(collected)['loss/balance'].total

    coefficients = jnp.array([0.1, 10.0])
    got = jax.jit(jax.vmap(jax.grad(loss)))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *trials), coefficients)
    for index, params in enumerate(trials):
        want = jax.jit(jax.grad(loss))(params, coefficients[index])
        close(jax.tree.map(lambda leaf: leaf[index], got), want, 1e-5)  # float32 sums in another order  # noqa: B023


def test_each_expert_is_drawn_as_if_alone():
    params = jax.jit(experts(mlp_dim=256).init)(jax.random.key(0), random(1, 64))['params']
    for name, fan_in in (('gate', 64), ('up', 64), ('down', 256)):
        deviations = np.asarray(params[name]).std(axis=(1, 2))
        np.testing.assert_allclose(deviations, fan_in**-0.5, rtol=0.03)  # four standard errors of 64 x 256 draws
    assert np.abs(params['gate'][0] - params['gate'][1]).max() > 0.1


@pytest.mark.parametrize('num_selected', [0, 5])
def test_impossible_numbers_of_experts_are_refused(num_selected):
    with pytest.raises(BadInput, match=f'num_selected {num_selected} is not in 1..4'):
        experts(num_selected=num_selected).init(jax.random.key(0), random(B, T, D))


# Losses


def test_balance_is_least_at_balance_and_its_gradient_reaches_the_router():
    even = jnp.eye(E)[None] * 20
    choice = jnp.arange(E)[None, :, None]
    ones = jnp.ones((1, E))
    for balance in (moe.batch_balance, moe.sequence_balance):
        np.testing.assert_allclose(balance(even, choice, ones).total, 1, rtol=1e-5)  # float32
        np.testing.assert_allclose(balance(even[:, :1].repeat(E, 1), choice * 0, ones).total, E, rtol=1e-5)  # float32
    layer, params = make(balance_coefficient=1.0, z_coefficient=1.0)
    for name in ('loss/balance', 'loss/router_z'):
        grads = jax.jit(jax.grad(lambda params: losses_of(layer, params, random(B, T, D))[name].total))(params)  # noqa: B023
        assert np.abs(grads['router']['kernel']).max() > 1e-3
        assert not np.any(grads['gate'])


def test_losses_by_sequence_and_token_add_up_and_by_batch_do_not():
    x = random(4, T, D)

    def both(balance):
        layer, params = make(balance_coefficient=0.3, z_coefficient=0.2, balance=balance)
        whole = losses_of(layer, params, x)
        halves = [losses_of(layer, params, half) for half in (x[:1], x[1:])]
        return whole, jax.tree.map(lambda a, b: a + b, *halves)

    whole, added = both(moe.sequence_balance)
    close(added, whole, 1e-6)  # float32
    assert whole['loss/balance'].count == 4
    assert whole['loss/router_z'].count == 4 * T
    whole, added = both(moe.batch_balance)
    means = [loss['loss/balance'].total / loss['loss/balance'].count for loss in (whole, added)]
    assert abs(means[0] - means[1]) > 1e-4


@pytest.mark.parametrize('balance', [moe.batch_balance, moe.sequence_balance])
def test_padding_left_out_changes_neither_losses_nor_tokens(balance):
    layer, params = make(balance_coefficient=0.3, z_coefficient=0.2, balance=balance)
    x, padding = random(B, T, D), random(B, 3, D, seed=5)
    padded = jnp.concatenate([x, padding], axis=1)
    padded = jnp.concatenate([padded, random(1, T + 3, D)])  # a row of padding only
    weights = np.zeros((B + 1, T + 3), np.float32)
    weights[:B, :T] = 1
    close(losses_of(layer, params, padded, weights=weights), losses_of(layer, params, x), 1e-6)  # float32
    close(outputs(layer, params, padded)[:B, :T], outputs(layer, params, x), 1e-6)  # rows in other blocks


@pytest.mark.parametrize('coefficient', [None, 0, 0.0])
def test_without_coefficients_nothing_is_sown(coefficient):
    layer, params = make(balance_coefficient=coefficient, z_coefficient=coefficient)
    assert losses_of(layer, params, random(B, T, D)) == {}


class Tower(nn.Module):
    remat: str | None = None
    num_layers: int = 3

    @nn.compact
    def __call__(self, x_BTD):
        index = jnp.arange(x_BTD.shape[1], dtype=jnp.int32)[None]
        mlp = partial(experts, balance_coefficient=0.3, z_coefficient=0.2)
        block = Block(partial(Attention, num_heads=2), mlp, RMSNorm, name='block')
        context = Context(positions_BT=index, index_BT=index)
        return stack.scan(block, x_BTD, context, num_layers=self.num_layers, remat=self.remat)[0]


@pytest.mark.parametrize('remat', [None, 'full'])
def test_the_loss_of_a_stack_is_the_mean_over_its_layers(remat):
    x = random(B, T, D)
    params = jax.jit(Tower().init)(jax.random.key(0), x)['params']

    def run(tower, params, x):
        return jax.jit(partial(tower.apply, mutable=['losses']))({'params': params}, x)

    _, collected = run(Tower(remat=remat), params, x)
    alone = []
    for layer in range(3):
        one = jax.tree.map(lambda leaf: leaf[layer : layer + 1], params)  # noqa: B023
        x, seen = run(Tower(num_layers=1), one, x)
        alone.append(sown(seen))
    together = sown(collected)
    assert set(together) == {'loss/balance', 'loss/router_z'}
    for name, (total, count) in together.items():
        want = np.mean([loss[name].total / loss[name].count for loss in alone])
        np.testing.assert_allclose(total / count, want, rtol=1e-5)  # float32 through three layers
        assert isinstance(alone[0][name], Mean)
