"""LLaMA (Touvron et al. 2023, arXiv:2302.13971 and 2307.09288; Dubey et al. 2024, arXiv:2407.21783), frame of most decoders since."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from flax import linen as nn

from lmx.nn import cache
from lmx.nn.attention import Attention, head_sizes
from lmx.nn.block import Block
from lmx.nn.decoder import CausalDecoder
from lmx.nn.masks import Causal, Mask
from lmx.nn.mlp import GatedMlp
from lmx.nn.norms import RMSNorm
from lmx.nn.positions import Positions, Rotary
from lmx.nn.stack import Stack


def llama(
    *,
    vocab_size: int,
    dim: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    mlp_dim: int,
    positions: Positions | None = None,
    mask: Mask | None = None,
    qk_norm: Callable[..., nn.Module] | None = None,
    mlp: Callable[..., nn.Module] | None = None,
    eps: float = 1e-5,
    use_bias: bool = False,
    dropout_rate: Any = 0.0,
    tied: bool = False,
    remat: str | None = None,
    dtype: str = 'float32',
    implementation: str | None = None,
) -> CausalDecoder:
    """x + attention(norm(x)), then x + W_down (silu(W_gate norm(x)) * W_up norm(x)), with RMSNorm, rotary positions and no biases.

    Args:
      num_kv_heads: None for multi-head attention (LLaMA 1, and 2 up to 13B), fewer than `num_heads` for grouped.
      head_dim: dim / num_heads by default.
      positions: None for `Rotary()`; base 500,000 and `Llama3Scaling` in LLaMA 3.1.
      mask: on top of the causal one, such as `Window(4096)`.
      qk_norm: (name=) -> a norm of each head's queries and keys.
      mlp: (name=) -> another feed-forward layer, such as experts.
      eps: of the norms; 1e-6 in LLaMA 1.
      use_bias: of the attention's products.
      dropout_rate: of embeddings, attention weights and residual branches; the papers have none.
      tied: the output weights are the embedding's (LLaMA 3.2).
      remat: None, 'full' or 'dots'; see `lmx.nn.stack`.
      dtype: 'float32' or 'bfloat16', what is computed in.
      implementation: of attention; see `lmx.nn.attention.Attention`.

    Raises:
      BadInput: heads that do not divide.
    """
    heads, kv_heads, channels = head_sizes(dim, num_heads, num_kv_heads, head_dim)
    positions = Rotary() if positions is None else positions
    weights = nn.initializers.normal(0.02)
    attention = partial(
        Attention,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=channels,
        positions=positions,
        mask=mask,
        qk_norm=qk_norm,
        use_bias=use_bias,
        dropout_rate=dropout_rate,
        kernel_init=weights,
        out_init=weights,
        implementation=implementation,
    )
    gated = partial(GatedMlp, mlp_dim=mlp_dim, kernel_init=weights, out_init=weights)
    norm = partial(RMSNorm, eps=eps)
    stack = partial(
        Stack,
        block=partial(Block, attention=attention, mlp=gated if mlp is None else mlp, norm=norm, dropout_rate=dropout_rate),
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
