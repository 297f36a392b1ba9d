"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners")."""

from __future__ import annotations

from functools import partial
from typing import Any

from flax import linen as nn

from lmx.nn import cache
from lmx.nn.attention import Attention, head_sizes
from lmx.nn.block import Block
from lmx.nn.decoder import CausalDecoder
from lmx.nn.masks import Causal
from lmx.nn.mlp import Mlp
from lmx.nn.norms import LayerNorm
from lmx.nn.positions import Learned, Positions
from lmx.nn.stack import Stack


def gpt(
    *,
    vocab_size: int,
    dim: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    mlp_dim: int | None = None,
    max_length: int,
    positions: Positions | None = None,
    dropout_rate: Any = 0.0,
    use_bias: bool = True,
    tied: bool = True,
    remat: str | None = None,
    dtype: str = 'float32',
) -> CausalDecoder:
    """Pre-LayerNorm, GELU by the tanh formula, N(0, 0.02) weights, those of residual branches divided by sqrt(2 num_layers).

    Args:
      num_kv_heads: None for multi-head attention, fewer than `num_heads` for grouped.
      head_dim, mlp_dim: dim / num_heads and 4 dim by default.
      max_length: rows of the table of learned positions, which is the longest input.
      positions: None for learned ones; `Rotary()` knows no longest input.
      dropout_rate: of embeddings, attention weights and residual branches.
      use_bias: of all products and norms.
      remat: None, 'full' or 'dots'; see `lmx.nn.stack`.
      dtype: 'float32' or 'bfloat16', what is computed in.

    Raises:
      BadInput: heads that do not divide.
    """
    heads, kv_heads, channels = head_sizes(dim, num_heads, num_kv_heads, head_dim)
    positions = Learned(max_length) if positions is None else positions
    init = {'kernel_init': nn.initializers.normal(0.02), 'out_init': nn.initializers.normal(0.02 / (2 * num_layers) ** 0.5)}
    norm = partial(LayerNorm, use_bias=use_bias)
    attention = partial(
        Attention,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=channels,
        positions=positions,
        use_bias=use_bias,
        dropout_rate=dropout_rate,
        **init,
    )
    mlp = partial(Mlp, mlp_dim=4 * dim if mlp_dim is None else mlp_dim, use_bias=use_bias, **init)
    stack = partial(
        Stack,
        block=partial(Block, attention=attention, mlp=mlp, norm=norm, dropout_rate=dropout_rate),
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
        dtype=dtype,
    )
