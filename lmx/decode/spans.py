"""The best span of a text by the scores of its ends (Devlin et al. 2018, arXiv:1810.04805, section 4.2)."""

from __future__ import annotations

import jax.numpy as jnp

from lmx.types import Array


def best(scores_BT2: Array, inside_BT: Array, *, longest: int) -> dict[str, Array]:
    """The span within `inside_BT` (bool), of 1 to `longest` tokens, whose first token's start score and last token's end score have the
    largest sum: start, end int32 [B], both in the span, and score float32 [B], -inf where no token is inside."""
    start_BT, end_BT = scores_BT2[..., 0], scores_BT2[..., 1]
    length = start_BT.shape[1]
    reach_TT = jnp.arange(length)[None, :] - jnp.arange(length)[:, None]
    allowed_BTT = (reach_TT >= 0) & (reach_TT < longest) & inside_BT[:, :, None] & inside_BT[:, None, :]
    flat = jnp.where(allowed_BTT, start_BT[:, :, None] + end_BT[:, None, :], -jnp.inf).reshape(len(start_BT), -1)
    best_B = jnp.argmax(flat, axis=1)
    return {'start': best_B // length, 'end': best_B % length, 'score': jnp.max(flat, axis=1)}
