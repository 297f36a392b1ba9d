"""The encoder, assembled from factories; it meets `lmx.types.Encoder`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from lmx.nn.embed import Embed
from lmx.nn.linear import Init
from lmx.types import Array


class HeadedEncoder(nn.Module):
    """Embedding, a stack of layers in which every token sees every token, and a head.

    Attributes:
      stack: (name=) -> `lmx.nn.stack.Stack`.
      head: (name=) -> a module (hidden_BTD, segments_BT, table_VD) -> output, see `lmx.nn.heads`; None = the hidden vectors themselves.
      dtype: what is computed in; parameters and scores are float32.
    """

    vocab_size: int
    dim: int
    stack: Callable[..., nn.Module]
    head: Callable[..., nn.Module] | None = None
    dtype: str = 'float32'
    embed_init: Init = nn.initializers.normal(0.02)

    def setup(self) -> None:
        self.embed = Embed(self.vocab_size, self.dim, self.dtype, self.embed_init)
        self.encoder = self.stack()
        if self.head is not None:
            self.output = self.head()

    def __call__(
        self, tokens_BT: Array, *, segments: Array | None = None, positions: Array | None = None, types: Array | None = None
    ) -> Array:
        """-> what the head makes of it."""
        hidden_BTD = self.hidden(tokens_BT, segments=segments, positions=positions, types=types)
        return hidden_BTD if self.head is None else self.output(hidden_BTD, segments, self.embed.embedding)

    def documents(self, tokens_BT: Array, **keywords: Any) -> Array:
        """As `__call__`: documents are read as queries are, unlike in a dual encoder of two towers."""
        return self(tokens_BT, **keywords)

    def hidden(
        self, tokens_BT: Array, *, segments: Array | None = None, positions: Array | None = None, types: Array | None = None
    ) -> Array:
        """-> hidden_BTD."""
        return self.encoder(self.embed(tokens_BT), segments=segments, positions=positions, types=types)[0]

    def unembed(self, hidden: Array) -> Array:
        """[..., D] -> logits [..., V] float32, by a head such as `MaskedLm`."""
        return self.output(hidden, None, self.embed.embedding)
