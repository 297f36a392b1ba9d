"""The decoder-only language model, assembled from factories; it meets `lmx.types.Decoder`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from lmx.nn.cache import Cache
from lmx.nn.embed import Embed, Unembed
from lmx.nn.linear import Init
from lmx.nn.stack import check_length
from lmx.types import Array


def identity(x: Array) -> Array:
    """x -> x."""
    return x


class CausalDecoder(nn.Module):
    """Embedding, a stack of layers, and scores of the next token.

    Attributes:
      stack: (name=) -> `lmx.nn.stack.Stack` with a causal mask.
      empty_cache: (batch_size, max_length) -> Cache.
      tied: the output weights are the embedding's; else `head` has its own.
      head_bias: the scores have a bias, with untied weights.
      embed_scale: what the embeddings are multiplied by.
      logits: what is made of the scores, such as a soft cap.
      dtype: what is computed in; parameters and logits are float32.
    """

    vocab_size: int
    dim: int
    stack: Callable[..., nn.Module]
    empty_cache: Callable[[int, int], Cache]
    tied: bool = True
    head_bias: bool = False
    embed_scale: float | None = None
    logits: Callable[[Array], Array] = identity
    dtype: str = 'float32'
    embed_init: Init = nn.initializers.normal(0.02)

    def setup(self) -> None:
        self.embed = Embed(self.vocab_size, self.dim, self.dtype, self.embed_init, self.embed_scale)
        self.decoder = self.stack()
        if not self.tied:
            self.head = Unembed(self.vocab_size, self.head_bias, self.embed_init)

    def __call__(self, tokens_BT: Array, **kwargs: Any) -> tuple[Array, Cache | None]:
        """-> (logits_BTV float32, cache). Arguments as `hidden`."""
        hidden_BTD, cache = self.hidden(tokens_BT, **kwargs)
        return self.unembed(hidden_BTD), cache

    def hidden(
        self,
        tokens_BT: Array,
        *,
        segments: Array | None = None,
        positions: Array | None = None,
        prefix: Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[Array, Cache | None]:
        """-> (hidden_BTD after the last norm, the cache with the new tokens). Arguments as `lmx.nn.stack.Stack`."""
        return self.decoder(self.embed(tokens_BT), segments=segments, positions=positions, prefix=prefix, cache=cache)

    def unembed(self, hidden: Array) -> Array:
        """[..., D] -> logits [..., V] float32."""
        return self.logits(self.embed.unembed(hidden) if self.tied else self.head(hidden))

    @nn.nowrap
    def init_cache(self, batch_size: int, max_length: int) -> Cache:
        """An empty cache; needs no parameters.

        Raises:
          BadInput: more slots than the positions allow.
        """
        check_length(self.stack().positions, max_length, 'the cache has {} slots')
        return self.empty_cache(batch_size, max_length)
