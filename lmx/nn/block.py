"""A residual layer, assembled from factories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from lmx.nn.attention import Context
from lmx.nn.cache import LayerCache
from lmx.nn.dropout import Dropout
from lmx.types import Array

Branch = Callable[[Array], tuple[Array, Any]]


def pre_norm(block: Block, name: str, x: Array, branch: Branch) -> tuple[Array, Any]:
    """x + branch(norm(x)) (Xiong et al. 2020, arXiv:2002.04745; GPT-2)."""
    out, rest = branch(block.norm(name=f'{name}_norm')(x))
    return x + Dropout(block.dropout_rate)(out), rest


def post_norm(block: Block, name: str, x: Array, branch: Branch) -> tuple[Array, Any]:
    """norm(x + branch(x)) (Vaswani et al. 2017; BERT)."""
    out, rest = branch(x)
    return block.norm(name=f'{name}_norm')(x + Dropout(block.dropout_rate)(out)), rest


def sandwich_norm(block: Block, name: str, x: Array, branch: Branch) -> tuple[Array, Any]:
    """x + post_norm(branch(norm(x))) (Ding et al. 2021, arXiv:2105.13290, section 2.4; Gemma 2)."""
    out, rest = branch(block.norm(name=f'{name}_norm')(x))
    return x + Dropout(block.dropout_rate)(block.norm(name=f'{name}_post_norm')(out)), rest


class Block(nn.Module):
    """Self-attention, cross-attention where there is a memory, and a feed-forward layer, each a branch around which x passes.

    Attributes:
      attention: (name=) -> a module (x, context, cache) -> (x, cache).
      mlp: (name=) -> a module x -> x.
      norm: (name=) -> a module x -> x.
      residual: how a branch and its norm are joined to x: `pre_norm`, `post_norm`, `sandwich_norm` or your own.
      cross_attention: (name=) -> a module (x, context, memory) -> x.
      dropout_rate: of what each branch adds.
    """

    attention: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    residual: Callable[..., tuple[Array, Any]] = pre_norm
    cross_attention: Callable[..., nn.Module] | None = None
    dropout_rate: Any = None

    @nn.compact
    def __call__(
        self, x_BTD: Array, context: Context, cache: LayerCache | None = None, memory: LayerCache | None = None
    ) -> tuple[Array, LayerCache | None]:
        attention, mlp = self.attention(name='attention'), self.mlp(name='mlp')
        x_BTD, cache = self.residual(self, 'attention', x_BTD, lambda x: attention(x, context, cache))
        if self.cross_attention is not None:
            cross = self.cross_attention(name='cross_attention')
            x_BTD, _ = self.residual(self, 'cross_attention', x_BTD, lambda x: (cross(x, context, memory), None))
        x_BTD, _ = self.residual(self, 'mlp', x_BTD, lambda x: (mlp(x), None))
        self.sow('intermediates', 'hidden', x_BTD)
        return x_BTD, cache
