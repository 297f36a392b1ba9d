"""Beam search over a step callback (Graves 2012, arXiv:1211.3711; Sutskever et al. 2014, arXiv:1409.3215), one compiled loop.

The step is that of `lmx.decode.sample`, for B x K rows: row b K + k follows hypothesis k of text b. An encoder-decoder closes over its
memory, expanded once: `memory.take(jnp.repeat(jnp.arange(B), K))`; its prompt is the decoder's start token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lmx.decode.rules import Rule, applied
from lmx.decode.sample import Step
from lmx.types import Array, BadInput

LOST = -1e9  # a score that loses to every real one, and adds up to finite numbers


class _Beams(struct.PyTreeNode):
    """`count` tokens in every open hypothesis. Open: what goes on. Closed: the best that have ended, by score."""

    cache: Any
    open_BKN: Array
    open_score_BK: Array
    closed_BKN: Array
    closed_score_BK: Array
    closed_length_BK: Array
    is_closed_BK: Array
    improvable_B: Array
    count: Array


def beam_search(
    step: Step,
    cache: Any,
    prompt_BT: Array,
    lengths_B: Array,
    *,
    beam_size: int,
    max_tokens: int,
    eos_id: int | None = None,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    num_return: int = 1,
    rules: Sequence[Rule] = (),
) -> dict[str, Array]:
    """The likeliest continuations of every row of a batch of prompts; pure, to be called inside jit. The rules are those of transformers.

    In each step the 2 K best continuations of all K hypotheses are looked at: those among the best K that end are closed, and the best K
    that do not end stay open. A closed hypothesis of n tokens (eos included) scores log-probability / n^length_penalty.

    Args:
      cache: empty, with B x beam_size rows and room for the prompt and max_tokens - 1 more.
      prompt_BT: int32, padded on the right to a common T; `lengths_B` says how many tokens are real, at least 1.
      beam_size: K, hypotheses that are followed.
      max_tokens: N, new tokens at most; hypotheses that reach it are closed as they are.
      eos_id: the token that ends a hypothesis.
      length_penalty: above 0 prefers long texts, below 0 short ones (Wu et al. 2016, arXiv:1609.08144, without their offset).
      early_stopping: True ends a row once K hypotheses are closed; False, once the best open one could not beat them at its present
        length; 'never', once it could not at any length that is left.
      num_return: R <= K, how many to return, best first.
      rules: see `lmx.decode.rules`; what they leave is not renormalised.

    Returns:
      tokens int32 [B, R, N], eos_id (or 0) behind the end; lengths int32 [B, R], tokens before the end, the eos not counted; scores
      float32 [B, R].

    Raises:
      BadInput: sizes below 1, more returned than followed, an unknown `early_stopping`.
    """
    if beam_size < 1 or max_tokens < 1 or not 1 <= num_return <= beam_size:
        raise BadInput(
            f'beam_size {beam_size}, max_tokens {max_tokens} and num_return {num_return} must be at least 1, and num_return <= beam_size'
        )
    if early_stopping not in (True, False, 'never'):
        raise BadInput(f"early_stopping {early_stopping!r} is unknown; there are True, False, 'never'")
    search = _Search(step, beam_size, max_tokens, eos_id, length_penalty, early_stopping, rules)
    beams = jax.lax.while_loop(search.goes_on, search.one, search.begin(cache, prompt_BT, lengths_B))
    lengths_BK, last = beams.closed_length_BK, jnp.maximum(beams.closed_length_BK - 1, 0)[..., None]
    if eos_id is not None:  # the eos is not part of the text
        lengths_BK = lengths_BK - (jnp.take_along_axis(beams.closed_BKN, last, axis=2)[..., 0] == eos_id)
    found = {'tokens': beams.closed_BKN, 'lengths': lengths_BK, 'scores': beams.closed_score_BK}
    return {name: array[:, :num_return] for name, array in found.items()}


def best(*args: Any, **keywords: Any) -> dict[str, Array]:
    """`beam_search`'s best text of each row: tokens [B, N], lengths [B], scores [B]."""
    return {name: array[:, 0] for name, array in beam_search(*args, **keywords).items()}


