"""Bidirectional LSTM for classification (Graves and Schmidhuber 2005; Zhou et al. 2016, arXiv:1611.06639)."""

from __future__ import annotations

from functools import partial
from typing import Any

from flax import linen as nn

from lmx.models.text_cnn import max_over_time
from lmx.nn.dropout import Dropout
from lmx.nn.encoder import HeadedEncoder
from lmx.nn.heads import Classifier, Pool
from lmx.nn.linear import Init
from lmx.nn.rnn import CELLS, Bidirectional, Cell
from lmx.types import Array, BadInput


def bilstm(
    *,
    vocab_size: int,
    dim: int = 300,
    hidden_dim: int = 150,
    num_layers: int = 1,
    num_classes: int,
    cell: str = 'lstm',
    pool: Pool = max_over_time,
    dropout_rate: Any = 0.5,
    embed_init: Init | None = None,
    dtype: str = 'float32',
) -> HeadedEncoder:
    """Both directions of `num_layers` recurrent layers, the largest value of each channel over the text, dropout, and a linear layer.

    Padding (segments 0) leaves no trace. `positions` change nothing; there are no `types`.

    Args:
      hidden_dim: F of each direction.
      cell: 'lstm', 'gru' or 'elman'.
      pool: `max_over_time`, or one of `lmx.nn.heads`: `mean`, `first`, `last`.
      dropout_rate: of the embeddings, between layers and of the pooled vector.
      embed_init: of the word vectors; None = N(0, 0.1).
      dtype: what is computed in; scores are float32.

    Raises:
      BadInput: an unknown cell.
    """
    if cell not in CELLS:
        raise BadInput(f'cell {cell!r} is unknown; there are {", ".join(CELLS)}')
    return HeadedEncoder(
        vocab_size=vocab_size,
        dim=dim,
        stack=partial(BothWays, hidden_dim=hidden_dim, num_layers=num_layers, cell=CELLS[cell], dropout_rate=dropout_rate),
        head=partial(Classifier, num_classes=num_classes, pool=pool, dropout_rate=dropout_rate, kernel_init=nn.initializers.lecun_normal()),
        dtype=dtype,
        embed_init=nn.initializers.normal(0.1) if embed_init is None else embed_init,
    )


class BothWays(nn.Module):
    """x [B, T, D] -> [B, T, 2 F]. Parameters: `layer_0`, ..."""

    hidden_dim: int
    num_layers: int
    cell: Cell
    dropout_rate: Any = None

    @nn.compact
    def __call__(
        self, x_BTD: Array, *, segments: Array | None = None, positions: Array | None = None, types: Array | None = None
    ) -> tuple[Array, None]:
        """-> (vectors, no cache)."""
        if types is not None:
            raise BadInput('this model has no token types; leave `types` out')
        for number in range(self.num_layers):
            x_BTD = Dropout(self.dropout_rate)(x_BTD)
            x_BTD, _ = Bidirectional(self.hidden_dim, self.cell, name=f'layer_{number}')(x_BTD, segments)
        return x_BTD, None
