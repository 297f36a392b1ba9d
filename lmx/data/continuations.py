"""Texts behind other texts, as ids: what is scored or trained, and where it stands in a row."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmx.data.examples import padded, size
from lmx.types import BadInput, Features


def windows(context: Any, continuation: Any, *, max_length: int) -> list[Features]:
    """The continuation in as few rows as it takes, as `scored` makes them. Where it takes several, each token is scored once, behind at
    least one token and as many as there is room for."""
    if len(continuation) <= max_length:
        return [scored(context, continuation, max_length=max_length)] if len(continuation) else []
    ids = np.concatenate([context[-1:], continuation])
    ends = [min(start + max_length, len(ids)) for start in range(1, len(ids), max_length)]
    starts = [1, *ends[:-1]]
    return [scored(ids[max(end - max_length - 1, 0) : start], ids[start:end], max_length=max_length) for start, end in zip(starts, ends)]


def trained(context: Any, continuation: Any, *, max_length: int) -> Features:
    """inputs, targets int32 [max_length] and weights float32 [max_length], 1 on the continuation; the beginning goes where it is too long."""
    ids = np.concatenate([context, continuation])[-(max_length + 1) :]
    weights = np.arange(1, len(ids)) >= len(ids) - len(continuation)
    columns = {'inputs': ids[:-1], 'targets': ids[1:], 'weights': weights.astype(np.float32)}
    return {name: padded(column, max_length) for name, column in columns.items()}


def split(tokenizer: Any, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a context, with the special tokens that the tokenizer puts before a text, and of its continuation, int32 each.

    Both are tokenized as one text, which is cut where the context by itself would end; blanks at the end of the context belong to the
    continuation. An empty context is the tokenizer's bos, else eos.

    Raises:
      BadInput: an empty context, and a tokenizer without either.
    """
    kept = context.rstrip()
    context, continuation = kept, context[len(kept) :] + continuation
    whole, begun = tokenizer.encode_batch([context + continuation, context])
    return opened(tokenizer, begun), whole[len(begun) :]


def opened(tokenizer: Any, ids: Any) -> np.ndarray:
    """The ids of a text behind the special tokens that the tokenizer puts before a text, int32; of an empty one, `first_id` where there are
    none."""
    marked = tokenizer.join([-1])[0]
    out = np.concatenate([marked[: int(np.flatnonzero(marked == -1)[0])], ids]).astype(np.int32)
    return out if len(out) else np.array([first_id(tokenizer)], np.int32)


def first_id(tokenizer: Any) -> int:
    """The token before a text: bos, else eos.

    Raises:
      BadInput: the tokenizer has neither.
    """
    if tokenizer.bos_id is None and tokenizer.eos_id is None:
        raise BadInput('the prompt is empty, and the tokenizer has neither bos nor eos to begin with; give a prompt')
    return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id


def scored(context: Any, continuation: Any, *, max_length: int) -> Features:
    """What `logprobs` reads of one row: inputs int32 [T], of which the beginning goes where it is too long; places and targets int32 [N]
    and weights float32 [N], the continuation. T and N take few values, so that few programs are compiled.

    Args:
      context, continuation: ids, at least one each; the continuation at most max_length.
    """
    ids = np.concatenate([context, continuation]).astype(np.int32)[-(max_length + 1) :]
    length, count = len(ids) - 1, len(continuation)
    room = size(count, max_length, least=8)
    return {
        'inputs': padded(ids[:-1], size(length, max_length)),
        'places': padded(np.arange(length - count, length), room),
        'targets': padded(ids[-count:], room),
        'weights': padded(np.ones(count, np.float32), room),
    }
