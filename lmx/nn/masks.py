"""Who may attend to whom, as values: `Causal() & Window(128) & Segments(ids, ids)`. Only attention itself makes them dense.

A mask speaks of indices: where a token stands in its row, or in the cache. These are not the positions that a model
encodes, which start over in every packed segment.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import struct

from lmx.types import Array

NO_LIMIT = 1 << 30


class Mask(struct.PyTreeNode):
    """A pytree, so that it passes through jit, scan and remat. `&` and `|` combine masks."""

    def dense(self, q_index_BT: Array, k_index_BS: Array) -> Array:
        """-> bool, broadcastable to [B, 1, T, S]: True where the query may attend to the key. An index may have a batch axis of 1."""
        raise NotImplementedError

    def at(self, layer: Array) -> Mask:
        """This mask in one layer of the stack."""
        return self

    def __and__(self, other: Mask) -> Mask:
        return Both(self, other)

    def __or__(self, other: Mask) -> Mask:
        return Either(self, other)


class Both(Mask):
    a: Mask
    b: Mask

    def dense(self, q_index_BT: Array, k_index_BS: Array) -> Array:
        return self.a.dense(q_index_BT, k_index_BS) & self.b.dense(q_index_BT, k_index_BS)

    def at(self, layer: Array) -> Mask:
        return Both(self.a.at(layer), self.b.at(layer))


class Either(Mask):
    a: Mask
    b: Mask

    def dense(self, q_index_BT: Array, k_index_BS: Array) -> Array:
        return self.a.dense(q_index_BT, k_index_BS) | self.b.dense(q_index_BT, k_index_BS)

    def at(self, layer: Array) -> Mask:
        return Either(self.a.at(layer), self.b.at(layer))


class Causal(Mask):
    """A token sees itself and what is before it."""

    def dense(self, q_index_BT: Array, k_index_BS: Array) -> Array:
        return k_index_BS[:, None, None, :] <= q_index_BT[:, None, :, None]


class Window(Mask):
    """A token sees the `size` - 1 tokens next to it on either side, and itself; with `Causal`, the last `size`.

    `size` may be a tuple with one for each layer, None for layers that see everything.
    """

    size: Any = struct.field(pytree_node=False)

    def dense(self, q_index_BT: Array, k_index_BS: Array) -> Array:
        return abs(q_index_BT[:, None, :, None] - k_index_BS[:, None, None, :]) < self.size

    def at(self, layer: Array) -> Mask:
        if not isinstance(self.size, tuple):
            return self
        return Near(jnp.asarray([NO_LIMIT if size is None else size for size in self.size], jnp.int32)[layer])


class Near(Mask):
    """`Window` whose size is an array, int32 []."""

    size: Array

    def dense(self, q_index_BT: Array, k_index_BS: Array) -> Array:
        return abs(q_index_BT[:, None, :, None] - k_index_BS[:, None, None, :]) < self.size


class Segments(Mask):
    """Tokens see their own segment only. Id 0 is padding, which nobody sees and which sees nobody."""

    q_ids_BT: Array
    k_ids_BS: Array

    def dense(self, q_index_BT: Array, k_index_BS: Array) -> Array:
        k_ids = self.k_ids_BS[:, None, None, :]
        return (self.q_ids_BT[:, None, :, None] == k_ids) & (k_ids != 0)


class Before(Mask):
    """The first `length_B` keys of each row: what a memory holds, or with `Causal() | Before(n)` the prefix that everyone sees."""

    length_B: Array

    def dense(self, q_index_BT: Array, k_index_BS: Array) -> Array:
        return (k_index_BS < self.length_B[:, None])[:, None, None, :]
