"""T5 (Raffel et al. 2019, arXiv:1910.10683) and T5.1.1 (Shazeer 2020, arXiv:2002.05202; the authors' release notes)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmx.nn import cache
from lmx.nn.attention import Attention, CrossAttention, Remember
from lmx.nn.block import Block
from lmx.nn.decoder import identity
from lmx.nn.encoder_decoder import TransformerSeq2Seq
from lmx.nn.masks import Causal
from lmx.nn.mlp import GatedMlp, Mlp, gelu_tanh
from lmx.nn.norms import RMSNorm
from lmx.nn.positions import RelativeBias
from lmx.nn.stack import Stack
from lmx.spec import extends


def assemble(
    *,
    mlp: Callable[..., nn.Module],
    vocab_size: int,
    dim: int,
    num_layers: int,
    num_decoder_layers: int | None = None,
    num_heads: int,
    head_dim: int = 64,
    mlp_dim: int,
    tied: bool,
    num_buckets: int = 32,
    max_distance: int = 128,
    logits_scale: float | None = None,
    eps: float = 1e-6,
    dropout_rate: Any = 0.1,
    remat: str | None = None,
    dtype: str = 'float32',
) -> TransformerSeq2Seq:
    """What both have in common.

    Args:
      mlp: (name=) -> the feed-forward layer.
      num_layers, num_decoder_layers: of the encoder, and of the decoder (as many by default).
      head_dim: C, independent of dim / num_heads.
      num_buckets, max_distance: see `lmx.nn.positions.RelativeBias`.
      logits_scale: what the output scores are multiplied by.
      dropout_rate: of embeddings, attention weights, hidden channels, residual branches and outputs.
      remat, dtype: as `lmx.models.gpt`.
    """
    normal, inner = nn.initializers.normal, num_heads * head_dim
    kernels = {'kernel_init': normal(dim**-0.5), 'out_init': normal(inner**-0.5)}
    heads = {'num_heads': num_heads, 'head_dim': head_dim, 'use_bias': False}
    query = normal((dim * head_dim) ** -0.5)
    attention = partial(Attention, **heads, **kernels, query_init=query, scale=1.0, dropout_rate=dropout_rate)
    cross = partial(CrossAttention, **heads, kernel_init=query, out_init=normal(inner**-0.5), scale=1.0, dropout_rate=dropout_rate)
    norm = partial(RMSNorm, eps=eps)
    mlp = partial(mlp, kernel_init=normal(dim**-0.5), out_init=normal(mlp_dim**-0.5), dropout_rate=dropout_rate)
    block = partial(Block, attention=attention, mlp=mlp, norm=norm, dropout_rate=dropout_rate)
    bias = partial(RelativeBias, num_heads=num_heads, num_buckets=num_buckets, max_distance=max_distance, bias_init=normal(dim**-0.5))
    rates = {'dropout_rate': dropout_rate, 'output_dropout_rate': dropout_rate}
    decoder_layers = num_layers if num_decoder_layers is None else num_decoder_layers
    shared = {'norm': norm, 'remat': remat, **rates}

    return TransformerSeq2Seq(
        vocab_size=vocab_size,
        dim=dim,
        encoder_stack=partial(Stack, block=block, num_layers=num_layers, relative_bias=partial(bias, bidirectional=True), **shared),
        decoder_stack=partial(
            Stack,
            block=partial(block, cross_attention=cross),
            num_layers=decoder_layers,
            mask=Causal(),
            relative_bias=partial(bias, bidirectional=False),
            **shared,
        ),
        remember=partial(Remember, **heads, kernel_init=normal(dim**-0.5)),
        empty_cache=partial(cache.empty, num_layers=decoder_layers, num_kv_heads=num_heads, head_dim=head_dim, dtype=dtype),
        tied=tied,
        logits=identity if logits_scale is None else partial(jnp.multiply, logits_scale),
        dtype=dtype,
        embed_init=normal(1.0),
    )


@extends(assemble, 'mlp', 'logits_scale')
def t5(*, dim: int, mlp_dim: int, tied: bool = True, **keywords: Any) -> TransformerSeq2Seq:
    """Pre-RMSNorm encoder-decoder without biases; distances are learned biases of the scores, which are not divided by sqrt(C).

    Weights are drawn so that products keep unit variance; output scores are multiplied by dim^-0.5.

    Args:
      mlp_dim: hidden channels of relu.
      keywords: as `assemble`.
    """
    mlp = partial(Mlp, mlp_dim=mlp_dim, activation=jax.nn.relu, use_bias=False)
    return assemble(mlp=mlp, dim=dim, mlp_dim=mlp_dim, tied=tied, logits_scale=dim**-0.5, **keywords)


@extends(assemble, 'mlp', 'logits_scale')
def t5_1_1(*, mlp_dim: int, tied: bool = False, **keywords: Any) -> TransformerSeq2Seq:
    """T5 with GeGLU, and output weights of its own.

    Args:
      mlp_dim: hidden channels, of which there are gates as many.
      keywords: as `assemble`.
    """
    return assemble(mlp=partial(GatedMlp, mlp_dim=mlp_dim, activation=gelu_tanh), mlp_dim=mlp_dim, tied=tied, **keywords)
