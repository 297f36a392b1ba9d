"""What a text may not be: rules over the next token's scores, for sampling and for beam search alike.

A rule is a pure function (scores [R, V] float32, tokens [R, N] int32, count) -> scores, -inf where a token is ruled out. `tokens` are those
made so far, `count` in every row that has not ended. Where a rule leaves no token, the row's score
is -inf. All is as in transformers, but that the prompt and a decoder's start token are no part of what `no_repeat` and `banned` look at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmx.types import Array, BadInput

Rule = Callable[[Array, Array, Array], Array]


def applied(rules: Sequence[Rule], scores_RV: Array, tokens_RN: Array, count: Array) -> Array:
    """The scores after all rules, in their order."""
    for rule in rules:
        scores_RV = rule(scores_RV, tokens_RN, count)
    return scores_RV


def banned(*, words: Sequence[Sequence[int]]) -> Rule:
    """No text holds any of these sequences of ids.

    Raises:
      BadInput: an empty sequence.
    """
    if not all(len(word) for word in words):
        raise BadInput('a banned word has no tokens; leave it out')

    def rule(scores_RV: Array, tokens_RN: Array, count: Array) -> Array:
        for *before, last in words:
            here_R = count >= len(before)
            if before:
                here_R &= jnp.all(_last(tokens_RN, count, len(before)) == jnp.array(before), axis=1)
            scores_RV = jnp.where(here_R[..., None] & (jnp.arange(scores_RV.shape[1]) == last), -jnp.inf, scores_RV)
        return scores_RV

    return rule


def forced(*, tokens: Sequence[int]) -> Rule:
    """Every text begins with these ids, which cost it nothing, as a translation into a language that the first token names."""
    ids = np.array(tokens, np.int32)

    def rule(scores_RV: Array, tokens_RN: Array, count: Array) -> Array:
        if not len(ids):
            return scores_RV
        wanted = jnp.asarray(ids)[jnp.minimum(count, len(ids) - 1)]
        return jnp.where(count >= len(ids), scores_RV, _only(wanted, scores_RV))

    return rule


def forced_end(*, eos_id: int) -> Rule:
    """A text that reaches its last place ends there with the end token, which costs it nothing."""

    def rule(scores_RV: Array, tokens_RN: Array, count: Array) -> Array:
        at_end = count == tokens_RN.shape[1] - 1
        return jnp.where(at_end, _only(eos_id, scores_RV), scores_RV)

    return rule


def min_tokens(*, count: int, eos_id: int) -> Rule:
    """No text ends before it has `count` tokens, the end token not counted."""
    least = count

    def rule(scores_RV: Array, tokens_RN: Array, count: Array) -> Array:
        return jnp.where((count < least) & (jnp.arange(scores_RV.shape[1]) == eos_id), -jnp.inf, scores_RV)

    return rule


def no_repeat(*, size: int) -> Rule:
    """No `size` tokens in a row occur twice in a text (Paulus et al. 2017, arXiv:1705.04304).

    Raises:
      BadInput: a size below 1.
    """
    if size < 1:
        raise BadInput(f'no_repeat size {size} is below 1')

    def rule(scores_RV: Array, tokens_RN: Array, count: Array) -> Array:
        places = tokens_RN.shape[1] - size + 1
        if places < 1:
            return scores_RV
        latest_R1m = _last(tokens_RN, count, size - 1)[:, None]
        window = jnp.arange(places)[:, None] + jnp.arange(size)
        seen_RPn = tokens_RN[:, window]
        met_RP = jnp.all(seen_RPn[..., :-1] == latest_R1m, axis=-1) & (window[:, -1] < count) & (count >= size - 1)
        rows = jnp.arange(len(tokens_RN))[:, None]
        return scores_RV.at[rows, seen_RPn[..., -1]].min(jnp.where(met_RP, -jnp.inf, jnp.inf))

    return rule


def of_texts(
    tokenizer: Any, end_id: int | None, *, banned_texts: Sequence[str] = (), forced_text: str = '', least: int = 0, no_repeat_size: int = 0
) -> tuple[Rule, ...]:
    """The rules that texts and numbers say; none for those at their defaults.

    Args:
      banned_texts: banned as they are, and with a blank before them, where the tokenizer tells the two apart.
      forced_text: what every text begins with.
      least: tokens before the end token may come.
      no_repeat_size: see `no_repeat`; 0 = none.

    Raises:
      BadInput: a text without tokens, a least length without an end token.
    """
    out: list[Rule] = []
    if forced_text:
        out.append(forced(tokens=tokenizer.encode(forced_text).tolist()))
    if banned_texts:
        forms = {tuple(tokenizer.encode(before + text).tolist()) for text in banned_texts for before in ('', ' ')}
        out.append(banned(words=sorted(forms)))
    if least:
        if end_id is None:
            raise BadInput(f'min_tokens {least} needs a tokenizer with an end token; give 0')
        out.append(min_tokens(count=least, eos_id=end_id))
    if no_repeat_size:
        out.append(no_repeat(size=no_repeat_size))
    return tuple(out)


def _only(token: Array | int, scores_RV: Array) -> Array:
    return jnp.where(jnp.arange(scores_RV.shape[1]) == token, jnp.zeros_like(scores_RV), -jnp.inf)


def _last(tokens_RN: Array, count: Array, size: int) -> Array:
    """The `size` tokens before place `count`, [R, size]; anything where there are fewer."""
    return jax.lax.dynamic_slice_in_dim(tokens_RN, jnp.maximum(count - size, 0), size, axis=1)
