"""Convolution over the tokens of a text (Waibel et al. 1989), with weight normalisation (Salimans and Kingma 2016, arXiv:1602.07868)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmx.nn.linear import Init, dot
from lmx.types import Array, BadInput

Padding = Callable[[int], tuple[int, int]]
"""Width of a filter -> zeros before the text and behind it."""


def same(width: int) -> tuple[int, int]:
    """A window around each token; an even width reaches one token further to the right, as in PyTorch."""
    return (width - 1) // 2, width // 2


def causal(width: int) -> tuple[int, int]:
    """A window that ends with each token."""
    return width - 1, 0


def valid(width: int) -> tuple[int, int]:
    """Whole windows only: the output is width - 1 shorter than the input."""
    return 0, 0


def conv(x_BTD: Array, kernel_WDF: Array, padding: Padding = same, segments: Array | None = None) -> Array:
    """y_t = sum over w of x_(t + w - left) kernel_w, [B, T + left + right - W + 1, F] in x's dtype; the sums run as in PyTorch.

    It is one product with the W shifted copies of x side by side. On 2 CPU cores that trains as fast as XLA's own convolution (within 10 %
    for widths of 3 and 5), is four times as fast for the two or three tokens of a decoding step, and lets each copy be masked.

    Args:
      padding: `same`, `causal`, `valid`.
      segments: int32 [B, T]; a token sees zeros in place of tokens of other segments, and of padding (0). Only where the output is as
        long as the input.

    Raises:
      BadInput: `valid` padding of fewer tokens than the filter is wide, or with segments.
    """
    (width, dim, features), length = kernel_WDF.shape, x_BTD.shape[1]
    left, right = padding(width)
    count = length + left + right - width + 1
    if count < 1:
        raise BadInput(f'a filter of width {width} finds no window in {length} tokens; pad them, or give a smaller width')
    if segments is not None and count != length:
        raise BadInput(f'segments need as many outputs as the {length} tokens, not {count}; use same or causal padding')
    padded = jnp.pad(x_BTD, ((0, 0), (left, right), (0, 0)))
    taps = [padded[:, w : w + count] for w in range(width)]
    if segments is not None:
        ids = jnp.pad(segments, ((0, 0), (left, right)))
        alike = [(ids[:, w : w + count] == segments) & (segments != 0) for w in range(width)]
        taps = [jnp.where(here[..., None], tap, jnp.zeros((), tap.dtype)) for here, tap in zip(alike, taps)]
    return dot(jnp.concatenate(taps, axis=-1), kernel_WDF.reshape(width * dim, features))


def glu(x: Array) -> Array:
    """a sigmoid(b), [..., 2 F] -> [..., F], a and b the halves of x (Dauphin et al. 2016, arXiv:1612.08083)."""
    a, b = jnp.split(x, 2, axis=-1)
    return a * jax.nn.sigmoid(b)


Parametrisation = Callable[[nn.Module, Init, tuple[int, ...]], Array]
"""(module, init, shape) -> the weights, made of parameters of the module."""


def plain(module: nn.Module, kernel_init: Init, shape: tuple[int, ...]) -> Array:
    """The weights themselves. Parameter: `kernel`."""
    return module.param('kernel', kernel_init, shape, jnp.float32)


def weight_norm(module: nn.Module, kernel_init: Init, shape: tuple[int, ...]) -> Array:
    """g v / |v|, equation 2 of Salimans and Kingma; the norm is of all that one output reads.

    Parameters: `kernel` (v) and `gain` (g, [F]), which starts as |v|, so that the weights start as `kernel_init` has them.
    """
    kernel = module.param('kernel', kernel_init, shape, jnp.float32)
    gain = module.param('gain', lambda key: _norm(kernel))
    return kernel * (gain / jnp.maximum(_norm(kernel), 1e-30))


def _norm(kernel: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=tuple(range(kernel.ndim - 1))))


class Conv(nn.Module):
    """x [B, T, D] -> `conv` + bias, [B, T', features], in x's dtype. Parameters: `kernel` [width, D, features], `bias` [features].

    Attributes:
      width: tokens that a filter sees; 1 is a linear map.
      padding: see `conv`.
      weights: `plain`, or `weight_norm`, which adds the parameter `gain`.
    """

    features: int
    width: int = 1
    padding: Padding = same
    use_bias: bool = True
    weights: Parametrisation = plain
    kernel_init: Init = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x_BTD: Array, segments: Array | None = None) -> Array:
        if self.width < 1:
            raise BadInput(f'a filter of width {self.width} sees no token; give at least 1')
        kernel: Any = self.weights(self, self.kernel_init, (self.width, x_BTD.shape[-1], self.features))
        out = conv(x_BTD, kernel.astype(x_BTD.dtype), self.padding, segments)
        if self.use_bias:
            out += self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32).astype(x_BTD.dtype)
        return out
