"""Gemma 2 (Gemma Team 2024, arXiv:2408.00118)."""

from __future__ import annotations

from functools import partial
from typing import Any

from flax import linen as nn

from lmx.nn import cache
from lmx.nn.attention import Attention, head_sizes, soft_cap
from lmx.nn.block import Block, sandwich_norm
from lmx.nn.decoder import CausalDecoder
from lmx.nn.masks import Causal, Window
from lmx.nn.mlp import GatedMlp, gelu_tanh
from lmx.nn.norms import RMSNorm
from lmx.nn.positions import Positions, Rotary
from lmx.nn.stack import Stack


def gemma2(
    *,
    vocab_size: int,
    dim: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int = 256,
    mlp_dim: int,
    windows: tuple[int | None, ...] | int = 4096,
    score_cap: float | None = 50.0,
    logit_cap: float | None = 30.0,
    query_scale: float | None = None,
    positions: Positions | None = None,
    eps: float = 1e-6,
    dropout_rate: Any = 0.0,
    tied: bool = True,
    remat: str | None = None,
    dtype: str = 'float32',
) -> CausalDecoder:
    """x + norm(branch(norm(x))) around grouped attention and GeGLU; every other layer sees a window only; scores and logits are capped.

    Args:
      windows: tokens that each layer sees, itself included, None for all; a number: layers 0, 2, 4, ... see so many, the others all.
      score_cap, logit_cap: x becomes cap tanh(x / cap) (section 2); None = none.
      query_scale: of the scores, by default 1 / sqrt(head_dim); the 27B model has 1 / sqrt(dim / num_heads).
      positions, eps, dropout_rate, tied, remat, dtype: as `lmx.models.llama`.

    Raises:
      BadInput: heads that do not divide.
    """
    heads, kv_heads, channels = head_sizes(dim, num_heads, num_kv_heads, head_dim)
    positions = Rotary() if positions is None else positions
    sizes = tuple(None if layer % 2 else windows for layer in range(num_layers)) if isinstance(windows, int) else tuple(windows)
    weights = nn.initializers.normal(0.02)
    attention = partial(
        Attention,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=channels,
        positions=positions,
        mask=Window(sizes),
        softcap=score_cap,
        scale=query_scale,
        use_bias=False,
        dropout_rate=dropout_rate,
        kernel_init=weights,
        out_init=weights,
    )
    mlp = partial(GatedMlp, mlp_dim=mlp_dim, activation=gelu_tanh, kernel_init=weights, out_init=weights)
    norm = partial(RMSNorm, eps=eps, offset=1.0)
    stack = partial(
        Stack,
        block=partial(Block, attention=attention, mlp=mlp, norm=norm, residual=sandwich_norm, dropout_rate=dropout_rate),
        num_layers=num_layers,
        mask=Causal(),
        positions=positions,
        norm=norm,
        dropout_rate=dropout_rate,
        remat=remat,
    )
    return CausalDecoder(
        vocab_size=vocab_size,
        dim=dim,
        stack=stack,
        empty_cache=partial(cache.empty, num_layers=num_layers, num_kv_heads=kv_heads, head_dim=channels, dtype=dtype),
        tied=tied,
        embed_scale=dim**0.5,
        logits=partial(soft_cap, cap=logit_cap),
        dtype=dtype,
    )
