"""Spoilt text for a model to mend: masked tokens as in BERT (Devlin et al. 2018, arXiv:1810.04805), lost spans as in T5 (arXiv:1910.10683)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmx.types import BadInput


def mask_tokens(
    tokens: np.ndarray,
    *,
    rng: np.random.Generator,
    mask_id: int,
    is_special: np.ndarray,
    starts_word: np.ndarray | None = None,
    rate: float = 0.15,
    shares: tuple[float, float] = (0.8, 0.1),
) -> tuple[np.ndarray, np.ndarray]:
    """Picks tokens and hides most of them.

    Args:
      tokens: int32 [T].
      is_special: bool [V]; ids that are neither picked nor put in place of others.
      starts_word: bool [V]; with it whole words are picked. None: single tokens.
      rate: the share of the tokens, specials left out, that is picked: `count(n, rate)` of n; whole words may come out a little below,
        as a word that would go beyond is left alone.
      shares: of the picked ones, how many become `mask_id` and how many a random token; the others stay as they are.

    Returns:
      (the spoilt tokens int32 [T], the picked places int64, rising).
    """
    plain = np.flatnonzero(~is_special[tokens])
    picked = _picked(tokens, plain, rng, is_special, starts_word, count(len(plain), rate))
    out, draw = tokens.astype(np.int32, copy=True), rng.random(len(picked))
    others = np.flatnonzero(~is_special)
    out[picked[draw < shares[0]]] = mask_id
    swapped = picked[(draw >= shares[0]) & (draw < sum(shares))]
    out[swapped] = others[rng.integers(0, len(others), len(swapped))]
    return out, picked


def count(length: int, rate: float) -> int:
    """How many of `length` tokens are picked: the rounded share, at least 1."""
    return min(length, max(1, round(rate * length)))


def _picked(
    tokens: np.ndarray, plain: np.ndarray, rng: np.random.Generator, is_special: np.ndarray, starts_word: np.ndarray | None, budget: int
) -> np.ndarray:
    if starts_word is None or not len(plain):
        return np.sort(rng.permutation(plain)[:budget])
    begins = starts_word[tokens] | np.concatenate([[True], is_special[tokens[:-1]]])  # the rest of a word that a window cut off is one
    word = np.cumsum(begins)[plain]
    names, sizes = np.unique(word, return_counts=True)
    taken, room = [], budget
    for index in rng.permutation(len(names)):
        if sizes[index] <= room:
            taken.append(names[index])
            room -= sizes[index]
        if not room:
            break
    return plain[np.isin(word, taken)]


def lose_spans(
    tokens: np.ndarray, *, rng: np.random.Generator, sentinel_ids: Sequence[int], rate: float = 0.15, mean_length: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """Takes spans out of a text, as T5's pre-training does: 'Thank you <0> me to <1> week', '<0> for inviting <1> your party last'.

    The text begins with something kept and ends with something lost; how many tokens and spans are lost follows from the length alone,
    so that equal lengths give equal shapes (`span_counts`).

    Args:
      tokens: int32 [T], at least 2.
      sentinel_ids: what stands for the first, the second, ... span.
      rate: the share of the tokens that is lost.
      mean_length: tokens per span.

    Returns:
      (what is left, what is lost) int32, each with the sentinels; no end token.

    Raises:
      BadInput: fewer than 2 tokens, or more spans than sentinels.
    """
    lost, spans = span_counts(len(tokens), rate, mean_length)
    if spans > len(sentinel_ids):
        raise BadInput(
            f'{len(tokens)} tokens lose {spans} spans, the tokenizer has {len(sentinel_ids)} sentinels; shorten the text or add sentinels'
        )
    kept = _parts(len(tokens) - lost, spans, rng)
    ends = np.cumsum(np.stack([kept, _parts(lost, spans, rng)], axis=1).reshape(-1))
    pieces = np.split(np.asarray(tokens, np.int32), ends[:-1])
    marks = [np.array([sentinel], np.int32) for sentinel in sentinel_ids[:spans]]
    left = [part for kept, mark in zip(pieces[::2], marks) for part in (kept, mark)]
    gone = [part for mark, span in zip(marks, pieces[1::2]) for part in (mark, span)]
    return np.concatenate(left), np.concatenate(gone)


def span_counts(length: int, rate: float = 0.15, mean_length: float = 3.0) -> tuple[int, int]:
    """(tokens, spans) that `length` tokens lose; what is left has length - tokens + spans tokens, what is lost tokens + spans.

    Raises:
      BadInput: fewer than 2 tokens.
    """
    if length < 2:
        raise BadInput(f'a text of {length} tokens cannot lose spans; it needs at least 2')
    lost = min(max(round(length * rate), 1), length - 1)
    return lost, min(max(round(lost / mean_length), 1), length - lost)


def whole(room: int, rate: float, mean_length: float) -> int:
    """The most tokens of which so many are lost that `room` hold what is left, sentinels included.

    Raises:
      BadInput: no room.
    """
    if room < 2:
        raise BadInput(f'{room} tokens are no room for a text with a gap; raise max_length')
    length = 2
    while True:
        lost, spans = span_counts(length + 1, rate, mean_length)
        if length + 1 - lost + spans > room:
            return length
        length += 1


def _parts(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Sizes of `parts` parts of `total`, each at least 1, every way of cutting equally likely."""
    cuts = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
