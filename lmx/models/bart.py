"""BART (Lewis et al. 2019, arXiv:1910.13461)."""

from __future__ import annotations

from typing import Any

from lmx.models.transformer import transformer
from lmx.nn.encoder_decoder import TransformerSeq2Seq
from lmx.nn.mlp import gelu
from lmx.nn.norms import LayerNorm
from lmx.nn.positions import Learned
from lmx.spec import extends


@extends(transformer, 'target_vocab_size', 'activation', 'positions', 'embed_norm', 'init_scale')
def bart(*, vocab_size: int, max_length: int = 1024, embed_scale: float = 1.0, **keywords: Any) -> TransformerSeq2Seq:
    """The post-norm Transformer with GELU, learned positions (from row 2 of their tables) and normalised embeddings; N(0, 0.02) weights.

    Args:
      max_length: the longest input on either side.
      embed_scale: of the token embeddings; sqrt(dim) in some released models.
      keywords: as `lmx.models.transformer`.
    """
    positions = Learned(max_length, offset=2)
    fixed = {'activation': gelu, 'positions': positions, 'embed_norm': LayerNorm, 'init_scale': 0.02}
    return transformer(vocab_size=vocab_size, embed_scale=embed_scale, **fixed, **keywords)
