"""Normalisation over the last axis, with statistics in float32 and the output in the input's dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmx.types import Array


def layer_norm(x: Array, scale: Array, bias: Array | None, eps: float) -> Array:
    """(x - mean) / sqrt(variance + eps) * scale + bias (Ba et al. 2016, arXiv:1607.06450)."""
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    out = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps) * scale
    return (out if bias is None else out + bias).astype(x.dtype)


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """x / sqrt(mean square + eps) * scale (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps) * scale).astype(x.dtype)


class LayerNorm(nn.Module):
    """Parameters: `scale` [D], and `bias` [D] with `use_bias`."""

    eps: float = 1e-5
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param('scale', nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],), jnp.float32) if self.use_bias else None
        return layer_norm(x, scale, bias, self.eps)


class RMSNorm(nn.Module):
    """Parameter: `scale` [D].

    Attributes:
      offset: added to the scale, which then starts at 1 - offset; 1 in Gemma, where decay thus draws towards the identity.
    """

    eps: float = 1e-6
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param('scale', nn.initializers.constant(1 - self.offset), (x.shape[-1],), jnp.float32)
        return rms_norm(x, scale if self.offset == 0 else scale + self.offset, self.eps)
