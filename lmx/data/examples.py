"""One example per record: a text, or a pair of texts, padded to one length and made when it is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lmx.types import BadInput, Features


def padded(values: Any, length: int) -> np.ndarray:
    """The values, zeros behind them, int32 [length] (float32 from floats)."""
    values = np.asarray(values)
    out = np.zeros((length, *values.shape[1:]), np.float32 if values.dtype.kind == 'f' else np.int32)
    out[: len(values)] = values
    return out


def tokens_of(ids: np.ndarray, types: np.ndarray | None = None, *, length: int) -> Features:
    """tokens and segments (1, and 0 for padding), int32 [length]; with `types` these too."""
    out = {'tokens': padded(ids, length), 'segments': padded(np.ones(len(ids), np.int32), length)}
    return out if types is None else {**out, 'types': padded(types, length)}


def tells_apart(tokenizer: Any, num_types: int) -> bool:
    """Whether two texts in one input differ in type, by the tokenizer, and for a model of `num_types` types."""
    return num_types > 1 and bool(tokenizer.join([0], [0])[1].any())


def mapped(records: Any, function: Callable[[Any], Features], *settings: Any) -> Any:
    """The examples of a MapDataset of records; where its content is known by a name, so is theirs, from it and the settings."""
    return named(records.map(function), getattr(records, 'lmx_fingerprint', None), *settings)


def named(dataset: Any, origin: str | None, *settings: Any) -> Any:
    """Marks a dataset with what its content follows from, so that nobody has to read it all to compare it; None marks nothing."""
    if origin is not None:
        dataset.lmx_fingerprint = hashlib.blake2b(repr((origin, *settings)).encode(), digest_size=16).hexdigest()
    return dataset


def size(length: int, limit: int, least: int = 16) -> int:
    """The next power of two, at most `limit`: few shapes, so few compilations."""
    return min(limit, max(least, 1 << max(length - 1, 0).bit_length()))


def index_of(value: Any, labels: Sequence[str]) -> int:
    """The number of a label that is given by its name or number.

    Raises:
      BadInput: it is not among the labels.
    """
    if isinstance(value, (int, np.integer)) and 0 <= value < len(labels):
        return int(value)
    if value not in labels:
        raise BadInput(f'label {value!r} is not among the {len(labels)} labels {", ".join(map(str, labels[:20]))}; add it to task.labels')
    return list(labels).index(value)
