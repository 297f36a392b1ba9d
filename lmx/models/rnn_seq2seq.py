"""Recurrent encoder-decoders with attention (Bahdanau et al. 2015, arXiv:1409.0473; Luong et al. 2015, arXiv:1508.04025)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from lmx.models.rnn_lm import RecurrentCache
from lmx.nn.attention import MASKED
from lmx.nn.dropout import Dropout
from lmx.nn.embed import Embed, Unembed
from lmx.nn.linear import Linear
from lmx.nn.rnn import CELLS, Bidirectional, Cell, Recurrence, State, zeros
from lmx.types import Array, BadInput


class Source(struct.PyTreeNode):
    """What the decoder reads of a source: `keys` [B, S, A] to compare with, `values` [B, S, E] to take, `state`, where it begins.

    `real_BS`: bool, which tokens there are.
    """

    keys: Array
    values: Array
    state: tuple[State, ...]
    real_BS: Array

    def take(self, rows: Array) -> Source:
        """The given rows, in the given order, repeated where they are."""
        return jax.tree.map(lambda array: jnp.take(array, rows, axis=0), self)


class Additive(nn.Module):
    """v tanh(W s + U h) (Bahdanau et al. 2015, appendix A.1.2); U h is the memory's key. Parameters: `query`, `score`."""

    @nn.compact
    def __call__(self, state_BF: Array, keys_BSA: Array) -> Array:
        """-> scores [B, S]."""
        query = Linear(keys_BSA.shape[-1], use_bias=False, name='query')(state_BF)
        return Linear(1, use_bias=False, name='score')(jnp.tanh(query[:, None] + keys_BSA))[..., 0]


class Multiplicative(nn.Module):
    """s W h (Luong et al. 2015, equation 8, 'general'); W h is the memory's key, so there are no parameters here."""

    def __call__(self, state_BF: Array, keys_BSA: Array) -> Array:
        """-> scores [B, S]."""
        return jnp.einsum('BF,BSF->BS', state_BF, keys_BSA)


def rnn_seq2seq(
    *,
    vocab_size: int,
    target_vocab_size: int | None = None,
    dim: int,
    hidden_dim: int | None = None,
    num_layers: int = 1,
    cell: str = 'gru',
    attention: Callable[..., nn.Module] = Additive,
    dropout_rate: Any = 0.0,
    tied: bool = False,
    dtype: str = 'float32',
) -> RecurrentSeq2Seq:
    """A bidirectional encoder; a decoder whose input is the last token and what it attended to last, [y_(t-1); a_(t-1)], Luong's input feeding.

    c_t = sum_j softmax_j(score(s_t, h_j)) h_j; a_t = tanh(W [c_t; s_t]); the scores of token t are E a_t. One pair per row: segments only
    tell padding (0) from tokens.

    Args:
      target_vocab_size: None = both sides share one vocabulary and one table.
      dim, hidden_dim: of the embeddings, and of the states (dim by default).
      num_layers: on either side.
      cell: 'elman', 'lstm' or 'gru'.
      attention: `Additive` (Bahdanau) or `Multiplicative` (Luong).
      dropout_rate: of the embeddings, between layers and of a_t.
      tied: the output weights are the target embedding's; needs hidden_dim = dim.
      dtype: what is computed in; scores are float32.

    Raises:
      BadInput: an unknown cell, or tied weights of unequal sizes.
    """
    inner = dim if hidden_dim is None else hidden_dim
    if cell not in CELLS:
        raise BadInput(f'cell {cell!r} is unknown; there are {", ".join(CELLS)}')
    if tied and inner != dim:
        raise BadInput(f'tied weights need hidden_dim {inner} to be dim {dim}; give tied=False')
    return RecurrentSeq2Seq(vocab_size, target_vocab_size, dim, inner, num_layers, CELLS[cell], attention, dropout_rate, tied, dtype)


class Step(nn.Module):
    """One token of the decoder: (state, token vector) -> (state, a_t). Parameters: `layer_0`, ..., `attention`, `out`."""

    hidden_dim: int
    num_layers: int
    cell: Cell
    attention: Callable[..., nn.Module]
    dropout_rate: Any = None

    @nn.compact
    def __call__(self, carry: tuple[tuple[State, ...], Array], now: tuple[Array, Array], memory: Source) -> tuple[Any, tuple[Array, Array]]:
        (states, fed_BF), (x_BD, real_B1) = carry, now
        x, out, dtype = jnp.concatenate([x_BD, fed_BF], axis=-1), [], x_BD.dtype
        init = nn.initializers.lecun_normal()
        for number, state in enumerate(states):
            width = self.cell.gates * self.hidden_dim
            x = Dropout(self.dropout_rate)(x) if number else x
            inputs = Linear(width, name=f'input_{number}')(x)
            kernel, bias = Recurrence(width, init, nn.initializers.zeros, name=f'recurrent_{number}')(self.hidden_dim)
            made = self.cell.step(inputs, state[0] @ kernel.astype(dtype) + bias.astype(dtype), state)
            out.append(tuple(jnp.where(real_B1, new, old) for new, old in zip(made, state)))
            x = out[-1][0]
        scores_BS = self.attention(name='attention')(x, memory.keys).astype(jnp.float32)
        weights_BS = jax.nn.softmax(jnp.where(memory.real_BS, scores_BS, MASKED))
        context = jnp.einsum('BS,BSE->BE', weights_BS.astype(dtype), memory.values)
        attended = jnp.tanh(Linear(self.hidden_dim, use_bias=False, name='out')(jnp.concatenate([context, x], axis=-1)))
        attended = Dropout(self.dropout_rate)(attended)
        fed_BF = jnp.where(real_B1, attended, fed_BF)
        return (tuple(out), fed_BF), (attended, weights_BS)


