"""Convolutional sequence to sequence learning (Gehring et al. 2017, arXiv:1705.03122)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from lmx.nn.attention import attention_weights
from lmx.nn.conv import Conv, Padding, causal, glu, same, weight_norm
from lmx.nn.dropout import Dropout
from lmx.nn.embed import Embed, Unembed
from lmx.nn.linear import Init
from lmx.nn.masks import Mask, Segments
from lmx.nn.positions import Learned, within_segments
from lmx.nn.stack import check_length, scan
from lmx.types import Array, BadInput

HALF = 0.5**0.5  # keeps the variance of a sum of two


def conv_seq2seq(
    *,
    vocab_size: int,
    target_vocab_size: int | None = None,
    dim: int,
    conv_dim: int | None = None,
    num_layers: int,
    num_decoder_layers: int | None = None,
    width: int = 3,
    max_length: int = 1024,
    encoder_gradient: float | None = None,
    dropout_rate: Any = 0.1,
    tied: bool = False,
    remat: str | None = None,
    dtype: str = 'float32',
) -> ConvSeq2Seq:
    """Layers of (x + glu(conv(x))) sqrt(0.5), causal in the decoder, where every layer attends to the source.

    Every product but the last is weight-normalised. Weights are drawn so that activations keep their variance (section 3.5).

    Args:
      target_vocab_size: None = both sides share one vocabulary and one table.
      dim: of the embeddings, and of what attention compares.
      conv_dim: channels between the convolutions, after their gates; `dim` by default.
      num_layers, num_decoder_layers: of the encoder, and of the decoder (as many by default).
      width: tokens that a filter sees.
      max_length: rows of the tables of learned positions, which is the longest input.
      encoder_gradient: the gradient that reaches the encoder's convolutions is multiplied by this (section 3.4); the word vectors, which
        are the other half of the memory's values, get theirs whole. None = 1 / num_decoder_layers, one share for each attention. The
        authors' code has half of that; 1 switches it off.
      dropout_rate: of the embeddings, of each convolution's input and of the last vectors.
      tied: the output weights are the target embedding's.
      remat, dtype: as `lmx.models.gpt`.

    Raises:
      BadInput: a width or a number of layers below 1.
    """
    decoder_layers = num_layers if num_decoder_layers is None else num_decoder_layers
    for name, value in (('width', width), ('num_layers', num_layers), ('num_decoder_layers', decoder_layers)):
        if value < 1:
            raise BadInput(f'{name} {value} is below 1')
    channels = dim if conv_dim is None else conv_dim
    keep = 1.0 if dropout_rate is None else 1.0 - dropout_rate
    side = partial(
        Side,
        dim=dim,
        conv_dim=channels,
        dropout_rate=dropout_rate,
        positions=Learned(max_length),
        remat=remat,
        linear=partial(Conv, weights=weight_norm, kernel_init=_normal(1.0)),
        first=partial(Conv, weights=weight_norm, kernel_init=_normal(keep)),
    )
    block = partial(
        ConvBlock,
        conv=partial(Conv, 2 * channels, width, weights=weight_norm, kernel_init=_normal(4 * keep)),
        dropout_rate=dropout_rate,
    )
    attention = partial(MultiStep, linear=partial(Conv, weights=weight_norm, kernel_init=_normal(1.0)))
    return ConvSeq2Seq(
        vocab_size=vocab_size,
        target_vocab_size=target_vocab_size,
        dim=dim,
        encoder_side=partial(side, num_layers=num_layers, block=partial(block, padding=same)),
        decoder_side=partial(side, num_layers=decoder_layers, block=partial(block, padding=causal, attention=attention)),
        empty_cache=partial(_empty, num_layers=decoder_layers, width=width, conv_dim=channels, dtype=dtype),
        encoder_gradient=1 / decoder_layers if encoder_gradient is None else encoder_gradient,
        dropout_rate=dropout_rate,
        tied=tied,
        head_init=_normal(keep),
        dtype=dtype,
    )


def _normal(gain: Any) -> Init:
    """N(0, gain / inputs), for kernels [..., outputs] and for tables [outputs, inputs] alike the paper's; `gain` may be traced."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        inputs = shape[-1] if len(shape) == 2 else shape[-3] * shape[-2]
        return jax.random.normal(key, shape, dtype) * jnp.sqrt(jnp.asarray(gain / inputs, dtype))

    return init


