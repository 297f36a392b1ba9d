"""How a model knows where a token stands, as values. Embedding and attention get the same value and use their part of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from lmx.types import Array


@dataclasses.dataclass(frozen=True)
class Positions:
    """No positions at all; the subclasses change one of the three parts."""

    @property
    def table_length(self) -> int | None:
        """Rows of a learned table that is added to the token embeddings, which also is the longest input; None without one."""
        return None

    def rotate(self, x_BTHC: Array, positions_BT: Array) -> Array:
        """Applied to queries and to keys."""
        return x_BTHC

    def bias(self, q_positions_BT: Array, k_positions_BS: Array) -> Array | None:
        """[B, H, T, S], added to the scores."""
        return None


@dataclasses.dataclass(frozen=True)
class Learned(Positions):
    """A table of `max_length` embeddings (Gehring et al. 2017, arXiv:1705.03122; GPT-2)."""

    max_length: int

    @property
    def table_length(self) -> int:
        return self.max_length


@dataclasses.dataclass(frozen=True)
class Rotary(Positions):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864), the two halves of a head forming the pairs, as LLaMA's weights expect.

    Attributes:
      base: the longest wavelength is 2 pi base; may be traced.
    """

    base: Any = 10_000.0

    def rotate(self, x_BTHC: Array, positions_BT: Array) -> Array:
        half = x_BTHC.shape[-1] // 2
        frequency = jnp.asarray(self.base, jnp.float32) ** (-jnp.arange(half, dtype=jnp.float32) / half)
        angle_BT1C = positions_BT[:, :, None, None].astype(jnp.float32) * frequency
        cos, sin = jnp.cos(angle_BT1C).astype(x_BTHC.dtype), jnp.sin(angle_BT1C).astype(x_BTHC.dtype)
        first, second = x_BTHC[..., :half], x_BTHC[..., half:]
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
