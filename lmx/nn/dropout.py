"""Dropout (Srivastava et al. 2014) whose rate may be a traced number, which Flax's own cannot take."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from lmx.types import Array, BadInput


def dropout(x: Array, rate: Any, key: Array) -> Array:
    """Sets a random `rate` of x's elements to 0 and divides the rest by the share that is kept; `rate` is rounded to 1 / 65536.

    Two elements share one random number of 32 bits: on a CPU the numbers cost more than all else here.
    """
    limit = jnp.round(jnp.asarray(rate, jnp.float32) * 65536)
    pairs = jax.random.bits(key, (*x.shape[:-1], -(-x.shape[-1] // 2)), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(pairs, jnp.uint16).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
    # At a traced rate of 1 nothing is kept; the bound spares the gradient a division by 0.
    scale = 65536 / jnp.maximum(65536 - limit, 1)
    return jnp.where(halves >= limit.astype(jnp.uint32), x * scale.astype(x.dtype), jnp.zeros((), x.dtype))


class Drawn(struct.PyTreeNode):
    """Dropout whose key is drawn: a pure function, which other transformations may take in."""

    rate: Any
    key: Array

    def __call__(self, x: Array) -> Array:
        return dropout(x, self.rate, self.key)

    def fold(self, number: Array) -> Drawn:
        """The same with a key of its own for each number."""
        return self.replace(key=jax.random.fold_in(self.key, number))


class Dropout(nn.Module):
    """Active exactly when a 'dropout' key was given. A static rate of 0 or None leaves no trace in the program.

    Raises:
      BadInput: a static rate outside [0, 1).
    """

    rate: Any = None

    @property
    def active(self) -> bool:
        """Whether anything is dropped."""
        if isinstance(self.rate, (int, float)) and not 0 <= self.rate < 1:
            raise BadInput(f'dropout_rate {self.rate} is not in [0, 1); give the share that is dropped, such as 0.1')
        absent = self.rate is None or (isinstance(self.rate, (int, float)) and self.rate == 0)
        return not absent and self.has_rng('dropout')

    def __call__(self, x: Array) -> Array:
        drawn = self.drawn()
        return x if drawn is None else drawn(x)

    def drawn(self) -> Drawn | None:
        """The dropout of this call; None where nothing is dropped."""
        return Drawn(self.rate, self.make_rng('dropout')) if self.active else None