class Source(struct.PyTreeNode):
    """What the decoder reads of a source: `keys` are compared with, `values` = (keys + embeddings) sqrt(0.5) are taken, [B, S, D] each.

    `segments_BS`: int32, 0 = padding; None = no padding, one segment.
    """

    keys: Array
    values: Array
    segments_BS: Array | None = None

    def take(self, rows: Array) -> Source:
        """The given rows, in the given order, repeated where they are."""
        return jax.tree.map(lambda array: jnp.take(array, rows, axis=0), self)


class ConvCache(struct.PyTreeNode):
    """The last inputs of every convolution, [L, B, width - 1, channels], zeros before the first token; `length_B` tokens were read."""

    layers: Array
    length_B: Array
    max_length: int = struct.field(pytree_node=False)

    def take(self, rows: Array) -> ConvCache:
        """The given rows, in the given order, repeated where they are: what beam search does between steps."""
        return self.replace(layers=jnp.take(self.layers, rows, axis=1), length_B=jnp.take(self.length_B, rows))


def _empty(batch_size: int, max_length: int, *, num_layers: int, width: int, conv_dim: int, dtype: str) -> ConvCache:
    layers = jnp.zeros((num_layers, batch_size, width - 1, conv_dim), dtype)
    return ConvCache(layers=layers, length_B=jnp.zeros((batch_size,), jnp.int32), max_length=max_length)


class ConvContext(struct.PyTreeNode):
    """What every layer is told.

    Attributes:
      segments_BT: of the tokens; None = one segment.
      count_B: with a cache, how many tokens of each row are new; they stand first.
      source, source_mask: what the decoder attends to, and who may.
      embedded_BTD: the decoder's input, which every attention sees again.
      layer: which layer this is.
    """

    segments_BT: Array | None = None
    count_B: Any = None
    source: Any = None
    source_mask: Mask | None = None
    embedded_BTD: Any = None
    layer: Any = 0


class ConvBlock(nn.Module):
    """(x + glu(conv(dropout(x)))) sqrt(0.5), attention between gate and sum in the decoder. Parameters: `conv`, `attention`.

    Attributes:
      conv: (padding=, name=) -> `lmx.nn.conv.Conv` with twice x's channels.
      attention: (name=) -> `MultiStep`; None = none.
    """

    conv: Callable[..., nn.Module]
    padding: Padding
    attention: Callable[..., nn.Module] | None = None
    dropout_rate: Any = None

    @nn.compact
    def __call__(self, x_BTF: Array, context: ConvContext, cache: Array | None = None, memory: None = None) -> tuple[Array, Array | None]:
        """-> (x_BTF, the layer's cache: its last width - 1 inputs)."""
        inputs = Dropout(self.dropout_rate)(x_BTF)
        if cache is None:
            y_BTF = self.conv(padding=self.padding, name='conv')(inputs, context.segments_BT)
        else:
            window = jnp.concatenate([cache.astype(inputs.dtype), inputs], axis=1)
            y_BTF = self.conv(padding=_whole, name='conv')(window)
            last = context.count_B[:, None] + jnp.arange(cache.shape[1])
            cache = jnp.take_along_axis(window, last[..., None], axis=1).astype(cache.dtype)
        y_BTF = glu(y_BTF)
        if self.attention is not None:
            y_BTF = self.attention(name='attention')(y_BTF, context)
        x_BTF = (x_BTF + y_BTF) * HALF
        self.sow('intermediates', 'hidden', x_BTF)
        return x_BTF, cache


def _whole(width: int) -> tuple[int, int]:
    """No padding: the cache stands where the zeros were."""
    return 0, 0


