"""Mixture of experts in place of the feed-forward layer (Shazeer et al. 2017, arXiv:1701.06538; Mixtral, arXiv:2401.04088)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmx.nn.linear import Init, Linear
from lmx.types import Array, BadInput, Mean


class Routing(NamedTuple):
    """Which experts read each of N tokens, best first: `experts` [N, k] int32, all different in a row; `weights` [N, k] float32."""

    experts: Array
    weights: Array


Product = Callable[[Array, Array], Array]  # (x, w [E, I, O]) -> each row of x times the matrix of the expert that it lies with
Expert = Callable[[Array, Product], Array]  # (x, product) -> what the experts make of x
Path = Callable[[Array, Routing, Expert], Array]  # (x_ND, routing, expert) -> sum over a token's experts of weight * expert(x), [N, D]


def softmax_of_selected(logits_NE: Array, num_selected: int) -> Routing:
    """The k highest logits, weighted by the softmax over them alone: weights add up to 1 (Mixtral, section 2.1)."""
    logits, experts = jax.lax.top_k(logits_NE, num_selected)
    return Routing(experts, jax.nn.softmax(logits))


def selected_of_softmax(logits_NE: Array, num_selected: int) -> Routing:
    """The k highest logits, weighted by the softmax over all experts (Switch, arXiv:2101.03961, equation 2; Qwen1.5-MoE)."""
    weights, experts = jax.lax.top_k(jax.nn.softmax(logits_NE), num_selected)
    return Routing(experts, weights)


def dropless(x_ND: Array, routing: Routing, expert: Expert) -> Array:
    """Every expert reads exactly its tokens, however many (MegaBlocks, arXiv:2211.15841): sorted by expert, then ragged products.

    Trials that are vmapped take `dense`: JAX maps `jax.lax.ragged_dot` and its gradient over some axes only. XLA's CPU backend computes
    every expert for every row here too, so that `dense` is only a quarter slower there.
    """
    count, k = routing.experts.shape
    experts = routing.experts.reshape(-1)
    order = jnp.argsort(experts)
    rows = _permuted(jnp.repeat(x_ND, k, axis=0), order)

    def product(x: Array, w: Array) -> Array:
        # Compared, not scattered: the sizes come out of one reduction on every backend.
        sizes = jnp.sum(experts[:, None] == jnp.arange(w.shape[0]), axis=0, dtype=jnp.int32)
        return jax.lax.ragged_dot(x, w, sizes)

    out = _permuted(expert(rows, product), jnp.argsort(order))
    return _weighted(out.reshape(count, k, -1), routing.weights, x_ND.dtype)


def dense(x_ND: Array, routing: Routing, expert: Expert) -> Array:
    """Every expert reads every token and the routing only weights the sum: E / k times the products, but nothing except products."""

    def product(x: Array, w: Array) -> Array:
        return jnp.einsum('NI,EIO->NEO' if x.ndim == 2 else 'NEI,EIO->NEO', x, w)

    out_NED = expert(x_ND, product)
    chosen_NkE = routing.experts[..., None] == jnp.arange(out_NED.shape[1])
    return _weighted(out_NED, jnp.sum(routing.weights[..., None] * chosen_NkE, axis=1), x_ND.dtype)


def capacity(x_ND: Array, routing: Routing, expert: Expert, *, num_experts: int, factor: Any = 1.25) -> Array:
    """An expert reads at most ceil(factor k N / E) tokens, so that shapes are fixed (GShard, arXiv:2006.16668; Switch, equation 3).

    First choices go before second ones, and among equals the earlier token. A choice that finds its expert full adds nothing, so what
    a token gets depends on the other tokens of its batch, later ones included.

    Args:
      num_experts: E, which a path cannot read off the routing.
      factor: > 0, a plain number; 1 is room for a perfect balance, E / k or more drops nothing.
    """
    count, k = routing.experts.shape
    room = min(count, math.ceil(factor * k * count / num_experts))
    choices_kN = routing.experts.T.reshape(-1)
    chosen = choices_kN[:, None] == jnp.arange(num_experts)
    place = jnp.sum(jnp.where(chosen, jnp.cumsum(chosen, axis=0), 0), axis=1) - 1
    slot_Nk = jnp.where(place < room, choices_kN * room + place, num_experts * room).reshape(k, count).T
    slots = jnp.zeros((num_experts * room, x_ND.shape[-1]), x_ND.dtype)
    slots = slots.at[slot_Nk].set(x_ND[:, None], mode='drop')  # behind the last slot is what finds no room

    def product(x: Array, w: Array) -> Array:
        return jnp.einsum('ERI,EIO->ERO', x, w)

    out_ERD = expert(slots.reshape(num_experts, room, -1), product)
    out_NkD = out_ERD.reshape(num_experts * room, -1).at[slot_Nk].get(mode='fill', fill_value=0)
    return _weighted(out_NkD, routing.weights, x_ND.dtype)


def _permuted(x: Array, order: Array) -> Array:
    # Told that no row is read twice, the gradient is a permutation too, and the same bits on every run of a GPU.
    return x.at[order].get(unique_indices=True, mode='promise_in_bounds')


def _weighted(out_NkD: Array, weights_Nk: Array, dtype: Any) -> Array:
    return jnp.einsum('NkD,Nk->ND', out_NkD, weights_Nk, preferred_element_type=jnp.float32).astype(dtype)


def batch_balance(logits_BTE: Array, experts_BTk: Array, weights_BT: Array) -> Mean:
    """E sum_e f_e P_e over all tokens (Switch, equations 4 to 6): k where experts share the load evenly, up to E where they do not.

    f_e is the share of tokens that chose expert e, which has no gradient, and P_e the mean of its softmax. Count is 1: halves of a
    batch do not add up to the whole, so a task with this loss is not `additive`.

    Args:
      weights_BT: float32, 1, or 0 for tokens that are left out.
    """
    sequence = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), (logits_BTE, experts_BTk, weights_BT))
    return Mean(jnp.sum(_balance(*sequence)), jnp.ones(()))


def sequence_balance(logits_BTE: Array, experts_BTk: Array, weights_BT: Array) -> Mean:
    """The balance of each sequence by itself (DeepSeek-V3, arXiv:2412.19437, equations 17 to 20, times k), added up; count B.

    Sequences do not couple, so this one adds up over microbatches and devices. A row of packed segments is one sequence, and one
    that is all padding none.
    """
    real_B = jnp.any(weights_BT > 0, axis=1)
    return Mean(jnp.sum(_balance(logits_BTE, experts_BTk, weights_BT)), jnp.sum(real_B, dtype=jnp.float32))


def _balance(logits_BTE: Array, experts_BTk: Array, weights_BT: Array) -> Array:
    num_experts = logits_BTE.shape[-1]
    tokens_B1 = jnp.maximum(jnp.sum(weights_BT, axis=1), 1)[:, None]
    chosen_BTE = jnp.sum(experts_BTk[..., None] == jnp.arange(num_experts), axis=2, dtype=jnp.float32)
    share_BE = jnp.einsum('BTE,BT->BE', chosen_BTE, weights_BT) / tokens_B1
    probability_BE = jnp.einsum('BTE,BT->BE', jax.nn.softmax(logits_BTE), weights_BT) / tokens_B1
    return num_experts * jnp.sum(share_BE * probability_BE, axis=-1)


def router_z(logits_BTE: Array, weights_BT: Array) -> Mean:
    """log(sum_e exp(logit_e))^2, the mean over tokens (ST-MoE, arXiv:2202.08906, equation 5): keeps the router's logits small."""
    squares_BT = jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1))
    return Mean(jnp.sum(squares_BT * weights_BT), jnp.sum(weights_BT))


