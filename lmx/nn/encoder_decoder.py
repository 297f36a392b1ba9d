"""The sequence-to-sequence Transformer, assembled from factories; it meets `lmx.types.EncoderDecoder`."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

from lmx.nn.cache import Cache, Memory
from lmx.nn.decoder import identity
from lmx.nn.embed import Embed, Unembed
from lmx.nn.linear import Init
from lmx.nn.masks import Segments
from lmx.nn.stack import check_length, remember
from lmx.types import Array, BadInput


class TransformerSeq2Seq(nn.Module):
    """An encoder stack, and a decoder stack that attends to its output.

    Parameters: `embed` (and `target_embed` unless shared), `encoder`, `decoder`, `memory` (the keys and values of cross-attention, [L,
    ...]), `head` unless tied, and `copies` with a pointer.

    Attributes:
      encoder_stack, decoder_stack: (name=) -> `lmx.nn.stack.Stack`.
      remember: (name=) -> `lmx.nn.attention.Remember`.
      empty_cache: (batch_size, max_length) -> Cache, of the decoder.
      target_vocab_size: None = the two sides share `vocab_size` and its table.
      tied: the output weights are the target embedding's; else `head` has its own.
      pointer: (name=) -> `lmx.nn.pointer.Pointer`, for a decoder that can also copy tokens of the source; None = none. `hidden` then has S
        channels more, in float32, which `unembed` needs the memory for.
      embed_scale, logits, dtype: as in `CausalDecoder`.
    """

    vocab_size: int
    dim: int
    encoder_stack: Callable[..., nn.Module]
    decoder_stack: Callable[..., nn.Module]
    remember: Callable[..., nn.Module]
    empty_cache: Callable[[int, int], Cache]
    target_vocab_size: int | None = None
    tied: bool = True
    pointer: Callable[..., nn.Module] | None = None
    head_bias: bool = False
    embed_scale: float | None = None
    logits: Callable[[Array], Array] = identity
    dtype: str = 'float32'
    embed_init: Init = nn.initializers.normal(0.02)

    def setup(self) -> None:
        self.embed = Embed(self.vocab_size, self.dim, self.dtype, self.embed_init, self.embed_scale)
        if self.target_vocab_size is not None:
            self.target_embed = Embed(self.target_vocab_size, self.dim, self.dtype, self.embed_init, self.embed_scale)
        self.encoder = self.encoder_stack()
        self.decoder = self.decoder_stack()
        self.memory = self.remember()
        if self.pointer is not None:
            self.copies = self.pointer()
        if not self.tied:
            self.head = Unembed(self._target_size, self.head_bias, self.embed_init)

    @property
    def _target_size(self) -> int:
        return self.vocab_size if self.target_vocab_size is None else self.target_vocab_size

    def __call__(
        self,
        source_BS: Array,
        target_BT: Array,
        *,
        source_segments: Array | None = None,
        segments: Array | None = None,
        positions: Array | None = None,
    ) -> Array:
        """Source tokens and target inputs, already shifted right -> logits_BTV float32."""
        memory = self.encode(source_BS, segments=source_segments)
        return self.unembed(self.hidden(target_BT, memory, segments=segments, positions=positions)[0], memory)

    def encode(self, tokens_BS: Array, *, segments: Array | None = None, positions: Array | None = None) -> Memory:
        """What every decoder layer reads of the source."""
        states_BSD, _ = self.encoder(self.embed(tokens_BS), segments=segments, positions=positions)
        copied = None if self.pointer is None else (self.copies.keys(states_BSD), tokens_BS)
        return Memory(remember(self.memory, states_BSD, num_layers=self.decoder.num_layers), segments, copied)

    def hidden(
        self, tokens_BT: Array, memory: Memory, *, segments: Array | None = None, positions: Array | None = None, cache: Cache | None = None
    ) -> tuple[Array, Cache | None]:
        """-> (hidden_BTD, the cache with the new tokens)."""
        embed = self.embed if self.target_vocab_size is None else self.target_embed
        x_BTD, cache = self.decoder(embed(tokens_BT), segments=segments, positions=positions, cache=cache, memory=memory)
        if memory.copied is None:
            return x_BTD, cache
        mask = None
        if memory.segments_BS is not None:
            mask = Segments(jnp.ones_like(tokens_BT) if segments is None else segments, memory.segments_BS)
        mass_BTS = self.copies.point(x_BTD, *memory.copied, mask)
        return jnp.concatenate([x_BTD.astype(jnp.float32), mass_BTS], axis=-1), cache

    def unembed(self, hidden: Array, memory: Memory | None = None) -> Array:
        """[..., D] -> logits [..., V] float32; with a pointer [B, T, D + S] -> log-probabilities, for which it needs the memory."""
        if self.pointer is None:
            return self._scores(hidden)
        if memory is None or memory.copied is None:
            raise BadInput('a model with a pointer unembeds with its memory: unembed(hidden, memory)')
        x_BTD, mass_BTS = hidden[..., : self.dim].astype(self.dtype), hidden[..., self.dim :]
        return self.copies.mix(x_BTD, self._scores(x_BTD), mass_BTS, memory.copied[1])

    def _scores(self, x: Array) -> Array:
        if not self.tied:
            return self.logits(self.head(x))
        return self.logits((self.embed if self.target_vocab_size is None else self.target_embed).unembed(x))

    @nn.nowrap
    def init_cache(self, batch_size: int, max_length: int) -> Cache:
        """An empty cache of the target; needs no parameters.

        Raises:
          BadInput: more slots than the positions allow.
        """
        check_length(self.decoder_stack().positions, max_length, 'the cache has {} slots')
        return self.empty_cache(batch_size, max_length)
