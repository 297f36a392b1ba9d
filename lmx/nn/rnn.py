"""Recurrent layers with PyTorch's equations: Elman (1990), LSTM (Hochreiter and Schmidhuber 1997), GRU (Cho et al. 2014, arXiv:1406.1078).

The input's product is one for the whole text; only what depends on the state is computed token by token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmx.nn.dropout import Dropout
from lmx.nn.linear import Init, Linear, dot
from lmx.types import Array

State = tuple[Array, ...]
"""What a layer remembers, [B, F] each; the first is its output."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One kind of recurrence.

    Attributes:
      gates: G, products with the input and with the state, side by side.
      states: arrays that the layer remembers.
      step: (input's product [B, G F], state's product [B, G F], state) -> the next state.
    """

    gates: int
    states: int
    step: Callable[[Array, Array, State], State]


def _elman(x: Array, h: Array, state: State) -> State:
    return (jnp.tanh(x + h),)


def _lstm(x: Array, h: Array, state: State) -> State:
    i, f, g, o = jnp.split(x + h, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def _gru(x: Array, h: Array, state: State) -> State:
    (xr, xz, xn), (hr, hz, hn) = jnp.split(x, 3, axis=-1), jnp.split(h, 3, axis=-1)
    update = jax.nn.sigmoid(xz + hz)
    return ((1 - update) * jnp.tanh(xn + jax.nn.sigmoid(xr + hr) * hn) + update * state[0],)


elman = Cell(1, 1, _elman)
"""h' = tanh(W x + b + U h + c)."""
lstm = Cell(4, 2, _lstm)
"""i, f, o = sigmoid, g = tanh of W x + b + U h + c; c' = f c + i g; h' = o tanh(c'). Gates stand in the order i, f, g, o."""
gru = Cell(3, 1, _gru)
"""r, z = sigmoid; n = tanh(W x + b + r (U h + c)); h' = (1 - z) n + z h. Gates stand in the order r, z, n."""
CELLS = {'elman': elman, 'lstm': lstm, 'gru': gru}


class Recurrent(nn.Module):
    """x [B, T, D] -> (h [B, T, features], the state behind the last token). Parameters: `input`, `recurrent`, each `kernel` and `bias`.

    Padding (segments 0) leaves the state as it is and comes out as zeros; a new segment starts from zeros.

    Attributes:
      features: F.
      cell: `elman`, `lstm`, `gru` or your own.
      reverse: reads from the last token to the first.
      weight_drop_rate: of the recurrent kernel, the same for all tokens of a batch (DropConnect; Merity et al. 2017, arXiv:1708.02182).
      kernel_init: of both kernels; None = uniform within 1 / sqrt(F), as in PyTorch, biases too.
    """

    features: int
    cell: Cell = lstm
    reverse: bool = False
    weight_drop_rate: Any = None
    kernel_init: Init | None = None

    @nn.compact
    def __call__(self, x_BTD: Array, state: State | None = None, segments: Array | None = None, resets: bool = True) -> tuple[Array, State]:
        """`resets` False: segments only tell padding from tokens, as with a state that goes on."""
        width, dtype = self.cell.gates * self.features, x_BTD.dtype
        init = _uniform(self.features**-0.5) if self.kernel_init is None else self.kernel_init
        bias_init = _uniform(self.features**-0.5)
        inputs = Linear(width, kernel_init=init, bias_init=bias_init, name='input')(x_BTD)
        kernel, bias = Recurrence(width, init, bias_init, name='recurrent')(self.features)
        kernel = Dropout(self.weight_drop_rate)(kernel).astype(dtype)
        state = zeros(self.cell, x_BTD.shape[0], self.features, dtype) if state is None else state
        ones = jnp.ones(x_BTD.shape[:2], jnp.int32) if segments is None else segments
        fresh = _begins(ones[:, ::-1])[:, ::-1] if self.reverse else _begins(ones)
        fresh = fresh & resets

        def one(state: State, now: tuple[Array, Array, Array]) -> tuple[State, Array]:
            x_BF, real_B1, fresh_B1 = now
            state = tuple(jnp.where(fresh_B1, jnp.zeros((), dtype), array) for array in state)
            made = self.cell.step(x_BF, dot(state[0], kernel) + bias.astype(dtype), state)
            state = tuple(jnp.where(real_B1, new, old) for new, old in zip(made, state))
            return state, jnp.where(real_B1, state[0], jnp.zeros((), dtype))

        by_time = (inputs.swapaxes(0, 1), (ones != 0).T[..., None], fresh.T[..., None])
        state, out_TBF = jax.lax.scan(one, state, by_time, reverse=self.reverse, unroll=4)
        return out_TBF.swapaxes(0, 1), state


class Recurrence(nn.Module):
    """The parameters of a product that the loop makes."""

    width: int
    kernel_init: Init
    bias_init: Init

    @nn.compact
    def __call__(self, features: int) -> tuple[Array, Array]:
        kernel = self.param('kernel', self.kernel_init, (features, self.width), jnp.float32)
        return kernel, self.param('bias', self.bias_init, (self.width,), jnp.float32)


class Bidirectional(nn.Module):
    """x [B, T, D] -> ([B, T, 2 F], states of both directions). Parameters: `forward`, `backward`, as `Recurrent`."""

    features: int
    cell: Cell = lstm

    @nn.compact
    def __call__(self, x_BTD: Array, segments: Array | None = None) -> tuple[Array, tuple[State, State]]:
        ahead, last = Recurrent(self.features, self.cell, name='forward')(x_BTD, None, segments)
        back, first = Recurrent(self.features, self.cell, reverse=True, name='backward')(x_BTD, None, segments)
        return jnp.concatenate([ahead, back], axis=-1), (last, first)


class LockedDropout(nn.Module):
    """Drops the same channels at every token of a text (Gal and Ghahramani 2016, arXiv:1512.05287)."""

    rate: Any = None

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        drop = Dropout(self.rate)
        return x_BTD * drop(jnp.ones((x_BTD.shape[0], 1, x_BTD.shape[-1]), x_BTD.dtype)) if drop.active else x_BTD


def zeros(cell: Cell, batch: int, features: int, dtype: Any) -> State:
    """The state before the first token."""
    return tuple(jnp.zeros((batch, features), dtype) for _ in range(cell.states))


def _begins(segments_BT: Array) -> Array:
    """Where a token's segment is another than that of the last token before it, padding left out; never at a row's first token."""
    index = jnp.arange(segments_BT.shape[1])[None]
    last = jax.lax.cummax(jnp.where(segments_BT != 0, index, -1), axis=1)
    before = jnp.concatenate([jnp.full_like(last[:, :1], -1), last[:, :-1]], axis=1)
    other = jnp.take_along_axis(segments_BT, jnp.maximum(before, 0), axis=1) != segments_BT
    return (segments_BT != 0) & (before >= 0) & other


def _uniform(limit: float) -> Init:
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -limit, limit)