class Experts(nn.Module):
    """x [..., T, D] -> [..., T, D]: each token through the `num_selected` of `num_experts` gated layers that its router picks.

    Parameters: `router` with a kernel [D, E]; `gate` and `up` [E, D, F], `down` [E, F, D]. The router computes in float32, the experts
    in x's dtype: down(activation(gate(x)) * up(x)), as in `GatedMlp`.

    Sows under 'losses', as Means whose sum over layers is the mean over layers: 'balance' and 'router_z', coefficients included.

    Padding is routed as any token: with `dropless` and `dense` it changes no other token, with `capacity` it takes room. It counts in
    the losses unless `weights` leaves it out.

    Attributes:
      routing: (logits_NE, num_selected) -> Routing: `softmax_of_selected`, `selected_of_softmax` or your own.
      path: how the same sum is computed: `dropless`, `dense`, or `partial(capacity, num_experts=E, factor=1.25)`, which may drop choices.
      balance_coefficient, z_coefficient: of the two losses; may be traced. None or a plain 0 leaves no trace in the program.
        Switch takes 0.01 (Mixtral's code 0.001), ST-MoE 0.001.
      balance: `batch_balance`, `sequence_balance` or your own.
      kernel_init, out_init: of the router and of each expert's gate and up, and of each expert's down, given the shape of one expert.

    Raises:
      BadInput: more experts selected than there are, or none.
    """

    num_experts: int
    num_selected: int
    mlp_dim: int
    activation: Callable[[Array], Array] = jax.nn.silu
    routing: Callable[[Array, int], Routing] = softmax_of_selected
    path: Path = dropless
    balance_coefficient: Any = None
    z_coefficient: Any = None
    balance: Callable[[Array, Array, Array], Mean] = batch_balance
    kernel_init: Init = nn.initializers.lecun_normal()
    out_init: Init = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array, weights: Array | None = None) -> Array:
        """`weights` [..., T]: 1, or 0 for tokens that the losses leave out, such as padding; None counts all."""
        if not 1 <= self.num_selected <= self.num_experts:
            raise BadInput(f'num_selected {self.num_selected} is not in 1..{self.num_experts}; give at most num_experts')
        dim = x.shape[-1]
        x_ND = x.reshape(-1, dim)
        logits_NE = Linear(self.num_experts, use_bias=False, kernel_init=self.kernel_init, name='router')(x_ND.astype(jnp.float32))
        routing = self.routing(logits_NE, self.num_selected)
        self._sow_losses(logits_NE, routing, jnp.ones(x.shape[:-1]) if weights is None else weights)

        def matrices(name: str, init: Init, *shape: int) -> Array:
            return self.param(name, _each(init), (self.num_experts, *shape), jnp.float32).astype(x.dtype)

        gate, up = (matrices(name, self.kernel_init, dim, self.mlp_dim) for name in ('gate', 'up'))
        down = matrices('down', self.out_init, self.mlp_dim, dim)

        def expert(x: Array, product: Product) -> Array:
            return product(self.activation(product(x, gate)) * product(x, up), down)

        return self.path(x_ND, routing, expert).reshape(x.shape)

    def _sow_losses(self, logits_NE: Array, routing: Routing, weights: Array) -> None:
        weights_BT = weights.astype(jnp.float32).reshape(-1, weights.shape[-1])
        logits_BTE, experts_BTk = (a.reshape(*weights_BT.shape, -1) for a in (logits_NE, routing.experts))
        losses = {
            'balance': (self.balance_coefficient, lambda: self.balance(logits_BTE, experts_BTk, weights_BT)),
            'router_z': (self.z_coefficient, lambda: router_z(logits_BTE, weights_BT)),
        }
        for name, (coefficient, loss) in losses.items():
            if coefficient is not None and not (isinstance(coefficient, (int, float)) and coefficient == 0):
                total, count = loss()
                self.sow('losses', name, Mean(coefficient * total, count))


def _each(init: Init) -> Init:
    """Draws each expert's matrix as if it were the only one, so that fans are those of one expert."""

    def stacked(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return jax.vmap(lambda key: init(key, shape[1:], dtype))(jax.random.split(key, shape[0]))

    return stacked
