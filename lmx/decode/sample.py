"""Sampling text from a step callback: one compiled loop, a cache of fixed size, and for every row randomness of its own.

`step(tokens_BT, cache, segments) -> (logits_BTV, cache)` reads tokens (segments 0 = padding, which leaves no trace in the cache).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental import io_callback

from lmx.decode.rules import Rule, applied
from lmx.types import Array, BadInput

Step = Callable[..., tuple[Array, Any]]
Emit = Callable[[Array], Array]


class Sampling(struct.PyTreeNode):
    """How the next token is drawn. Every number may be traced; the defaults, given statically, leave no trace in the program.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: keeps the k likeliest tokens; 0 keeps all.
      top_p: keeps the smallest set of likeliest tokens that holds this probability (Holtzman et al. 2019, arXiv:1904.09751).
      min_p: keeps tokens with at least this share of the likeliest one's probability (Nguyen et al. 2024, arXiv:2407.01082).
      repetition_penalty: divides positive logits of tokens already seen, multiplies negative ones (Keskar et al. 2019, arXiv:1909.05858).
    """

    temperature: Any = 1.0
    top_k: Any = 0
    top_p: Any = 1.0
    min_p: Any = 0.0
    repetition_penalty: Any = 1.0


def filter_logits(logits_BV: Array, sampling: Sampling, seen_BV: Array | None = None) -> Array:
    """Logits to draw from, float32 [B, V], -inf where a token is ruled out.

    The order is the one of transformers: repetition penalty, temperature, top-k, top-p, min-p. Tokens with exactly the logit of the
    last one kept are kept too.

    Args:
      seen_BV: bool, the tokens that the repetition penalty is for.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    if seen_BV is not None and not _is(sampling.repetition_penalty, 1):
        penalty = sampling.repetition_penalty
        logits_BV = jnp.where(seen_BV, jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty), logits_BV)
    if _is(sampling.temperature, 0):
        return _likeliest(logits_BV)
    greedy = sampling.temperature == 0
    out_BV = logits_BV / jnp.where(greedy, 1.0, sampling.temperature)
    if not _is(sampling.top_k, 0):
        out_BV = _top_k(out_BV, sampling.top_k)
    if not _is(sampling.top_p, 1):
        out_BV = _top_p(out_BV, sampling.top_p)
    if not _is(sampling.min_p, 0):
        floor = jnp.max(out_BV, axis=-1, keepdims=True) + jnp.log(sampling.min_p)
        out_BV = jnp.where(out_BV < floor, -jnp.inf, out_BV)
    return out_BV if isinstance(greedy, bool) else jnp.where(greedy, _likeliest(logits_BV), out_BV)


def _is(value: Any, number: float) -> bool:
    """Whether a number is statically equal; a traced one never is."""
    return isinstance(value, (int, float)) and value == number


def _likeliest(logits_BV: Array) -> Array:
    best_B1 = jnp.argmax(logits_BV, axis=-1, keepdims=True)
    return jnp.where(jnp.arange(logits_BV.shape[-1]) == best_B1, logits_BV, -jnp.inf)


def _top_k(logits_BV: Array, k: Any) -> Array:
    vocab = logits_BV.shape[-1]
    if isinstance(k, int):
        last_B1 = jax.lax.top_k(logits_BV, min(k, vocab))[0][:, -1:]
    else:
        index = jnp.where(k == 0, 0, jnp.maximum(vocab - k, 0))
        last_B1 = jnp.take(jnp.sort(logits_BV, axis=-1), index[None], axis=-1)
    return jnp.where(logits_BV < last_B1, -jnp.inf, logits_BV)


def _top_p(logits_BV: Array, p: Any) -> Array:
    rising_BV = jnp.sort(logits_BV, axis=-1)
    out_BV = jnp.cumsum(jax.nn.softmax(rising_BV, axis=-1), axis=-1) <= 1 - p
    last_B1 = jnp.min(jnp.where(out_BV.at[:, -1].set(False), jnp.inf, rising_BV), axis=-1, keepdims=True)
    return jnp.where(logits_BV < last_B1, -jnp.inf, logits_BV)


class _Text(struct.PyTreeNode):
    """What has been made so far; `count` tokens in every row that is not done."""

    tokens_BN: Array
    logprobs_BN: Array
    length_B: Array
    done_B: Array
    seen_BV: Array | None
    count: Array


