"""A residual layer, assembled from factories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from lmx.nn.attention import Context
from lmx.nn.cache import LayerCache
from lmx.nn.dropout import Dropout
from lmx.types import Array


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): pre-norm (Xiong et al. 2020, arXiv:2002.04745; GPT-2).

    Attributes:
      attention: (name=) -> a module (x, context, cache) -> (x, cache).
      mlp: (name=) -> a module x -> x.
      norm: (name=) -> a module x -> x.
      dropout_rate: of what each branch adds.
    """

    attention: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    dropout_rate: Any = None

    @nn.compact
    def __call__(self, x_BTD: Array, context: Context, cache: LayerCache | None = None) -> tuple[Array, LayerCache | None]:
        attended, cache = self.attention(name='attention')(self.norm(name='attention_norm')(x_BTD), context, cache)
        x_BTD = x_BTD + Dropout(self.dropout_rate)(attended)
        changed = self.mlp(name='mlp')(self.norm(name='mlp_norm')(x_BTD))
        return x_BTD + Dropout(self.dropout_rate)(changed), cache