class MultiStep(nn.Module):
    """One layer's attention (section 3.3): the query is (W x + embedding) sqrt(0.5); (x + U c) sqrt(0.5) goes on. Parameters: `query`, `out`.

    c is the weighted sum of the values times sqrt(n), n the source tokens that may be seen: a mean of n values has an n-th of their
    variance. The weights go to 'intermediates' as [B, 1, T, S] float32.
    """

    linear: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x_BTF: Array, context: ConvContext) -> Array:
        source, dim = context.source, context.embedded_BTD.shape[-1]
        q_BTD = (self.linear(dim, name='query')(x_BTF) + context.embedded_BTD) * HALF
        weights_B1TS = attention_weights(q_BTD[:, :, None], source.keys[:, :, None], mask=context.source_mask, scale=1.0)
        self.sow('intermediates', 'weights', weights_B1TS)
        c_BTD = jnp.einsum('BTS,BSD->BTD', weights_B1TS[:, 0].astype(x_BTF.dtype), source.values)
        c_BTD *= jnp.sqrt(self._seen(context, q_BTD.shape[1])).astype(x_BTF.dtype)
        return (x_BTF + self.linear(x_BTF.shape[-1], name='out')(c_BTD)) * HALF

    def _seen(self, context: ConvContext, length: int) -> Array:
        """How many source tokens each target token may see, float32, broadcastable to [B, T, 1]."""
        size = context.source.keys.shape[1]
        if context.source_mask is None:
            return jnp.full((1, 1, 1), size, jnp.float32)
        allowed_B1TS: Any = context.source_mask.dense(jnp.arange(length)[None], jnp.arange(size)[None])
        return jnp.sum(allowed_B1TS[:, 0], axis=-1, keepdims=True).astype(jnp.float32)


class Side(nn.Module):
    """Encoder or decoder: positions, a linear map, `num_layers` stacked blocks, a linear map back to [B, T, D].

    Parameters: `position_embed`, `first`, `blocks` [L, ...], `last`.

    Attributes:
      block: (name=) -> `ConvBlock`.
      first, linear: (features, name=) -> `Conv`s of width 1, the former behind dropout.
    """

    dim: int
    conv_dim: int
    num_layers: int
    block: Callable[..., nn.Module]
    first: Callable[..., nn.Module]
    linear: Callable[..., nn.Module]
    positions: Learned
    dropout_rate: Any = None
    remat: str | None = None

    @nn.compact
    def __call__(
        self, x_BTD: Array, positions_BT: Array, context: ConvContext, cache: Array | None = None
    ) -> tuple[Array, Array, Array | None]:
        """Token embeddings -> (vectors [B, T, D], the embeddings with their positions, the layers' caches)."""
        check_length(self.positions, x_BTD.shape[1], 'the input has {} tokens')
        table = Embed(self.positions.max_length, self.dim, x_BTD.dtype, nn.initializers.normal(0.1), name='position_embed')
        x_BTD = Dropout(self.dropout_rate, name='embed_dropout')(x_BTD + table(positions_BT))
        x_BTF = self.first(self.conv_dim, name='first')(x_BTD)
        context = context.replace(embedded_BTD=x_BTD)
        x_BTF, cache = scan(self.block(name='blocks'), x_BTF, context, cache, num_layers=self.num_layers, remat=self.remat)
        return self.linear(self.dim, name='last')(x_BTF), x_BTD, cache


