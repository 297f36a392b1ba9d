"""The decoder-only language model, assembled from factories; it meets `lmx.types.Decoder`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from lmx.nn import stack
from lmx.nn.attention import Context
from lmx.nn.cache import Cache
from lmx.nn.dropout import Dropout
from lmx.nn.embed import Embed
from lmx.nn.linear import Init
from lmx.nn.masks import Causal, Segments
from lmx.nn.positions import Positions
from lmx.types import Array, BadInput


class CausalDecoder(nn.Module):
    """Embedding, `num_layers` stacked blocks, a last norm, and scores of the next token.

    With a cache every row is one sequence: `segments` then only tells padding (0) from tokens, and padding, wherever it stands,
    neither enters the cache nor counts.

    Attributes:
      block: (name=) -> a module (x, context, layer cache) -> (x, layer cache); see `lmx.nn.block`.
      norm: (name=) -> a module x -> x.
      empty_cache: (batch_size, max_length) -> Cache.
      positions: a table to add to the embeddings, if it has one. The blocks get the same value from whoever assembles.
      tied: the output weights are the embedding's.
      dropout_rate: of the embeddings.
      remat: see `lmx.nn.stack.scan`.
      dtype: what is computed in; parameters and logits are float32.
    """

    vocab_size: int
    dim: int
    num_layers: int
    block: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    empty_cache: Callable[[int, int], Cache]
    positions: Positions = Positions()
    tied: bool = True
    dropout_rate: Any = None
    remat: str | None = None
    dtype: str = 'float32'
    embed_init: Init = nn.initializers.normal(0.02)

    def setup(self) -> None:
        self.embed = Embed(self.vocab_size, self.dim, self.dtype, self.embed_init)
        if self.positions.table_length is not None:
            self.position_embed = Embed(self.positions.table_length, self.dim, self.dtype, self.embed_init)
        self.embed_dropout = Dropout(self.dropout_rate)
        self.blocks = self.block()
        self.final_norm = self.norm()
        if not self.tied:
            self.head = Embed(self.vocab_size, self.dim, self.dtype, self.embed_init)

    def __call__(
        self, tokens_BT: Array, *, segments: Array | None = None, positions: Array | None = None, cache: Cache | None = None
    ) -> tuple[Array, Cache | None]:
        """-> (logits_BTV float32, cache)."""
        hidden_BTD, cache = self.hidden(tokens_BT, segments=segments, positions=positions, cache=cache)
        return self.unembed(hidden_BTD), cache

    def hidden(
        self, tokens_BT: Array, *, segments: Array | None = None, positions: Array | None = None, cache: Cache | None = None
    ) -> tuple[Array, Cache | None]:
        """-> (hidden_BTD after the last norm, the cache with the new tokens).

        Raises:
          BadInput: more tokens than the position table has rows.
        """
        self._check_length(tokens_BT.shape[1], 'the input has {} tokens')
        index_BT, mask = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None], Causal()
        if cache is not None:
            real_BT = jnp.ones(tokens_BT.shape, bool) if segments is None else segments != 0
            index_BT = cache.slots(real_BT)
            cache = cache.replace(length_B=cache.length_B + jnp.sum(real_BT, axis=1, dtype=jnp.int32))
            positions = jnp.minimum(index_BT, cache.max_length - 1) if positions is None else positions
        elif segments is not None:
            mask = mask & Segments(segments, segments)
        context = Context(positions_BT=index_BT if positions is None else positions, index_BT=index_BT, mask=mask)
        x_BTD = self.embed(tokens_BT)
        if self.positions.table_length is not None:
            x_BTD = x_BTD + self.position_embed(context.positions_BT)
        layers = None if cache is None else cache.layers
        x_BTD, layers = stack.scan(self.blocks, self.embed_dropout(x_BTD), context, layers, num_layers=self.num_layers, remat=self.remat)
        return self.final_norm(x_BTD), None if cache is None else cache.replace(layers=layers)

    def unembed(self, hidden: Array) -> Array:
        """[..., D] -> logits [..., V] float32."""
        return self.embed.unembed(hidden) if self.tied else self.head.unembed(hidden)

    @nn.nowrap
    def init_cache(self, batch_size: int, max_length: int) -> Cache:
        """An empty cache; needs no parameters.

        Raises:
          BadInput: more slots than the position table has rows.
        """
        self._check_length(max_length, 'the cache has {} slots')
        return self.empty_cache(batch_size, max_length)

    @nn.nowrap
    def _check_length(self, length: int, what: str) -> None:
        limit = self.positions.table_length
        if limit is not None and length > limit:
            raise BadInput(f'{what.format(length)}, the limit is max_length {limit}; shorten it, or train with a larger max_length')
