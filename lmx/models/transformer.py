"""The Transformer (Vaswani et al. 2017, arXiv:1706.03762)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from lmx.nn import cache
from lmx.nn.attention import Attention, CrossAttention, Remember, head_sizes
from lmx.nn.block import Block, post_norm
from lmx.nn.encoder import HeadedEncoder
from lmx.nn.encoder_decoder import TransformerSeq2Seq
from lmx.nn.masks import Causal
from lmx.nn.mlp import Mlp
from lmx.nn.norms import LayerNorm
from lmx.nn.pointer import Pointer
from lmx.nn.positions import Positions, Sinusoidal
from lmx.nn.stack import Stack
from lmx.types import Array, BadInput


def transformer(
    *,
    vocab_size: int,
    target_vocab_size: int | None = None,
    dim: int,
    num_layers: int,
    num_decoder_layers: int | None = None,
    num_heads: int,
    mlp_dim: int,
    residual: Callable[..., tuple[Array, Any]] = post_norm,
    last_norm: bool | None = None,
    positions: Positions | None = None,
    activation: Callable[[Array], Array] = jax.nn.relu,
    embed_norm: Callable[..., nn.Module] | None = None,
    embed_scale: float | None = None,
    init_scale: float | None = None,
    eps: float = 1e-5,
    dropout_rate: Any = 0.1,
    attention_dropout_rate: Any = 0.0,
    mlp_dropout_rate: Any = 0.0,
    tied: bool = True,
    pointer: bool = False,
    encoder: HeadedEncoder | None = None,
    remat: str | None = None,
    dtype: str = 'float32',
) -> TransformerSeq2Seq:
    """Attention(Q, K, V) = softmax(Q K^T / sqrt(C)) V in H heads; norm(x + branch(x)) around it and around W_2 relu(W_1 x + b_1) + b_2.

    Args:
      target_vocab_size: None = both sides share one vocabulary and one table.
      num_layers, num_decoder_layers: of the encoder, and of the decoder (as many by default).
      residual: `lmx.nn.block.post_norm`, or `pre_norm`, which trains without warm-up (Xiong et al. 2020, arXiv:2002.04745).
      positions: None for sinusoidal ones.
      last_norm: a norm behind each stack; None = with `pre_norm` only. `torch.nn.Transformer` always has one.
      embed_norm: (name=) -> a norm of the embeddings; None = none.
      embed_scale: of the token embeddings; None = sqrt(dim).
      init_scale: weights are N(0, init_scale); None = the embeddings N(0, 1 / dim), the kernels Xavier's uniform distribution.
      dropout_rate: of the embeddings and of what each branch adds.
      attention_dropout_rate, mlp_dropout_rate: of attention weights and hidden channels; none in the paper.
      tied: the output weights are the target embedding's.
      pointer: the decoder can also copy tokens of the source, see `lmx.nn.pointer`; for one vocabulary of both sides.
      encoder: a model such as `lmx.models.bert`, whose encoder of the same `dim` and `vocab_size` takes the own one's place, as in Rothe et
        al. 2020 (arXiv:1907.12461); parameters keep their names `embed` and `encoder`, so that `init` can take them from a run of it.
      remat, dtype: as `lmx.models.gpt`.

    Raises:
      BadInput: heads that do not divide; a pointer between two vocabularies; an encoder of another size.
    """
    if pointer and target_vocab_size is not None:
        raise BadInput('a pointer copies tokens of the source, so both sides need one vocabulary; leave target_vocab_size out')
    if encoder is not None and (encoder.vocab_size, encoder.dim) != (vocab_size, dim):
        raise BadInput(
            f'the encoder has vocab_size {encoder.vocab_size} and dim {encoder.dim}, the model {vocab_size} and {dim}; they must agree'
        )
    _, _, channels = head_sizes(dim, num_heads, None, None)
    positions = Sinusoidal() if positions is None else positions
    kernels = nn.initializers.xavier_uniform() if init_scale is None else nn.initializers.normal(init_scale)
    inits = {'kernel_init': kernels, 'out_init': kernels}
    attention = partial(Attention, num_heads=num_heads, positions=positions, dropout_rate=attention_dropout_rate, **inits)
    cross = partial(CrossAttention, num_heads=num_heads, dropout_rate=attention_dropout_rate, **inits)
    mlp = partial(Mlp, mlp_dim=mlp_dim, activation=activation, dropout_rate=mlp_dropout_rate, **inits)
    norm = partial(LayerNorm, eps=eps)
    block = partial(Block, attention=attention, mlp=mlp, norm=norm, residual=residual, dropout_rate=dropout_rate)
    decoder_layers = num_layers if num_decoder_layers is None else num_decoder_layers
    embeddings = nn.initializers.normal(dim**-0.5 if init_scale is None else init_scale)
    shared = {
        'positions': positions,
        'embed_norm': embed_norm,
        'norm': norm if (residual is not post_norm if last_norm is None else last_norm) else None,
        'dropout_rate': dropout_rate,
        'remat': remat,
        'embed_init': embeddings,
    }
    return TransformerSeq2Seq(
        vocab_size=vocab_size,
        target_vocab_size=target_vocab_size,
        dim=dim,
        encoder_stack=partial(Stack, block=block, num_layers=num_layers, **shared) if encoder is None else encoder.stack,
        decoder_stack=partial(Stack, block=partial(block, cross_attention=cross), num_layers=decoder_layers, mask=Causal(), **shared),
        remember=partial(Remember, num_heads=num_heads, kernel_init=kernels),
        empty_cache=partial(cache.empty, num_layers=decoder_layers, num_kv_heads=num_heads, head_dim=channels, dtype=dtype),
        tied=tied,
        pointer=partial(Pointer, dim, kernels) if pointer else None,
        embed_scale=dim**0.5 if embed_scale is None else embed_scale,
        dtype=dtype,
        embed_init=embeddings,
    )