class _Search:
    """What stays the same from step to step."""

    def __init__(
        self, step: Step, size: int, total: int, eos_id: int | None, penalty: float, early: bool | str, rules: Sequence[Rule] = ()
    ):
        self.rules = rules
        self.step, self.size, self.total, self.eos_id, self.penalty, self.early = step, size, total, eos_id, penalty, early

    def begin(self, cache: Any, prompt_BT: Array, lengths_B: Array) -> _Beams:
        """Reads the prompts and takes the first tokens, all from the first hypothesis, since the others are its copies."""
        batch, size = prompt_BT.shape[0], self.size
        rows = jnp.repeat(jnp.arange(batch), size)
        segments = (jnp.arange(prompt_BT.shape[1]) < lengths_B[:, None]).astype(jnp.int32)
        logits, cache = self.step(prompt_BT[rows], cache, segments[rows])
        logits = jnp.take_along_axis(logits, (lengths_B[rows] - 1)[:, None, None], axis=1)[:, 0]
        tokens = jnp.full((batch, size, self.total), 0 if self.eos_id is None else self.eos_id, jnp.int32)
        beams = _Beams(
            cache=cache,
            open_BKN=tokens,
            open_score_BK=jnp.full((batch, size), LOST).at[:, 0].set(0.0),
            closed_BKN=tokens,
            closed_score_BK=jnp.full((batch, size), LOST),
            closed_length_BK=jnp.zeros((batch, size), jnp.int32),
            is_closed_BK=jnp.zeros((batch, size), bool),
            improvable_B=jnp.ones((batch,), bool),
            count=jnp.zeros((), jnp.int32),
        )
        return self._extended(beams, logits)

    def goes_on(self, beams: _Beams) -> Array:
        full = jnp.all(beams.is_closed_BK) if self.early is True else False
        return (beams.count < self.total) & jnp.any(beams.improvable_B) & ~jnp.asarray(full)

    def one(self, beams: _Beams) -> _Beams:
        last_B1 = jax.lax.dynamic_slice_in_dim(beams.open_BKN, beams.count - 1, 1, axis=2).reshape(-1, 1)
        logits, cache = self.step(last_B1, beams.cache, jnp.ones_like(last_B1))
        return self._extended(beams.replace(cache=cache), logits[:, 0])

    def _extended(self, beams: _Beams, logits: Array) -> _Beams:
        """One token more: the best 2 K continuations, of which some close and K stay open."""
        batch, size = beams.open_score_BK.shape
        logprobs = jax.nn.log_softmax(logits.astype(jnp.float32))
        logprobs = applied(self.rules, logprobs, beams.open_BKN.reshape(batch * size, -1), beams.count)
        logprobs = logprobs.reshape(batch, size, -1) + beams.open_score_BK[..., None]
        vocab = logprobs.shape[-1]
        score, place = jax.lax.top_k(logprobs.reshape(batch, -1), min(2 * size, size * vocab))
        parent, token = place // vocab, (place % vocab).astype(jnp.int32)
        tokens = jnp.take_along_axis(beams.open_BKN, parent[..., None], axis=1)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[..., None], beams.count, axis=2)
        count = beams.count + 1
        ends = jnp.zeros_like(token, bool) if self.eos_id is None else token == self.eos_id
        ends |= count == self.total
        beams = self._closed(beams, tokens, score, ends & (jnp.arange(score.shape[1]) < size), count)
        open_score, best = jax.lax.top_k(score + LOST * ends, size)
        rows = (jnp.arange(batch)[:, None] * size + jnp.take_along_axis(parent, best, axis=1)).reshape(-1)
        beams = beams.replace(
            cache=beams.cache.take(rows),
            open_BKN=jnp.take_along_axis(tokens, best[..., None], axis=1),
            open_score_BK=open_score,
            count=count,
        )
        return beams.replace(improvable_B=beams.improvable_B & self._improvable(beams))

    def _closed(self, beams: _Beams, tokens: Array, score: Array, ends: Array, count: Array) -> _Beams:
        """The best K of what was closed and what ends now, in rows that may still change."""
        final = score / count.astype(jnp.float32) ** self.penalty
        frozen_B1 = ~beams.improvable_B[:, None]
        if self.early is True:
            frozen_B1 |= jnp.all(beams.is_closed_BK, axis=1, keepdims=True)
        final = jnp.where(ends & ~frozen_B1, final, LOST)
        length = jnp.broadcast_to(count, ends.shape)
        score, best = jax.lax.top_k(jnp.concatenate([beams.closed_score_BK, final], axis=1), self.size)

        def pick(old: Array, new: Array) -> Array:
            both = jnp.concatenate([old, new], axis=1)
            return jnp.take_along_axis(both, best.reshape(best.shape + (1,) * (both.ndim - 2)), axis=1)

        return beams.replace(
            closed_BKN=pick(beams.closed_BKN, tokens),
            closed_score_BK=score,
            closed_length_BK=pick(beams.closed_length_BK, length),
            is_closed_BK=pick(beams.is_closed_BK, ends & ~frozen_B1),
        )

    def _improvable(self, beams: _Beams) -> Array:
        """Whether the best open hypothesis could still replace the worst closed one, [B]."""
        length = self.total if self.early == 'never' and self.penalty > 0 else beams.count
        best_B = beams.open_score_BK[:, 0] / jnp.asarray(length, jnp.float32) ** self.penalty
        worst_B = jnp.where(jnp.all(beams.is_closed_BK, axis=1), beams.closed_score_BK[:, -1], LOST)
        return best_B > worst_B
