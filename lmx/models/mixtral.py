"""Mixtral (Jiang et al. 2024, arXiv:2401.04088)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from flax import linen as nn

from lmx.models.llama import llama
from lmx.nn import moe
from lmx.nn.decoder import CausalDecoder
from lmx.nn.masks import Window
from lmx.spec import extends


@extends(llama, 'mlp', 'mask')
def mixtral(
    *,
    mlp_dim: int,
    num_experts: int = 8,
    num_selected: int = 2,
    window: int | None = None,
    path: Callable[..., Any] = moe.dropless,
    routing: Callable[..., moe.Routing] = moe.softmax_of_selected,
    balance: Callable[..., Any] = moe.sequence_balance,
    balance_coefficient: Any = 0.01,
    z_coefficient: Any = 0.0,
    **keywords: Any,
) -> CausalDecoder:
    """LLaMA whose tokens each pass through 2 of 8 feed-forward layers: sum over the selected e of softmax(router(x))_e expert_e(x).

    Args:
      mlp_dim: of each expert.
      num_experts, num_selected: E and k.
      window: see `lmx.models.mistral`.
      path, routing, balance, balance_coefficient, z_coefficient: see `lmx.nn.moe.Experts`; `batch_balance`, as in the
        paper, does not add up over microbatches.
      keywords: as `lmx.models.llama`.

    Raises:
      BadInput: more experts selected than there are.
    """
    weights = nn.initializers.normal(0.02)
    experts = partial(
        moe.Experts,
        num_experts=num_experts,
        num_selected=num_selected,
        mlp_dim=mlp_dim,
        path=path,
        routing=routing,
        balance=balance,
        balance_coefficient=balance_coefficient,
        z_coefficient=z_coefficient,
        kernel_init=weights,
        out_init=weights,
    )
    return llama(mlp_dim=mlp_dim, mlp=experts, mask=None if window is None else Window(window), **keywords)
