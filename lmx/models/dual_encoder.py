"""Two texts to two vectors whose product says how near they are (Reimers and Gurevych 2019, arXiv:1908.10084; Karpukhin et al. 2020)."""

from __future__ import annotations

from typing import Any

from flax import linen as nn

from lmx.nn.heads import Pool, mean, vector
from lmx.types import Array


class DualEncoder(nn.Module):
    """Texts as vectors [B, D] float32, for queries and for documents.

    Attributes:
      encoder: any model with `hidden`, an encoder or a decoder; it reads queries, and documents unless there is a `document_encoder`.
      pool: `lmx.nn.heads.mean`, `first` or `last`.
      normalize: to length 1, so that products are cosines.
    """

    encoder: nn.Module
    document_encoder: nn.Module | None = None
    pool: Pool = mean
    normalize: bool = True

    def __call__(self, tokens_BT: Array, *, segments: Array | None = None, **keywords: Any) -> Array:
        """Queries -> [B, D]; keywords as the encoder's `hidden`."""
        return self._embed(self.encoder, tokens_BT, segments, keywords)

    def documents(self, tokens_BT: Array, *, segments: Array | None = None, **keywords: Any) -> Array:
        """Documents -> [B, D]."""
        return self._embed(self.encoder if self.document_encoder is None else self.document_encoder, tokens_BT, segments, keywords)

    def _embed(self, encoder: Any, tokens_BT: Array, segments: Array | None, keywords: Any) -> Array:
        hidden = encoder.hidden(tokens_BT, segments=segments, **keywords)
        hidden_BTD = hidden[0] if isinstance(hidden, tuple) else hidden  # a decoder also gives its cache
        return vector(hidden_BTD, segments, self.pool, self.normalize)


def dual_encoder(
    *, encoder: nn.Module, document_encoder: nn.Module | None = None, pool: Pool = mean, normalize: bool = True
) -> DualEncoder:
    """One tower (Sentence-BERT) or, with a `document_encoder`, two (DPR, arXiv:2004.04906). Arguments as `DualEncoder`."""
    return DualEncoder(encoder=encoder, document_encoder=document_encoder, pool=pool, normalize=normalize)