def generate(
    step: Step,
    cache: Any,
    prompt_BT: Array,
    lengths_B: Array,
    key: Array,
    *,
    max_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    eos_id: int | None = None,
    emit: Emit | None = None,
    rules: Sequence[Rule] = (),
) -> dict[str, Array]:
    """Continues every row of a batch of prompts; pure, to be called inside jit.

    Args:
      cache: empty, with room for the prompt and max_tokens - 1 more.
      prompt_BT: int32, padded on the right to a common T; `lengths_B` says how many tokens are real, at least 1.
      key: one key, from which row i takes fold_in(key, i); or keys [B], one per row. What a row draws depends on its key, not on its
        neighbours.
      max_tokens: N, new tokens per row at most.
      eos_id: the token that ends a row.
      emit: a host function that is called with each step's tokens [B], in order, and answers bool [B]: rows that end here. Rows that
        have ended get padding.
      rules: see `lmx.decode.rules`; they come before temperature and filters.

    Returns:
      tokens int32 [B, N], eos_id (or 0) behind the end; lengths int32 [B], tokens before the end, the eos not counted; logprobs
      float32 [B, N], under the model itself, before temperature and filters.

    Raises:
      BadInput: a cache that is too small.
    """
    _check_room(cache, prompt_BT.shape[1] + max_tokens - 1)
    draw = _Drawer(step, sampling, row_keys(key, prompt_BT.shape[0]), eos_id, emit, rules)
    return _result(draw.round(cache, prompt_BT, lengths_B, None, max_tokens))


def continue_text(
    step: Step,
    empty_cache: Callable[[int, int], Any],
    prompt_BT: Array,
    lengths_B: Array,
    key: Array,
    *,
    context: int,
    max_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    eos_id: int | None = None,
    emit: Emit | None = None,
    rules: Sequence[Rule] = (),
) -> dict[str, Array]:
    """As `generate`, and on beyond the model's context: a row that fills it goes on from the last half of it, read afresh.

    Args:
      empty_cache: (batch_size, max_length) -> an empty cache.
      context: tokens that the model reads at most.

    Raises:
      BadInput: a prompt that is longer than the context.
    """
    batch, width = prompt_BT.shape
    if width > context:
        raise BadInput(f'the prompt has {width} tokens, the model reads at most {context}; shorten it')
    draw = _Drawer(step, sampling, row_keys(key, batch), eos_id, emit, rules)
    slots = min(context, width + max_tokens - 1)  # the last token is drawn and not read
    text = draw.round(empty_cache(batch, slots), prompt_BT, lengths_B, None, max_tokens, context)

    def again(text: _Text) -> _Text:
        window_BT, window_lengths_B = _window(prompt_BT, lengths_B, text, context)
        return draw.round(empty_cache(batch, context), window_BT, window_lengths_B, text, max_tokens, context)

    if width + max_tokens - 1 > context:
        text = jax.lax.while_loop(lambda text: (text.count < max_tokens) & ~jnp.all(text.done_B), again, text)
    return _result(text)


