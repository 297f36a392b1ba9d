"""Products with a weight matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmx.nn import partition
from lmx.types import Array

Init = Callable[..., Array]


def dot(x: Array, w: Array, out_dtype: Any = None) -> Array:
    """x [..., I] times w [I, O] -> [..., O] in `out_dtype`, by default x's.

    The leading axes become one: XLA's CPU backend is slow at the gradient of a product over several leading axes. Where a mesh splits
    positions they stay apart, since an axis made of two that are split would have to be gathered.
    """
    if partition.splits_positions():
        return jax.lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=out_dtype)
    out = jax.lax.dot(x.reshape(-1, x.shape[-1]), w, preferred_element_type=out_dtype)
    return out.reshape(*x.shape[:-1], w.shape[-1])


class Linear(nn.Module):
    """x [..., I] -> x kernel + bias, [..., features], in x's dtype. Parameters: `kernel` [I, features], `bias` [features]."""

    features: int
    use_bias: bool = True
    kernel_init: Init = nn.initializers.lecun_normal()
    bias_init: Init = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param('kernel', self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        out = dot(x, kernel.astype(x.dtype))
        if self.use_bias:
            out += self.param('bias', self.bias_init, (self.features,), jnp.float32).astype(x.dtype)
        return out
