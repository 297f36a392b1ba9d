"""Position-wise feed-forward layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from lmx.nn.dropout import Dropout
from lmx.nn.linear import Init, Linear
from lmx.types import Array

gelu = functools.partial(jax.nn.gelu, approximate=False)
"""GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""

gelu_tanh = functools.partial(jax.nn.gelu, approximate=True)
"""GELU by the tanh formula, as GPT-2 has it."""


class Mlp(nn.Module):
    """down(activation(up(x))): [..., D] -> [..., D] through `mlp_dim` channels (Vaswani et al. 2017, equation 2). Dropout is of those."""

    mlp_dim: int
    activation: Callable[[Array], Array] = gelu_tanh
    use_bias: bool = True
    kernel_init: Init = nn.initializers.lecun_normal()
    out_init: Init = nn.initializers.lecun_normal()
    dropout_rate: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = self.activation(Linear(self.mlp_dim, self.use_bias, self.kernel_init, name='up')(x))
        return Linear(x.shape[-1], self.use_bias, self.out_init, name='down')(Dropout(self.dropout_rate)(hidden))


class GatedMlp(nn.Module):
    """down(activation(gate(x)) * up(x)); with SiLU it is SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    mlp_dim: int
    activation: Callable[[Array], Array] = jax.nn.silu
    use_bias: bool = False
    kernel_init: Init = nn.initializers.lecun_normal()
    out_init: Init = nn.initializers.lecun_normal()
    dropout_rate: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        gate = self.activation(Linear(self.mlp_dim, self.use_bias, self.kernel_init, name='gate')(x))
        up = Linear(self.mlp_dim, self.use_bias, self.kernel_init, name='up')(x)
        return Linear(x.shape[-1], self.use_bias, self.out_init, name='down')(Dropout(self.dropout_rate)(gate * up))