def _window(prompt_BT: Array, lengths_B: Array, text: _Text, context: int) -> tuple[Array, Array]:
    """The part of each row that is read next, [B, context], and its length.

    It begins at a multiple of half the context that follows from the row's length alone. So when one row of a batch is full, the
    others read again what they had read, and what a row says does not depend on its neighbours.
    """
    hop = max(context // 2, 1)
    total_B = lengths_B + text.count
    start_B = -(-jnp.maximum(total_B - context, 0) // hop) * hop
    place_BT = start_B[:, None] + jnp.arange(context)
    behind_BT = place_BT - lengths_B[:, None]
    prompt = jnp.take_along_axis(prompt_BT, jnp.clip(place_BT, 0, prompt_BT.shape[1] - 1), axis=1)
    made = jnp.take_along_axis(text.tokens_BN, jnp.clip(behind_BT, 0, text.tokens_BN.shape[1] - 1), axis=1)
    return jnp.where(behind_BT < 0, prompt, made), total_B - start_B


class _Drawer:
    """What stays the same from round to round: reads a prompt, then draws token after token."""

    def __init__(self, step: Step, sampling: Sampling, keys_B: Array, eos_id: int | None, emit: Emit | None, rules: Sequence[Rule] = ()):
        self.rules = rules
        self.step, self.sampling, self.keys_B, self.eos_id, self.emit = step, sampling, keys_B, eos_id, emit

    def round(self, cache: Any, prompt_BT: Array, lengths_B: Array, text: _Text | None, total: int, context: int | None = None) -> _Text:
        """Reads the prompts into an empty cache and draws until there are `total` tokens or a row has read `context`; text None begins."""
        segments_BT = (jnp.arange(prompt_BT.shape[1]) < lengths_B[:, None]).astype(jnp.int32)
        logits_BTV, cache = self.step(prompt_BT, cache, segments_BT)
        logits_BV = jnp.take_along_axis(logits_BTV, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
        text = self._begin(prompt_BT, segments_BT, logits_BV.shape[-1], total) if text is None else text
        end = jnp.asarray(total)
        if context is not None:
            room_B = jnp.where(text.done_B, total, context - lengths_B + 1)
            end = jnp.minimum(text.count + jnp.min(room_B), total)
        text = self._draw(logits_BV, text)

        def goes_on(carry: tuple[Any, _Text]) -> Array:
            return (carry[1].count < end) & ~jnp.all(carry[1].done_B)

        def one(carry: tuple[Any, _Text]) -> tuple[Any, _Text]:
            cache, text = carry
            last_B1 = jax.lax.dynamic_slice_in_dim(text.tokens_BN, text.count - 1, 1, axis=1)
            logits_B1V, cache = self.step(last_B1, cache, (~text.done_B)[:, None].astype(jnp.int32))
            return cache, self._draw(logits_B1V[:, 0], text)

        return jax.lax.while_loop(goes_on, one, (cache, text))[1]

    def _begin(self, prompt_BT: Array, segments_BT: Array, vocab_size: int, total: int) -> _Text:
        batch = prompt_BT.shape[0]
        seen = None
        if not _is(self.sampling.repetition_penalty, 1):
            # max, so that padding, which shares an id with some token, cannot unsee it
            seen = jnp.zeros((batch, vocab_size), bool).at[jnp.arange(batch)[:, None], prompt_BT].max(segments_BT != 0)
        return _Text(
            tokens_BN=jnp.full((batch, total), 0 if self.eos_id is None else self.eos_id, jnp.int32),
            logprobs_BN=jnp.zeros((batch, total), jnp.float32),
            length_B=jnp.zeros((batch,), jnp.int32),
            done_B=jnp.zeros((batch,), bool),
            seen_BV=seen,
            count=jnp.zeros((), jnp.int32),
        )

    def _draw(self, logits_BV: Array, text: _Text) -> _Text:
        keys_B = jax.vmap(jax.random.fold_in, (0, None))(self.keys_B, text.count)
        allowed_BV = applied(self.rules, logits_BV.astype(jnp.float32), text.tokens_BN, text.count)
        drawn_B = jax.vmap(jax.random.categorical)(keys_B, filter_logits(allowed_BV, self.sampling, text.seen_BV))
        token_B = jnp.where(text.done_B, 0 if self.eos_id is None else self.eos_id, drawn_B).astype(jnp.int32)
        logprob_B = jnp.take_along_axis(jax.nn.log_softmax(logits_BV.astype(jnp.float32)), token_B[:, None], axis=1)[:, 0]
        ended_B = text.done_B if self.eos_id is None else text.done_B | (token_B == self.eos_id)
        done_B = ended_B
        if self.emit is not None:
            done_B |= io_callback(self.emit, jax.ShapeDtypeStruct(done_B.shape, jnp.bool_), token_B, ordered=True)
        return text.replace(
            tokens_BN=jax.lax.dynamic_update_slice_in_dim(text.tokens_BN, token_B[:, None], text.count, axis=1),
            logprobs_BN=jax.lax.dynamic_update_slice_in_dim(
                text.logprobs_BN, jnp.where(text.done_B, 0.0, logprob_B)[:, None], text.count, axis=1
            ),
            length_B=text.length_B + ~ended_B,
            done_B=done_B,
            seen_BV=None if text.seen_BV is None else text.seen_BV.at[jnp.arange(len(token_B)), token_B].set(True),
            count=text.count + 1,
        )


def row_keys(key: Array, batch: int) -> Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch)) if key.ndim == 0 else key


def _check_room(cache: Any, needed: int) -> None:
    room = getattr(cache, 'max_length', needed)  # a recurrent state has no limit
    if room < needed:
        raise BadInput(f'the cache has {room} slots, prompt and new tokens need {needed}; make it larger or lower max_tokens')


def _result(text: _Text) -> dict[str, Array]:
    return {'tokens': text.tokens_BN, 'lengths': text.length_B, 'logprobs': text.logprobs_BN}