class RecurrentSeq2Seq(nn.Module):
    """Meets `lmx.types.EncoderDecoder`. Parameters: `embed` (and `target_embed`), `encoder_0`, ..., `key`, `begin_0`, ..., `step`, `head`."""

    vocab_size: int
    target_vocab_size: int | None
    dim: int
    hidden_dim: int
    num_layers: int
    cell: Cell
    attention: Callable[..., nn.Module]
    dropout_rate: Any = None
    tied: bool = False
    dtype: str = 'float32'

    def setup(self) -> None:
        self.embed = Embed(self.vocab_size, self.dim, self.dtype)
        if self.target_vocab_size is not None:
            self.target_embed = Embed(self.target_vocab_size, self.dim, self.dtype)
        self.encoder = [Bidirectional(self.hidden_dim, self.cell) for _ in range(self.num_layers)]
        self.key = Linear(self.hidden_dim, use_bias=False)
        self.begin = [Linear(self.hidden_dim) for _ in range(self.num_layers)]
        self.drop = Dropout(self.dropout_rate)
        self.step = nn.scan(
            Step,
            variable_broadcast='params',
            split_rngs={'params': False, 'dropout': True},
            in_axes=(1, nn.broadcast),
            out_axes=1,
        )(self.hidden_dim, self.num_layers, self.cell, self.attention, self.dropout_rate)
        if not self.tied:
            self.head = Unembed(self.vocab_size if self.target_vocab_size is None else self.target_vocab_size, use_bias=True)

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
        return self.unembed(self.hidden(target_BT, self.encode(source_BS, segments=source_segments), segments=segments)[0])

    def encode(self, tokens_BS: Array, *, segments: Array | None = None, positions: Array | None = None) -> Source:
        """What decoding reads of the source. The decoder begins at tanh(W) of what the backward pass ends with, at the first token."""
        real_BS = jnp.ones(tokens_BS.shape, bool) if segments is None else segments != 0
        ids = real_BS.astype(jnp.int32)
        x, states = self.drop(self.embed(tokens_BS)), []
        for number, (layer, begin) in enumerate(zip(self.encoder, self.begin)):
            x, (_, back) = layer(self.drop(x) if number else x, ids)
            first = jnp.tanh(begin(back[0]))
            states.append((first, *(jnp.zeros_like(first) for _ in back[1:])))
        return Source(keys=self.key(x), values=x, state=tuple(states), real_BS=real_BS)

    def hidden(
        self,
        tokens_BT: Array,
        memory: Source,
        *,
        segments: Array | None = None,
        positions: Array | None = None,
        cache: RecurrentCache | None = None,
    ) -> tuple[Array, RecurrentCache | None]:
        """-> (hidden_BTD, the cache with the new tokens). A cache that has read nothing begins with the memory's state."""
        real_BT = jnp.ones(tokens_BT.shape, bool) if segments is None else segments != 0
        embed = self.embed if self.target_vocab_size is None else self.target_embed
        x_BTD = self.drop(embed(tokens_BT))
        fed_BF = jnp.zeros((x_BTD.shape[0], self.hidden_dim), x_BTD.dtype)
        carry: Any = (memory.state, fed_BF)
        if cache is not None:
            begins_B1 = (cache.length_B == 0)[:, None]
            known = (cache.layers[:-1], cache.layers[-1][0])
            carry = jax.tree.map(lambda new, old: jnp.where(begins_B1, new, old).astype(x_BTD.dtype), carry, known)
        (states, fed_BF), (hidden_BTD, weights_BTS) = self.step(carry, (x_BTD, real_BT[..., None]), memory)
        self.sow('intermediates', 'weights', weights_BTS[:, None])
        if cache is None:
            return hidden_BTD, None
        count_B = jnp.sum(real_BT, axis=1, dtype=jnp.int32)
        return hidden_BTD, RecurrentCache((*states, (fed_BF,)), cache.length_B + count_B)

    def unembed(self, hidden: Array, memory: Any = None) -> Array:
        """[..., D] -> logits [..., V] float32."""
        if not self.tied:
            return self.head(hidden)
        return (self.embed if self.target_vocab_size is None else self.target_embed).unembed(hidden)

    @nn.nowrap
    def init_cache(self, batch_size: int, max_length: int) -> RecurrentCache:
        """A state of zeros, which the memory's replaces before the first token; of the same size for any length."""
        layers = [zeros(self.cell, batch_size, self.hidden_dim, self.dtype) for _ in range(self.num_layers)]
        fed = (jnp.zeros((batch_size, self.hidden_dim), self.dtype),)
        return RecurrentCache((*layers, fed), jnp.zeros((batch_size,), jnp.int32))
