"""Words of the source, copied: pointer networks (Vinyals et al. 2015, arXiv:1506.03134) beside a vocabulary (See et al. 2017, arXiv:1704.04368)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmx.nn.attention import attention_weights
from lmx.nn.linear import Init, Linear
from lmx.nn.masks import Mask
from lmx.types import Array


class Pointer(nn.Module):
    """p(w) = g softmax(scores)_w + (1 - g) (attention to the source tokens that are w), g = sigmoid(w x + b) (See et al., section 2.2).

    One more attention over the encoder's output, of one head. Parameters: `key`, `query`, `switch`.
    """

    dim: int
    kernel_init: Init = nn.initializers.xavier_uniform()

    def setup(self) -> None:
        self.key = Linear(self.dim, kernel_init=self.kernel_init)
        self.query = Linear(self.dim, kernel_init=self.kernel_init)
        self.switch = Linear(1, kernel_init=self.kernel_init)

    def keys(self, states_BSD: Array) -> Array:
        """What `point` finds source tokens by, [B, S, D]."""
        return self.key(states_BSD)

    def point(self, x_BTD: Array, keys_BSD: Array, tokens_BS: Array, mask: Mask | None) -> Array:
        """The attention to each source token, all occurrences of a word added up where the row first has it, 0 elsewhere: [B, T, S] float32."""
        weights_BTS = attention_weights(self.query(x_BTD)[:, :, None], keys_BSD[:, :, None], mask=mask)[:, 0]
        alike_BSS = tokens_BS[:, :, None] == tokens_BS[:, None]
        first_BS = jnp.argmax(alike_BSS, axis=1) == jnp.arange(tokens_BS.shape[1])
        return jnp.einsum('BTS,BSZ->BTZ', weights_BTS, (alike_BSS & first_BS[:, None]).astype(jnp.float32))

    def mix(self, x_BTD: Array, scores_BTV: Array, mass_BTS: Array, tokens_BS: Array) -> Array:
        """log p [B, T, V] float32, of which p is the softmax."""
        batch, length, size = scores_BTV.shape
        gate_BT1 = self.switch(x_BTD).astype(jnp.float32)
        copied_BVT = jnp.zeros((batch, size, length), jnp.float32)
        # A word has mass at one place, so that the order in which a device adds up cannot matter.
        copied_BVT = copied_BVT.at[jnp.arange(batch)[:, None], tokens_BS].add(jnp.swapaxes(mass_BTS, 1, 2))
        copied_BTV = jnp.swapaxes(copied_BVT, 1, 2)
        seen_BTV = copied_BTV > 0
        log_copied_BTV = jnp.where(seen_BTV, jnp.log(jnp.where(seen_BTV, copied_BTV, 1.0)), -1e30)
        generated_BTV = jax.nn.log_sigmoid(gate_BT1) + jax.nn.log_softmax(scores_BTV)
        return jnp.logaddexp(generated_BTV, jax.nn.log_sigmoid(-gate_BT1) + log_copied_BTV)
