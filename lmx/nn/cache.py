"""The keys and values of earlier tokens, in arrays of fixed size, so that decoding compiles once."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from lmx.types import Array


class LayerCache(NamedTuple):
    """One layer's part: [B, S, K, C] each."""

    keys: Array
    values: Array


class Memory(struct.PyTreeNode):
    """What the layers of a decoder read of a source.

    Attributes:
      layers: [L, B, S, H, C] keys and values.
      segments_BS: int32, 0 = padding; None = no padding, one segment.
      copied: (keys [B, S, D], tokens [B, S]) for models that copy from the source, see `lmx.nn.pointer`.
    """

    layers: LayerCache
    segments_BS: Array | None = None
    copied: tuple[Array, Array] | None = None

    def take(self, rows: Array) -> Memory:
        """The given rows, in the given order, repeated where they are."""
        layers = LayerCache(*(jnp.take(array, rows, axis=1) for array in self.layers))
        segments_BS, copied = jax.tree.map(lambda array: jnp.take(array, rows, axis=0), (self.segments_BS, self.copied))
        return Memory(layers, segments_BS, copied)


class Cache(struct.PyTreeNode):
    """What a decoder has read, row by row.

    Slot s of a row holds the row's token s: padding is never stored, wherever it stands in the input, so rows of unequal length
    share a batch. What lies behind `length_B` is stale and is overwritten before anything may attend to it.

    Attributes:
      layers: [L, B, S, K, C] keys and values.
      length_B: int32, tokens read so far. Tokens beyond the S slots are lost without a sign: check `max_length` first.
    """

    layers: LayerCache
    length_B: Array

    @property
    def max_length(self) -> int:
        return self.layers.keys.shape[2]

    def take(self, rows: Array) -> Cache:
        """The given rows, in the given order, repeated where they are: what beam search does between steps."""
        layers = LayerCache(*(jnp.take(array, rows, axis=1) for array in self.layers))
        return self.replace(layers=layers, length_B=jnp.take(self.length_B, rows))

    def rewind(self, length_B: Array) -> Cache:
        """Forgets the tokens from `length_B` on: what speculative decoding does with rejected ones."""
        return self.replace(length_B=jnp.minimum(self.length_B, length_B).astype(jnp.int32))

    def slots(self, real_BT: Array) -> Array:
        """The slots [B, T] that T new tokens go to; padding (not `real_BT`) gets S, which is no slot."""
        count = jnp.cumsum(real_BT, axis=1, dtype=jnp.int32)
        return jnp.where(real_BT, self.length_B[:, None] + count - 1, self.max_length)


def empty(batch_size: int, max_length: int, *, num_layers: int, num_kv_heads: int, head_dim: int, dtype: Any = 'float32') -> Cache:
    """A cache with nothing in it."""
    shape = (num_layers, batch_size, max_length, num_kv_heads, head_dim)
    layers = LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
    return Cache(layers=layers, length_B=jnp.zeros((batch_size,), jnp.int32))


def write(layer: LayerCache, keys_BTKC: Array, values_BTKC: Array, slots_BT: Array) -> LayerCache:
    """The layer's cache with T new tokens in the given slots; what has no slot is dropped."""
    rows = jnp.arange(slots_BT.shape[0])[:, None]
    return LayerCache(
        layer.keys.at[rows, slots_BT].set(keys_BTKC.astype(layer.keys.dtype), mode='drop'),
        layer.values.at[rows, slots_BT].set(values_BTKC.astype(layer.values.dtype), mode='drop'),
    )