class ConvSeq2Seq(nn.Module):
    """Meets `lmx.types.EncoderDecoder`. Parameters: `embed` (and `target_embed` unless shared), `encoder`, `decoder`, and `head` unless tied.

    Attributes:
      encoder_side, decoder_side: (name=) -> `Side`.
      empty_cache: (batch_size, max_length) -> ConvCache.
      encoder_gradient: see `conv_seq2seq`.
    """

    vocab_size: int
    dim: int
    encoder_side: Callable[..., nn.Module]
    decoder_side: Callable[..., nn.Module]
    empty_cache: Callable[[int, int], ConvCache]
    encoder_gradient: float
    target_vocab_size: int | None = None
    dropout_rate: Any = None
    tied: bool = False
    head_init: Init = nn.initializers.normal(0.1)
    dtype: str = 'float32'

    def setup(self) -> None:
        table = nn.initializers.normal(0.1)
        self.embed = Embed(self.vocab_size, self.dim, self.dtype, table)
        if self.target_vocab_size is not None:
            self.target_embed = Embed(self.target_vocab_size, self.dim, self.dtype, table)
        self.encoder = self.encoder_side()
        self.decoder = self.decoder_side()
        self.output_dropout = Dropout(self.dropout_rate)
        if not self.tied:
            size = self.vocab_size if self.target_vocab_size is None else self.target_vocab_size
            self.head = Unembed(size, use_bias=True, embed_init=self.head_init)

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

    def encode(self, tokens_BS: Array, *, segments: Array | None = None, positions: Array | None = None) -> Source:
        """What every decoder layer reads of the source."""
        positions = _positions(tokens_BS, segments) if positions is None else positions
        keys, embedded, _ = self.encoder(self.embed(tokens_BS), positions, ConvContext(segments_BT=segments))
        fixed = jax.lax.stop_gradient(keys)
        keys = fixed + self.encoder_gradient * (keys - fixed)  # the value stays, the gradient shrinks
        return Source(keys=keys, values=(keys + embedded) * HALF, segments_BS=segments)

    def hidden(
        self,
        tokens_BT: Array,
        memory: Source,
        *,
        segments: Array | None = None,
        positions: Array | None = None,
        cache: ConvCache | None = None,
    ) -> tuple[Array, ConvCache | None]:
        """-> (hidden_BTD, the cache with the new tokens). With a cache every row is one sequence, and `segments` only tell padding.

        Raises:
          BadInput: more tokens than there are positions.
        """
        embed = self.embed if self.target_vocab_size is None else self.target_embed
        if cache is None:
            positions = _positions(tokens_BT, segments) if positions is None else positions
            mask = _mask(tokens_BT, segments, memory)
            context = ConvContext(segments_BT=segments, source=memory, source_mask=mask)
            x_BTD, _, _ = self.decoder(embed(tokens_BT), positions, context)
            return self.output_dropout(x_BTD), None
        real_BT = jnp.ones(tokens_BT.shape, bool) if segments is None else segments != 0
        count_B = jnp.sum(real_BT, axis=1, dtype=jnp.int32)
        # Tokens first, padding behind them, where a causal convolution does not look; put back at the end.
        order = jnp.argsort(~real_BT, axis=1, stable=True)
        positions = cache.length_B[:, None] + jnp.cumsum(real_BT, axis=1, dtype=jnp.int32) - 1 if positions is None else positions
        positions = jnp.where(real_BT, positions, 0)
        x_BTD, positions = embed(jnp.take_along_axis(tokens_BT, order, axis=1)), jnp.take_along_axis(positions, order, axis=1)
        ones = None if memory.segments_BS is None else (memory.segments_BS != 0).astype(jnp.int32)
        mask = None if ones is None else Segments(jnp.ones(tokens_BT.shape, jnp.int32), ones)
        context = ConvContext(count_B=count_B, source=memory, source_mask=mask)
        x_BTD, _, layers = self.decoder(x_BTD, positions, context, cache.layers)
        x_BTD = jnp.take_along_axis(x_BTD, jnp.argsort(order, axis=1)[..., None], axis=1)
        return self.output_dropout(x_BTD), cache.replace(layers=layers, length_B=cache.length_B + count_B)

    def unembed(self, hidden: Array, memory: Any = None) -> Array:
        """[..., D] -> logits [..., V] float32."""
        if not self.tied:
            return self.head(hidden)
        return (self.embed if self.target_vocab_size is None else self.target_embed).unembed(hidden)

    @nn.nowrap
    def init_cache(self, batch_size: int, max_length: int) -> ConvCache:
        """An empty cache of the target; needs no parameters, and takes as much memory for any length.

        Raises:
          BadInput: more tokens than there are positions.
        """
        check_length(self.decoder_side().positions, max_length, 'the cache has {} slots')
        return self.empty_cache(batch_size, max_length)


def _positions(tokens_BT: Array, segments: Array | None) -> Array:
    return jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None] if segments is None else within_segments(segments)


def _mask(tokens_BT: Array, segments: Array | None, memory: Source) -> Mask | None:
    """A target token sees the source tokens of its own segment."""
    if memory.segments_BS is None:
        return None
    return Segments(jnp.ones(tokens_BT.shape, jnp.int32) if segments is None else segments, memory.segments_BS)
