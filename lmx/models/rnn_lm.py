"""Recurrent language models: Elman (1990; Mikolov et al. 2010), LSTM and GRU, with AWD-LSTM's regularisers (Merity et al. 2017, arXiv:1708.02182)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from lmx.nn.dropout import Dropout
from lmx.nn.embed import Embed, Unembed
from lmx.nn.rnn import CELLS, Cell, LockedDropout, Recurrent, State, zeros
from lmx.types import Array, BadInput, Mean


def rnn_lm(
    *,
    vocab_size: int,
    dim: int,
    num_layers: int,
    hidden_dim: int | None = None,
    cell: str = 'lstm',
    tied: bool = True,
    dropout_rate: Any = 0.0,
    input_dropout_rate: Any = 0.0,
    hidden_dropout_rate: Any = 0.0,
    word_dropout_rate: Any = 0.0,
    weight_drop_rate: Any = 0.0,
    activation_l2: Any = 0.0,
    temporal_l2: Any = 0.0,
    dtype: str = 'float32',
) -> RecurrentDecoder:
    """softmax(E h_t + b), h from `num_layers` recurrent layers; AWD-LSTM is dim 400, hidden_dim 1150, 3 layers and all the rates above 0.

    Its state goes on from window to window where training reads the data in streams (the collection 'carry').

    Args:
      dim: of the embeddings.
      hidden_dim: F of all layers but the last, which has `dim` where weights are tied; None = dim.
      cell: 'elman', 'lstm' or 'gru'.
      tied: the output weights are the embedding's (Inan et al. 2016, arXiv:1611.01462).
      dropout_rate, input_dropout_rate, hidden_dropout_rate: of the last layer's output, of the embeddings and between layers; the same
        channels at every token (Gal and Ghahramani 2016, arXiv:1512.05287). AWD-LSTM: 0.4, 0.65, 0.3.
      word_dropout_rate: share of the vocabulary whose embeddings are zero in a batch; 0.1.
      weight_drop_rate: of the recurrent kernels; 0.5.
      activation_l2, temporal_l2: coefficients of the mean square of the last layer's output, dropout included, and of its change from
        token to token; 2 and 1.
      dtype: what is computed in; scores are float32.

    Raises:
      BadInput: an unknown cell.
    """
    if cell not in CELLS:
        raise BadInput(f'cell {cell!r} is unknown; there are {", ".join(CELLS)}')
    inner = dim if hidden_dim is None else hidden_dim
    return RecurrentDecoder(
        vocab_size=vocab_size,
        dim=dim,
        sizes=(*[inner] * (num_layers - 1), dim if tied else inner),
        cell=CELLS[cell],
        tied=tied,
        rates=(dropout_rate, input_dropout_rate, hidden_dropout_rate, word_dropout_rate, weight_drop_rate),
        penalties=(activation_l2, temporal_l2),
        dtype=dtype,
    )


class RecurrentCache(struct.PyTreeNode):
    """What a recurrent decoder remembers of each row: the state of every layer, [B, F] each, and how many tokens it has read."""

    layers: tuple[State, ...]
    length_B: Array

    def take(self, rows: Array) -> RecurrentCache:
        """The given rows, in the given order, repeated where they are: what beam search does between steps."""
        return jax.tree.map(lambda array: jnp.take(array, rows, axis=0), self)


class RecurrentDecoder(nn.Module):
    """Meets `lmx.types.Decoder`; its cache is its state. Parameters: `embed`, `layers_0`, ..., and `bias` or `head`.

    With the collection 'carry' it starts from the state kept there and leaves the new one; gradients end where a window begins.

    Attributes:
      sizes: F of each layer.
      rates: of dropout on the output, the embeddings, between layers, whole words, recurrent kernels.
      penalties: see `rnn_lm`.
    """

    vocab_size: int
    dim: int
    sizes: tuple[int, ...]
    cell: Cell
    tied: bool
    rates: tuple[Any, Any, Any, Any, Any]
    penalties: tuple[Any, Any]
    dtype: str = 'float32'

    def setup(self) -> None:
        output, inputs, hidden, word, weight = self.rates
        self.embed = Embed(self.vocab_size, self.dim, self.dtype, _symmetric)
        self.layers = [Recurrent(size, self.cell, weight_drop_rate=weight) for size in self.sizes]
        self.word_dropout = Dropout(word)
        self.input_dropout = LockedDropout(inputs)
        self.hidden_dropout = [LockedDropout(hidden) for _ in self.sizes[1:]]
        self.output_dropout = LockedDropout(output)
        if self.tied:
            self.bias = self.param('bias', nn.initializers.zeros, (self.vocab_size,), jnp.float32)
        else:
            self.head = Unembed(self.vocab_size, use_bias=True, embed_init=_symmetric)

    def __call__(self, tokens_BT: Array, **kwargs: Any) -> tuple[Array, RecurrentCache | None]:
        """-> (logits_BTV float32, cache). Arguments as `hidden`."""
        hidden_BTD, cache = self.hidden(tokens_BT, **kwargs)
        return self.unembed(hidden_BTD), cache

    def hidden(
        self, tokens_BT: Array, *, segments: Array | None = None, positions: Array | None = None, cache: RecurrentCache | None = None
    ) -> tuple[Array, RecurrentCache | None]:
        """-> (hidden_BTD, the cache with the new tokens). A new segment starts from zeros; `positions` change nothing."""
        carry = self._carry(tokens_BT.shape[0])
        states = cache.layers if cache is not None else (None,) * len(self.sizes) if carry is None else carry
        x = self.embed(tokens_BT)
        if self.word_dropout.active:
            x = x * jnp.take(self.word_dropout(jnp.ones((self.vocab_size, 1), x.dtype)), tokens_BT, axis=0)
        x, out = self.input_dropout(x), []
        for number, (layer, state) in enumerate(zip(self.layers, states)):
            x = self.hidden_dropout[number - 1](x) if number else x
            state = None if state is None else tuple(jax.lax.stop_gradient(array).astype(x.dtype) for array in state)
            x, state = layer(x, state, segments, resets=cache is None)
            out.append(state)
        if self.is_mutable_collection('carry'):
            self.put_variable('carry', 'state', carry if self.is_initializing() else tuple(out))
        dropped = self.output_dropout(x)
        self._penalise(x, dropped, segments)
        if cache is None:
            return dropped, None
        count = tokens_BT.shape[1] if segments is None else jnp.sum(segments != 0, axis=1)
        return dropped, RecurrentCache(tuple(out), (cache.length_B + count).astype(jnp.int32))

    def _carry(self, batch: int) -> tuple[State, ...] | None:
        """The state that the last window left, zeros at first; None where none is kept."""
        if self.has_variable('carry', 'state') and not self.is_initializing():
            return self.get_variable('carry', 'state')
        return self.init_cache(batch, 0).layers if self.is_mutable_collection('carry') else None

    def _penalise(self, raw_BTF: Array, dropped_BTF: Array, segments: Array | None) -> None:
        weights_BT = jnp.ones(raw_BTF.shape[:2]) if segments is None else (segments != 0).astype(jnp.float32)
        alpha, beta = self.penalties
        if not _off(alpha):
            square_BT = jnp.mean(jnp.square(dropped_BTF.astype(jnp.float32)), axis=-1)
            self.sow('losses', 'activation_l2', Mean(alpha * jnp.sum(weights_BT * square_BT), jnp.sum(weights_BT)))
        if not _off(beta):
            change_BT = jnp.mean(jnp.square(jnp.diff(raw_BTF.astype(jnp.float32), axis=1)), axis=-1)
            alike_BT = weights_BT[:, 1:] * weights_BT[:, :-1]
            alike_BT *= 1 if segments is None else segments[:, 1:] == segments[:, :-1]
            self.sow('losses', 'temporal_l2', Mean(beta * jnp.sum(alike_BT * change_BT), jnp.sum(alike_BT)))

    def unembed(self, hidden: Array) -> Array:
        """[..., D] -> logits [..., V] float32."""
        return self.embed.unembed(hidden) + self.bias if self.tied else self.head(hidden)

    @nn.nowrap
    def init_cache(self, batch_size: int, max_length: int) -> RecurrentCache:
        """The state before the first token; of the same size for any length."""
        layers = tuple(zeros(self.cell, batch_size, size, self.dtype) for size in self.sizes)
        return RecurrentCache(layers, jnp.zeros((batch_size,), jnp.int32))


def _symmetric(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    return jax.random.uniform(key, shape, dtype, -0.1, 0.1)


def _off(value: Any) -> bool:
    """Whether a coefficient is statically absent; a traced 0 is not."""
    return value is None or (isinstance(value, (int, float)) and value == 0)
