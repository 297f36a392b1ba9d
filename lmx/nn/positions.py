"""How a model knows where a token stands, as values. Embedding and attention get the same value and use their part of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lmx.nn.linear import Init
from lmx.types import Array


@dataclasses.dataclass(frozen=True)
class Positions:
    """No positions at all; the subclasses change one of the parts."""

    @property
    def table_length(self) -> int | None:
        """Rows of a learned table that is added to the token embeddings; None without one."""
        return None

    @property
    def longest(self) -> int | None:
        """The longest input; None without a limit."""
        return None

    def rows(self, positions_BT: Array) -> Array:
        """Rows of the learned table."""
        return positions_BT

    def added(self, positions_BT: Array, dim: int) -> Array | None:
        """[B, T, D], added to the token embeddings."""
        return None

    def rotate(self, x_BTHC: Array, positions_BT: Array) -> Array:
        """Applied to queries and to keys."""
        return x_BTHC

    def bias(self, q_positions_BT: Array, k_positions_BS: Array) -> Array | None:
        """[B, H, T, S], added to the scores."""
        return None

    def at(self, layer: Array) -> Positions:
        """This value in one layer of the stack."""
        return self


@dataclasses.dataclass(frozen=True)
class Learned(Positions):
    """A table of embeddings (Gehring et al. 2017, arXiv:1705.03122; GPT-2, BERT).

    Attributes:
      max_length: the longest input.
      offset: rows before that of position 0, which nothing reads; 2 in RoBERTa and BART.
    """

    max_length: int
    offset: int = 0

    @property
    def table_length(self) -> int:
        return self.max_length + self.offset

    @property
    def longest(self) -> int:
        return self.max_length

    def rows(self, positions_BT: Array) -> Array:
        return positions_BT + self.offset


@dataclasses.dataclass(frozen=True)
class Sinusoidal(Positions):
    """sin(p / 10000^(2i/D)) in even and cos in odd channels (Vaswani et al. 2017, section 3.5)."""

    def added(self, positions_BT: Array, dim: int) -> Array:
        frequency = 10_000.0 ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
        angle = positions_BT[..., None].astype(jnp.float32) * frequency
        return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*positions_BT.shape, -1)[..., :dim]


Scaling = Callable[[np.ndarray, float], tuple[np.ndarray, float]]
"""(frequencies in radians per token, base) -> (frequencies of a longer context, factor on queries and on keys)."""


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor` (Chen et al. 2023, arXiv:2306.15595)."""

    factor: float

    def __call__(self, frequency: np.ndarray, base: float) -> tuple[np.ndarray, float]:
        return frequency / self.factor, 1.0


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Long wavelengths divided by `factor`, short ones kept, those between blended (Dubey et al. 2024, arXiv:2407.21783; LLaMA 3.1's code).

    Attributes:
      original_length: tokens that the model was first trained on; a wavelength is long above original_length / low and short below
        original_length / high.
    """

    factor: float
    original_length: int
    low: float = 1.0
    high: float = 4.0

    def __call__(self, frequency: np.ndarray, base: float) -> tuple[np.ndarray, float]:
        turns = self.original_length * frequency / (2 * math.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return frequency * (kept + (1 - kept) / self.factor), 1.0


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """Channels that turn rarely within the original context are slowed down, those that turn often kept (Peng et al. 2023, arXiv:2309.00071).

    Attributes:
      original_length: tokens that the model was first trained on.
      fast, slow: turns within it above which a channel is kept, and below which it is fully divided by `factor`.
      amplitude: on queries and keys; None = 0.1 ln(factor) + 1, equation 22.
      whole: the ends of the ramp are rounded to whole channels.
    """

    factor: float
    original_length: int
    fast: float = 32.0
    slow: float = 1.0
    amplitude: float | None = None
    whole: bool = True

    def __call__(self, frequency: np.ndarray, base: float) -> tuple[np.ndarray, float]:
        half = len(frequency)

        def channel(turns: float) -> float:
            return half * math.log(self.original_length / (turns * 2 * math.pi)) / math.log(base)

        low, high = channel(self.fast), channel(self.slow)
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        divided = np.clip((np.arange(half) - low) / max(high - low, 1e-3), 0, 1)
        amplitude = self.amplitude if self.amplitude is not None else 0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0
        return frequency * (1 - divided + divided / self.factor), amplitude


@dataclasses.dataclass(frozen=True)
class Rotary(Positions):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864), the two halves of a head forming the pairs, as LLaMA's weights expect.

    Attributes:
      base: the longest wavelength is 2 pi base; may be traced, or a tuple with one for each layer.
      scaling: for contexts longer than the one trained on; needs a static base.
    """

    base: Any = 10_000.0
    scaling: Scaling | None = None

    def at(self, layer: Array) -> Rotary:
        return Rotary(jnp.asarray(self.base, jnp.float32)[layer], self.scaling) if isinstance(self.base, tuple) else self

    def rotate(self, x_BTHC: Array, positions_BT: Array) -> Array:
        half = x_BTHC.shape[-1] // 2
        frequency, amplitude = self.frequencies(half)
        angle_BT1C = positions_BT[:, :, None, None].astype(jnp.float32) * frequency
        cos, sin = ((amplitude * turn(angle_BT1C)).astype(x_BTHC.dtype) for turn in (jnp.cos, jnp.sin))
        first, second = x_BTHC[..., :half], x_BTHC[..., half:]
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def frequencies(self, half: int) -> tuple[Array, float]:
        """Radians per token of the `half` channel pairs, and the factor on queries and keys."""
        if self.scaling is None:
            return jnp.asarray(self.base, jnp.float32) ** (-jnp.arange(half, dtype=jnp.float32) / half), 1.0
        frequency, amplitude = self.scaling(float(self.base) ** (-np.arange(half) / half), float(self.base))
        return jnp.asarray(frequency, jnp.float32), amplitude


@dataclasses.dataclass(frozen=True)
class Alibi(Positions):
    """Scores fall with distance, in every head at a rate of its own (Press et al. 2021, arXiv:2108.12409): -slope |q - k|.

    Slopes are 2^(-8h/n) for n heads; for an n that is no power of two, those of the next lower power and every other one of the next higher.
    """

    num_heads: int

    def bias(self, q_positions_BT: Array, k_positions_BS: Array) -> Array:
        power = 1 << (self.num_heads.bit_length() - 1)
        slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
        slopes += [2 ** (-4 * (2 * head + 1) / power) for head in range(self.num_heads - power)]
        distance = jnp.abs(q_positions_BT[:, None, :, None] - k_positions_BS[:, None, None, :]).astype(jnp.float32)
        return -jnp.asarray(slopes, jnp.float32)[None, :, None, None] * distance


class RelativeBias(nn.Module):
    """A learned bias for every head and bucket of distance, the same in all layers (T5; Raffel et al. 2019, arXiv:1910.10683).

    Half of the buckets are single distances, the others grow logarithmically up to `max_distance`. Parameter: `embedding` [buckets, H].
    """

    num_heads: int
    bidirectional: bool
    num_buckets: int = 32
    max_distance: int = 128
    bias_init: Init = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, q_positions_BT: Array, k_positions_BS: Array) -> Array:
        """-> [B, H, T, S] float32."""
        table = self.param('embedding', self.bias_init, (self.num_buckets, self.num_heads), jnp.float32)
        behind = q_positions_BT[:, :, None] - k_positions_BS[:, None, :]
        # A product with a one-hot matrix: the gradient of a gather would be a scatter into few rows.
        hot = jax.nn.one_hot(self.bucket(behind), self.num_buckets, dtype=jnp.float32)
        return jnp.einsum('BTSN,NH->BHTS', hot, table)

    @nn.nowrap
    def bucket(self, behind: Array) -> Array:
        """The bucket of a key that stands `behind` tokens before the query."""
        buckets = self.num_buckets // 2 if self.bidirectional else self.num_buckets
        start = jnp.where(behind < 0, buckets, 0) if self.bidirectional else 0
        distance = jnp.abs(behind) if self.bidirectional else jnp.maximum(behind, 0)
        exact = buckets // 2
        ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(self.max_distance / exact)
        far = jnp.minimum(exact + (ratio * (buckets - exact)).astype(jnp.int32), buckets - 1)
        return start + jnp.where(distance < exact, distance, far)


def within_segments(segments_BT: Array) -> Array:
    """Positions [B, T] that start over in every segment, and behind padding on the left."""
    index = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)[None]
    changed = jnp.concatenate([jnp.ones_like(segments_BT[:, :1], bool), segments_BT[:, 1:] != segments_BT[:, :-1]], axis=1)
    return index - jax.lax.cummax(jnp.where(changed, index, 0), axis=1)
