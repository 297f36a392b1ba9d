"""The sequence-to-sequence Transformer, assembled from factories; it meets `lmx.types.EncoderDecoder`."""

from __future__ import annotations

from collections.abc import Callable

from flax import linen as nn

from lmx.nn.cache import Cache, Memory
from lmx.nn.decoder import identity
from lmx.nn.embed import Embed, Unembed
from lmx.nn.linear import Init
from lmx.nn.stack import check_length, remember
from lmx.types import Array


class TransformerSeq2Seq(nn.Module):
    """An encoder stack, and a decoder stack that attends to its output.

    Parameters: `embed` (and `target_embed` unless shared), `encoder`, `decoder`, `memory` (the keys and values of cross-attention, [L,
    ...]), and `head` unless tied.

    Attributes:
      encoder_stack, decoder_stack: (name=) -> `lmx.nn.stack.Stack`.
      remember: (name=) -> `lmx.nn.attention.Remember`.
      empty_cache: (batch_size, max_length) -> Cache, of the decoder.
      target_vocab_size: None = the two sides share `vocab_size` and its table.
      tied: the output weights are the target embedding's; else `head` has its own.
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
        return self.unembed(self.hidden(target_BT, memory, segments=segments, positions=positions)[0])

    def encode(self, tokens_BS: Array, *, segments: Array | None = None, positions: Array | None = None) -> Memory:
        """What every decoder layer reads of the source."""
        states_BSD, _ = self.encoder(self.embed(tokens_BS), segments=segments, positions=positions)
        return Memory(layers=remember(self.memory, states_BSD, num_layers=self.decoder.num_layers), segments_BS=segments)

    def hidden(
        self, tokens_BT: Array, memory: Memory, *, segments: Array | None = None, positions: Array | None = None, cache: Cache | None = None
    ) -> tuple[Array, Cache | None]:
        """-> (hidden_BTD, the cache with the new tokens)."""
        embed = self.embed if self.target_vocab_size is None else self.target_embed
        return self.decoder(embed(tokens_BT), segments=segments, positions=positions, cache=cache, memory=memory)

    def unembed(self, hidden: Array) -> Array:
        """[..., D] -> logits [..., V] float32."""
        if not self.tied:
            return self.logits(self.head(hidden))
        return self.logits((self.embed if self.target_vocab_size is None else self.target_embed).unembed(hidden))

    @nn.nowrap
    def init_cache(self, batch_size: int, max_length: int) -> Cache:
        """An empty cache of the target; needs no parameters.

        Raises:
          BadInput: more slots than the positions allow.
        """
        check_length(self.decoder_stack().positions, max_length, 'the cache has {} slots')
        return self.empty_cache(batch_size, max_length)
