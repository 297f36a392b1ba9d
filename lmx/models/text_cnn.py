"""Convolutional networks for sentence classification (Kim 2014, arXiv:1408.5882)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmx.nn.conv import Conv
from lmx.nn.encoder import HeadedEncoder
from lmx.nn.heads import Classifier
from lmx.nn.linear import Init
from lmx.types import Array, BadInput


def _symmetric(limit: float) -> Init:
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -limit, limit)


def text_cnn(
    *,
    vocab_size: int,
    dim: int = 300,
    widths: Sequence[int] = (3, 4, 5),
    features: int = 100,
    num_classes: int,
    activation: Callable[[Array], Array] = jax.nn.relu,
    dropout_rate: Any = 0.5,
    embed_init: Init | None = None,
    dtype: str = 'float32',
) -> HeadedEncoder:
    """Filters of several widths over the word vectors, the strongest response of each in the text, dropout, and a linear layer.

    A filter looks at a window around each token and sees zeros outside the text, so a text may be shorter than a filter is wide. The
    maximum is over windows around tokens; padding (segments 0) leaves no trace. `positions` change nothing; there are no `types`.

    The paper also bounds the norm of the output weights by 3; that is left to weight decay (Zhang and Wallace 2015, arXiv:1510.03820,
    find that the bound matters little). Of its variants, CNN-rand is the default; CNN-static and CNN-non-static give `embed_init`
    pretrained vectors (`lmx.text.vectors.initializer`), the former with `lmx.optim.optimizer(frozen='embed/')`.

    Args:
      widths: of the filters, in tokens.
      features: filters of each width.
      activation: of the responses.
      dropout_rate: of the maxima.
      embed_init: of the word vectors; None = uniform within +-0.25, as Kim draws words without a pretrained vector.
      dtype: what is computed in; scores are float32.

    Raises:
      BadInput: no width, or one below 1.
    """
    return HeadedEncoder(
        vocab_size=vocab_size,
        dim=dim,
        stack=partial(Filters, widths=tuple(widths), features=features, activation=activation),
        head=partial(
            Classifier,
            num_classes=num_classes,
            pool=max_over_time,
            dropout_rate=dropout_rate,
            kernel_init=nn.initializers.lecun_normal(),
        ),
        dtype=dtype,
        embed_init=_symmetric(0.25) if embed_init is None else embed_init,
    )


class Filters(nn.Module):
    """x [B, T, D] -> the responses of all filters around each token, [B, T, widths x features]. Parameters: `conv_3`, `conv_4`, ..."""

    widths: tuple[int, ...]
    features: int
    activation: Callable[[Array], Array] = jax.nn.relu

    @nn.compact
    def __call__(
        self, x_BTD: Array, *, segments: Array | None = None, positions: Array | None = None, types: Array | None = None
    ) -> tuple[Array, None]:
        """-> (responses, no cache)."""
        if types is not None:
            raise BadInput('this model has no token types; leave `types` out')
        if not self.widths or len(set(self.widths)) < len(self.widths):
            raise BadInput(f'widths {self.widths} must be at least one, each different; give more features for more filters of one width')
        init = nn.initializers.he_uniform()
        convs = [Conv(self.features, width, kernel_init=init, name=f'conv_{width}') for width in self.widths]
        return self.activation(jnp.concatenate([each(x_BTD, segments) for each in convs], axis=-1)), None


def max_over_time(hidden_BTD: Array, segments_BT: Array | None) -> Array:
    """The largest value of each channel among the tokens, [B, D]; 0 in a row without tokens. A `lmx.nn.heads.Pool`."""
    if segments_BT is None:
        return jnp.max(hidden_BTD, axis=1)
    real_BT1 = (segments_BT != 0)[..., None]
    highest_BD = jnp.max(hidden_BTD, axis=1, where=real_BT1, initial=jnp.finfo(hidden_BTD.dtype).min)
    return jnp.where(jnp.any(real_BT1, axis=1), highest_BD, jnp.zeros((), hidden_BTD.dtype))
