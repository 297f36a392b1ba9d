"""Speculative decoding: a small model proposes, a large one reads all proposals at once and keeps what it would have said itself (Leviathan et al.
2022, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318). What is said has exactly the large model's distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lmx.decode.sample import Sampling, Step, filter_logits, row_keys
from lmx.types import Array, BadInput


class _Text(struct.PyTreeNode):
    """`made_B` tokens of each row, of which the last has been read by neither model; the end token counts while it is the last."""

    cache: Any
    draft_cache: Any
    tokens_BN: Array
    logprobs_BN: Array
    made_B: Array
    ended_B: Array
    accepted_B: Array
    rounds_B: Array


def speculate(
    step: Step,
    cache: Any,
    draft_step: Step,
    draft_cache: Any,
    prompt_BT: Array,
    lengths_B: Array,
    key: Array,
    *,
    draft_tokens: int,
    max_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    eos_id: int | None = None,
) -> dict[str, Array]:
    """As `lmx.decode.sample.generate`, in fewer calls of `step`; pure, to be called inside jit. At temperature 0 the tokens are the same.

    Args:
      cache, draft_cache: empty, each with room for the prompt and max_tokens - 1 more; see `lmx.nn.cache.Cache`.
      draft_step: the small model's, over the same vocabulary.
      draft_tokens: K, proposals in a round.

    Returns:
      tokens, lengths and logprobs as `generate` gives them; rounds int32 [B], calls of `step` behind the prompt's; accepted int32 [B], of K
      proposals in each of them.

    Raises:
      BadInput: no proposals, a cache that cannot be rewound, a repetition penalty, which looks at proposals that may not stay.
    """
    if draft_tokens < 1:
        raise BadInput(f'draft_tokens {draft_tokens} is below 1')
    if not (hasattr(cache, 'rewind') and hasattr(draft_cache, 'rewind')):
        raise BadInput('a recurrent state cannot forget what was rejected; speculative decoding needs models with attention')
    if not (isinstance(sampling.repetition_penalty, (int, float)) and sampling.repetition_penalty == 1):
        raise BadInput('a repetition penalty does not go with speculative decoding; leave one of them out')
    batch = prompt_BT.shape[0]
    speaker = _Speaker(step, draft_step, row_keys(key, batch), draft_tokens, max_tokens, sampling, eos_id)
    text = speaker.begin(cache, draft_cache, prompt_BT, lengths_B)
    text = jax.lax.while_loop(lambda text: jnp.any(speaker.going(text)), lambda text: speaker.round(text, lengths_B), text)
    lengths = text.made_B - text.ended_B
    return {
        'tokens': text.tokens_BN,
        'lengths': lengths,
        'logprobs': text.logprobs_BN,
        'rounds': text.rounds_B,
        'accepted': text.accepted_B,
    }


def check(beam_size: int, rules: Sequence[Any]) -> None:
    """Raises:
    BadInput: what a search or rules over the next token would make of proposals is not defined.
    """
    if beam_size > 1:
        raise BadInput(f'beam_size {beam_size} does not go with a draft, which is for one text at a time; use 1')
    if rules:
        raise BadInput('banned, forced, min_tokens and no_repeat do not go with a draft; leave them or the draft out')


class _Speaker:
    """What stays the same from round to round."""

    def __init__(self, step: Step, draft_step: Step, keys_B: Array, size: int, total: int, sampling: Sampling, eos_id: int | None):
        self.step, self.draft_step, self.keys_B, self.size, self.total = step, draft_step, keys_B, size, total
        self.sampling, self.eos_id = sampling, eos_id

    def going(self, text: _Text) -> Array:
        return ~text.ended_B & (text.made_B < self.total)

    def begin(self, cache: Any, draft_cache: Any, prompt_BT: Array, lengths_B: Array) -> _Text:
        """Both models read the prompt; the first token is the large one's."""
        segments_BT = (jnp.arange(prompt_BT.shape[1]) < lengths_B[:, None]).astype(jnp.int32)
        logits_BTV, cache = self.step(prompt_BT, cache, segments_BT)
        _, draft_cache = self.draft_step(prompt_BT, draft_cache, segments_BT)
        logits_BV = jnp.take_along_axis(logits_BTV, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
        none_B = jnp.zeros((len(lengths_B),), jnp.int32)
        blank_BN = jnp.full((len(lengths_B), self.total), 0 if self.eos_id is None else self.eos_id, jnp.int32)
        text = _Text(cache, draft_cache, blank_BN, jnp.zeros(blank_BN.shape, jnp.float32), none_B, none_B > 0, none_B, none_B)
        first_B = jax.vmap(jax.random.categorical)(self._keys(none_B, 0), filter_logits(logits_BV, self.sampling))
        return self._said(text, first_B[:, None], logits_BV[:, None], none_B + 1)

    def round(self, text: _Text, lengths_B: Array) -> _Text:
        """K proposals, their check, and one token of the large model's behind those that it keeps."""
        going_B, last_B = self.going(text), jnp.take_along_axis(text.tokens_BN, jnp.maximum(text.made_B - 1, 0)[:, None], axis=1)[:, 0]
        # The very last token of a text need not be read, and a place behind it may be one that a model has no position for.
        real_BK = going_B[:, None] & (text.made_B[:, None] + jnp.arange(self.size + 1) < self.total)
        real_BK = real_BK.astype(jnp.int32)

        def propose(carry: tuple[Any, Array], inputs: tuple[Array, Array]) -> tuple[tuple[Any, Array], tuple[Array, Array]]:
            draft_cache, token_B = carry
            place, real_B = inputs
            logits_B1V, draft_cache = self.draft_step(token_B[:, None], draft_cache, real_B[:, None])
            logits_BV = filter_logits(logits_B1V[:, 0], self.sampling)
            token_B = jax.vmap(jax.random.categorical)(self._keys(text.made_B, place), logits_BV).astype(jnp.int32)
            return (draft_cache, token_B), (token_B, jax.nn.softmax(logits_BV))

        # One step more than there are proposals, which only reads the last of them.
        (draft_cache, _), (tokens_KB, q_KBV) = jax.lax.scan(propose, (text.draft_cache, last_B), (jnp.arange(self.size + 1), real_BK.T))
        read_BK = jnp.concatenate([last_B[:, None], tokens_KB[:-1].T], axis=1)
        q_BKV = q_KBV[:-1].swapaxes(0, 1)
        logits_BKV, cache = self.step(read_BK, text.cache, real_BK)
        shape = logits_BKV.shape
        p_BKV = jax.nn.softmax(filter_logits(logits_BKV.reshape(-1, shape[-1]), self.sampling)).reshape(shape)

        proposed_BK = read_BK[:, 1:, None]
        p_own_BK = jnp.take_along_axis(p_BKV[:, :-1], proposed_BK, axis=2)[..., 0]
        q_own_BK = jnp.take_along_axis(q_BKV, proposed_BK, axis=2)[..., 0]
        draw_BK = jax.vmap(lambda key: jax.random.uniform(key, (self.size,)))(self._keys(text.made_B, self.size))
        kept_B = jnp.sum(jnp.cumprod(draw_BK * q_own_BK < p_own_BK, axis=1), axis=1)
        # Behind a rejected proposal comes a token of what the large model likes more than the small one does; behind all, one of its own.
        p_BV = jnp.take_along_axis(p_BKV, kept_B[:, None, None], axis=1)[:, 0]
        q_BV = jnp.take_along_axis(jnp.pad(q_BKV, ((0, 0), (0, 1), (0, 0))), kept_B[:, None, None], axis=1)[:, 0]
        rest_BV = jnp.maximum(p_BV - q_BV, 0)
        rest_BV = jnp.where(jnp.sum(rest_BV, axis=-1, keepdims=True) > 0, rest_BV, p_BV)
        own_B = jax.vmap(jax.random.categorical)(self._keys(text.made_B, self.size + 1), jnp.log(rest_BV)).astype(jnp.int32)

        places = jnp.arange(self.size + 1)
        said_BK = jnp.where(places < kept_B[:, None], jnp.pad(read_BK[:, 1:], ((0, 0), (0, 1))), own_B[:, None])
        new = self._said(text, said_BK, logits_BKV, jnp.where(going_B, kept_B + 1, 0))
        known_B = lengths_B + new.made_B - 1
        return new.replace(
            cache=cache.rewind(known_B),
            draft_cache=draft_cache.rewind(known_B),
            accepted_B=text.accepted_B + jnp.where(going_B, jnp.minimum(kept_B, new.made_B - text.made_B), 0),
            rounds_B=text.rounds_B + going_B,
        )

    def _said(self, text: _Text, tokens_BK: Array, logits_BKV: Array, count_B: Array) -> _Text:
        """The first `count_B` of these tokens are said, up to the end token and to the limit."""
        places = jnp.arange(tokens_BK.shape[1])
        count_B = jnp.minimum(count_B, self.total - text.made_B)
        ends_BK = jnp.zeros(tokens_BK.shape, bool) if self.eos_id is None else tokens_BK == self.eos_id
        ends_BK &= places < count_B[:, None]
        ended_B = jnp.any(ends_BK, axis=1)
        count_B = jnp.where(ended_B, jnp.argmax(ends_BK, axis=1) + 1, count_B)
        index_BK = jnp.where(places < count_B[:, None], text.made_B[:, None] + places, self.total)
        rows_B1 = jnp.arange(len(tokens_BK))[:, None]
        own_BK = jnp.take_along_axis(jax.nn.log_softmax(logits_BKV.astype(jnp.float32)), tokens_BK[..., None], axis=2)[..., 0]
        return text.replace(
            tokens_BN=text.tokens_BN.at[rows_B1, index_BK].set(tokens_BK.astype(jnp.int32), mode='drop'),
            logprobs_BN=text.logprobs_BN.at[rows_B1, index_BK].set(own_BK, mode='drop'),
            made_B=text.made_B + count_B,
            ended_B=text.ended_B | ended_B,
        )

    def _keys(self, made_B: Array, use: Any) -> Array:
        """A key for each row, by how far the row is and what it is for: no row's draws depend on its neighbours."""
        return jax.vmap(lambda key, made: jax.random.fold_in(jax.random.fold_in(key, made), use))(self.keys_B, made_B)
