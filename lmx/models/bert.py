"""BERT (Devlin et al. 2018, arXiv:1810.04805)."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmx.nn.attention import Attention, head_sizes
from lmx.nn.block import Block, post_norm
from lmx.nn.encoder import HeadedEncoder
from lmx.nn.heads import Classifier, Head, MaskedLm, Transform, filled
from lmx.nn.mlp import Mlp, gelu
from lmx.nn.norms import LayerNorm
from lmx.nn.positions import Learned, Positions
from lmx.nn.stack import Stack
from lmx.spec import extends


def bert(
    *,
    vocab_size: int,
    dim: int,
    num_layers: int,
    num_heads: int,
    mlp_dim: int | None = None,
    max_length: int = 512,
    num_types: int = 2,
    head: Head | None = None,
    pooled_activation: Any = jnp.tanh,
    positions: Positions | None = None,
    eps: float = 1e-12,
    dropout_rate: Any = 0.1,
    remat: str | None = None,
    dtype: str = 'float32',
) -> HeadedEncoder:
    """norm(x + attention(x)), then norm(x + W_2 gelu(W_1 x)): the post-norm Transformer encoder; N(0, 0.02) weights.

    Token, position and type embeddings are added and normalised.

    Args:
      mlp_dim: 4 dim by default.
      max_length: rows of the table of learned positions, which is the longest input.
      num_types: sentences A and B are told apart by a table of 2.
      head: what is made of the vectors, see `lmx.nn.heads`; `masked_lm()` and `classifier(...)` get BERT's transforms. None = the vectors.
      pooled_activation: of the classifier's transform.
      positions: None for learned ones.
      dropout_rate: of embeddings, attention weights and residual branches.
      remat, dtype: as `lmx.models.gpt`.

    Raises:
      BadInput: heads that do not divide.
    """
    head_sizes(dim, num_heads, None, None)
    positions = Learned(max_length) if positions is None else positions
    weights = nn.initializers.normal(0.02)
    inits = {'kernel_init': weights, 'out_init': weights}
    attention = partial(Attention, num_heads=num_heads, positions=positions, dropout_rate=dropout_rate, **inits)
    norm = partial(LayerNorm, eps=eps)
    stack = partial(
        Stack,
        block=partial(
            Block,
            attention=attention,
            mlp=partial(Mlp, mlp_dim=4 * dim if mlp_dim is None else mlp_dim, activation=gelu, **inits),
            norm=norm,
            residual=post_norm,
            dropout_rate=dropout_rate,
        ),
        num_layers=num_layers,
        positions=positions,
        num_types=num_types,
        embed_norm=norm,
        dropout_rate=dropout_rate,
        remat=remat,
    )
    fillings = {
        MaskedLm: {'transform': partial(Transform, activation=gelu, norm=norm)},
        Classifier: {'transform': partial(Transform, activation=pooled_activation)},
    }
    return HeadedEncoder(vocab_size=vocab_size, dim=dim, stack=stack, head=filled(head, fillings), dtype=dtype)


@extends(bert, 'positions')
def roberta(*, max_length: int = 512, num_types: int = 1, eps: float = 1e-5, **keywords: Any) -> HeadedEncoder:
    """RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT trained better; positions begin at row 2 of their table, and there is one type.

    Args:
      keywords: as `bert`.
    """
    return bert(positions=Learned(max_length, offset=2), max_length=max_length, num_types=num_types, eps=eps, **keywords)


@extends(bert, 'num_types', 'pooled_activation')
def distilbert(**keywords: Any) -> HeadedEncoder:
    """DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT without token types, with half the layers.

    Args:
      keywords: as `bert`.
    """
    return bert(num_types=0, pooled_activation=jax.nn.relu, **keywords)
