"""Tokens to vectors and back."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from lmx.nn.linear import Init, dot
from lmx.types import Array


class Embed(nn.Module):
    """A table of `length` vectors. Parameter: `embedding` [length, D]."""

    length: int
    dim: int
    dtype: Any = 'float32'
    embed_init: Init = nn.initializers.normal(0.02)

    def setup(self) -> None:
        self.embedding = self.param('embedding', self.embed_init, (self.length, self.dim), jnp.float32)

    def __call__(self, ids: Array) -> Array:
        """[...] int -> [..., D] in `dtype`. An id that the table has not gives NaN, so that it does not pass unseen."""
        return jnp.take(self.embedding, ids, axis=0, mode='fill').astype(self.dtype)

    def unembed(self, x: Array) -> Array:
        """[..., D] -> scores of all ids, [..., length] float32: the table as output weights (Press and Wolf 2017, arXiv:1608.05859)."""
        return dot(x, self.embedding.T.astype(x.dtype), jnp.float32)
