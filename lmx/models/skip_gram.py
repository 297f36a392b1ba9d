"""Skip-gram with negative sampling (Mikolov et al. 2013, arXiv:1310.4546), better known as word2vec."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmx.nn.embed import Embed
from lmx.nn.heads import normalized
from lmx.nn.linear import Init, dot
from lmx.types import Array


def skip_gram(*, vocab_size: int, dim: int, embed_init: Init | None = None) -> SkipGram:
    """Two vectors for each word, v as a center and u as a context; u_o . v_c says how well o stands near c.

    Args:
      embed_init: of the vectors v; None = uniform within +-0.5 / dim, as word2vec begins. The u begin at 0.
    """
    if embed_init is None:
        embed_init = nn.initializers.variance_scaling(1 / (12 * dim), 'fan_out', 'uniform')  # of [V, D]: limit sqrt(3 / (12 dim^2))
    return SkipGram(vocab_size=vocab_size, dim=dim, embed_init=embed_init)


class SkipGram(nn.Module):
    """Parameters: `embed/embedding` (v, the word vectors that are kept) and `context/embedding` (u), [V, D] each."""

    vocab_size: int
    dim: int
    embed_init: Init

    def setup(self) -> None:
        self.embed = Embed(self.vocab_size, self.dim, embed_init=self.embed_init)
        self.context = Embed(self.vocab_size, self.dim, embed_init=nn.initializers.zeros)

    def __call__(self, center: Array, others: Array) -> Array:
        """Centers [B], others [B, ...] int32 -> u . v [B, ...] float32."""
        v_BD, u_BND = self.embed(center), self.context(others.reshape(others.shape[0], -1))
        return jnp.einsum('BD,BND->BN', v_BD, u_BND).reshape(others.shape)

    def nearest(self, words_B: Array, count: int, allowed_V: Array) -> tuple[Array, Array]:
        """The `count` other words whose vectors v have the largest cosines with the words' own.

        Args:
          allowed_V: bool [V]; words that may be named.

        Returns:
          (ids [B, count] int32, cosines [B, count] float32), the largest first.
        """
        unit_VD = normalized(self.embed.embedding)
        cosines_BV = dot(unit_VD[words_B], unit_VD.T)
        hidden = ~jnp.asarray(allowed_V) | (jnp.arange(self.vocab_size) == words_B[:, None])
        cosines, ids = jax.lax.top_k(jnp.where(hidden, -jnp.inf, cosines_BV), count)
        return ids, cosines
