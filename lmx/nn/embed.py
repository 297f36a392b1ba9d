"""Tokens to vectors and back."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from lmx.nn import partition
from lmx.nn.linear import Init, dot
from lmx.types import Array


class Embed(nn.Module):
    """A table of `length` vectors. Parameter: `embedding` [length, D].

    Attributes:
      dtype: of what comes out.
      scale: what comes out is multiplied by it, sqrt(D) in Vaswani et al. 2017.
    """

    length: int
    dim: int
    dtype: Any = 'float32'
    embed_init: Init = nn.initializers.normal(0.02)
    scale: float | None = None

    def setup(self) -> None:
        self.embedding = self.param('embedding', self.embed_init, (self.length, self.dim), jnp.float32)

    def __call__(self, ids: Array) -> Array:
        """[...] int -> [..., D] in `dtype`. An id that the table has not gives NaN, so that it does not pass unseen."""
        out = partition.rows(jnp.take(partition.table(self.embedding), ids, axis=0, mode='fill').astype(self.dtype))
        return out if self.scale is None else out * jnp.asarray(self.scale, self.dtype)

    def unembed(self, x: Array) -> Array:
        """[..., D] -> scores of all ids, [..., length] float32: the table as output weights (Press and Wolf 2017, arXiv:1608.05859)."""
        return partition.scores(dot(x, partition.table(self.embedding).T.astype(x.dtype), jnp.float32))


class Unembed(nn.Module):
    """[..., D] -> scores of `length` ids, [..., length] float32. Parameters: `embedding` [length, D] and, with `use_bias`, `bias` [length]."""

    length: int
    use_bias: bool = False
    embed_init: Init = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        table = self.param('embedding', self.embed_init, (self.length, x.shape[-1]), jnp.float32)
        out = partition.scores(dot(x, partition.table(table).T.astype(x.dtype), jnp.float32))
        return out + self.param('bias', nn.initializers.zeros, (self.length,), jnp.float32) if self.use_bias else out
