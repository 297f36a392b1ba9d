"""Conversations as rows: several whole ones side by side, with the answers weighed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from lmx.data import examples, packing
from lmx.text.chat import messages_of
from lmx.types import BadInput, Features


def rows(records: Any, encode: Callable[[Any], tuple[np.ndarray, np.ndarray]], length: int) -> Any:
    """Rows of `length` that hold as many whole conversations as fit, with segments and positions.

    Args:
      encode: messages -> (ids, whether each is part of an answer).

    Raises:
      BadInput: not one fits.
    """
    import grain
    from tqdm import tqdm

    made = [encode(messages_of(records[i])) for i in tqdm(range(len(records)), desc='conversations', leave=False, mininterval=1)]
    kept = [(ids, answer) for ids, answer in made if len(ids) - 1 <= length]
    if not kept:
        shortest = min(len(ids) for ids, _ in made)
        raise BadInput(f'none of {len(made)} conversations fits max_length {length}; the shortest has {shortest} tokens')
    digest = hashlib.blake2b(repr((length, len(made))).encode(), digest_size=16)
    for ids, answer in kept:
        digest.update(ids.tobytes() + answer.tobytes())
    bins = packing.best_fit([len(ids) - 1 for ids, _ in kept], length)
    members = [np.flatnonzero(bins == row).tolist() for row in range(bins.max() + 1)]

    def example(row: list[int]) -> Features:
        parts = [kept[index] for index in row]
        sizes = [len(ids) - 1 for ids, _ in parts]
        columns = {
            'inputs': [ids[:-1] for ids, _ in parts],
            'targets': [ids[1:] for ids, _ in parts],
            'weights': [answer[1:].astype(np.float32) for _, answer in parts],
            'segments': [np.full(size, number, np.int32) for number, size in enumerate(sizes, 1)],
            'positions': [np.arange(size, dtype=np.int32) for size in sizes],
        }
        return {name: examples.padded(np.concatenate(column), length) for name, column in columns.items()}

    return examples.named(grain.MapDataset.source(members).map(example), digest.hexdigest())
