"""What is made of an encoder's vectors: scores of tokens, of a text, or a text's own vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from lmx.nn.dropout import Dropout
from lmx.nn.linear import Init, Linear, dot
from lmx.types import Array

Pool = Callable[[Array, 'Array | None'], Array]
"""(hidden_BTD, segments_BT or None) -> [B, D]; segments 0 = padding, on either side."""


def first(hidden_BTD: Array, segments_BT: Array | None) -> Array:
    """The first token's vector, which is where BERT has its [CLS]."""
    return _at(hidden_BTD, segments_BT, lambda real_BT: jnp.argmax(real_BT, axis=1), 0)


def last(hidden_BTD: Array, segments_BT: Array | None) -> Array:
    """The last token's vector: in a decoder, the one that has seen all."""
    length = hidden_BTD.shape[1]
    return _at(hidden_BTD, segments_BT, lambda real_BT: length - 1 - jnp.argmax(real_BT[:, ::-1], axis=1), length - 1)


def mean(hidden_BTD: Array, segments_BT: Array | None) -> Array:
    """The mean over tokens, in float32."""
    weights_BT = jnp.ones(hidden_BTD.shape[:2], jnp.float32) if segments_BT is None else (segments_BT != 0).astype(jnp.float32)
    total_BD = jnp.einsum('BTD,BT->BD', hidden_BTD.astype(jnp.float32), weights_BT)
    return (total_BD / jnp.maximum(jnp.sum(weights_BT, axis=1, keepdims=True), 1e-9)).astype(hidden_BTD.dtype)


def _at(hidden_BTD: Array, segments_BT: Array | None, place: Callable[[Array], Array], default: int) -> Array:
    if segments_BT is None:
        return hidden_BTD[:, default]
    return jnp.take_along_axis(hidden_BTD, place(segments_BT != 0)[:, None, None], axis=1)[:, 0]


def vector(hidden_BTD: Array, segments_BT: Array | None, pool: Pool = mean, normalize: bool = True) -> Array:
    """A text's vector [B, D] float32, with `normalize` of length 1, so that products are cosines."""
    x_BD = pool(hidden_BTD, segments_BT).astype(jnp.float32)
    return normalized(x_BD) if normalize else x_BD


def normalized(x: Array) -> Array:
    """x / |x| over the last axis, in float32; a vector of zeros stays."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


Head = Callable[..., nn.Module]
"""(name=) -> a module (hidden_BTD, segments_BT, table_VD) -> output."""


def masked_lm(*, tied: bool = True, use_bias: bool = True) -> Head:
    """`MaskedLm`, its transform to be filled in by the model."""
    return partial(MaskedLm, tied=tied, use_bias=use_bias)


def classifier(*, num_classes: int, dropout_rate: Any = 0.0, pool: Pool | None = None) -> Head:
    """`Classifier`, its transform (and pool, by default) to be filled in by the model. One class: regression."""
    return partial(Classifier, num_classes=num_classes, dropout_rate=dropout_rate, **({} if pool is None else {'pool': pool}))


def per_token(*, num_classes: int, dropout_rate: Any = 0.0) -> Head:
    """`PerToken`: named entities and the like."""
    return partial(PerToken, num_classes=num_classes, dropout_rate=dropout_rate)


def span(*, dropout_rate: Any = 0.0) -> Head:
    """`PerToken` with scores of an answer's start and end."""
    return partial(PerToken, num_classes=2, dropout_rate=dropout_rate)


def embedding(*, pool: Pool = mean, normalize: bool = True) -> Head:
    """`Embedding`."""
    return partial(Embedding, pool=pool, normalize=normalize)


def filled(head: Head | None, fillings: Mapping[Any, Mapping[str, Any]]) -> Head | None:
    """The head with what the model's paper has for it: `fillings` are keywords by the head's class; the head's own win."""
    if not isinstance(head, partial) or head.func not in fillings:
        return head
    return partial(head.func, **{**fillings[head.func], **head.keywords})


class Transform(nn.Module):
    """norm(activation(dense(x))), [..., D] -> [..., D]. Parameters: `dense`, `norm`."""

    activation: Callable[[Array], Array]
    norm: Callable[..., nn.Module] | None = None
    use_bias: bool = True
    kernel_init: Init = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = self.activation(Linear(x.shape[-1], self.use_bias, self.kernel_init, name='dense')(x))
        return x if self.norm is None else self.norm(name='norm')(x)


class MaskedLm(nn.Module):
    """Scores of the token that stood at each place: transform(x) times the embedding table, plus a bias (BERT).

    Parameters: `transform`, `bias` [V] and, untied, `embedding` [V, D].
    """

    transform: Callable[..., nn.Module]
    tied: bool = True
    use_bias: bool = True
    embed_init: Init = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, hidden: Array, segments_BT: Array | None, table_VD: Array) -> Array:
        """-> [..., V] float32."""
        x = self.transform(name='transform')(hidden)
        if not self.tied:
            table_VD = self.param('embedding', self.embed_init, table_VD.shape, jnp.float32)
        out = dot(x, table_VD.T.astype(x.dtype), jnp.float32)
        return out + self.param('bias', nn.initializers.zeros, (table_VD.shape[0],), jnp.float32) if self.use_bias else out


class Classifier(nn.Module):
    """Scores of a text's classes (or one value, for regression): dense(dropout(transform(pool(x)))), [B, N] float32.

    Attributes:
      num_classes: N.
      transform: (name=) -> a module on [B, D]; None = none.
      pool: see `Pool`.
    """

    num_classes: int
    transform: Callable[..., nn.Module] | None = None
    pool: Pool = first
    dropout_rate: Any = None
    kernel_init: Init = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, hidden_BTD: Array, segments_BT: Array | None = None, table_VD: Array | None = None) -> Array:
        x_BD = self.pool(hidden_BTD, segments_BT)
        if self.transform is not None:
            x_BD = self.transform(name='transform')(x_BD)
        x_BD = Dropout(self.dropout_rate)(x_BD)
        return Linear(self.num_classes, kernel_init=self.kernel_init, name='out')(x_BD).astype(jnp.float32)


class PerToken(nn.Module):
    """Scores of every token, [B, T, N] float32: its classes (named entities), or with N = 2 that of an answer's start and end (SQuAD)."""

    num_classes: int
    transform: Callable[..., nn.Module] | None = None
    dropout_rate: Any = None
    kernel_init: Init = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, hidden_BTD: Array, segments_BT: Array | None = None, table_VD: Array | None = None) -> Array:
        if self.transform is not None:
            hidden_BTD = self.transform(name='transform')(hidden_BTD)
        hidden_BTD = Dropout(self.dropout_rate)(hidden_BTD)
        return Linear(self.num_classes, kernel_init=self.kernel_init, name='out')(hidden_BTD).astype(jnp.float32)


class Embedding(nn.Module):
    """`vector` as a head."""

    pool: Pool = mean
    normalize: bool = True

    def __call__(self, hidden_BTD: Array, segments_BT: Array | None = None, table_VD: Array | None = None) -> Array:
        return vector(hidden_BTD, segments_BT, self.pool, self.normalize)
