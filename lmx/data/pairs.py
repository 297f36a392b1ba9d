"""Pairs of texts as rows for an encoder-decoder: a pair to a row, or several whole ones side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lmx.data import examples, packing
from lmx.data.cache import TokenCache
from lmx.types import BadInput, Features


def rows(
    sources: TokenCache,
    targets: TokenCache,
    *,
    max_lengths: tuple[int, int],
    framed: Callable[[Any], np.ndarray],
    first_id: int,
    specials: int,
    too_long: str,
    row_length: int | None,
) -> Any:
    """A MapDataset of {source, source_segments; inputs, targets, weights} and, in shared rows, segments.

    Args:
      max_lengths: tokens of a source and of a target, with their special tokens.
      framed: ids -> ids with the `specials` tokens that stand around a text.
      first_id: the decoder's first input; a target that begins with it is not given it twice.
      too_long: 'drop' leaves longer pairs out, 'cut' cuts them at the end of the text.
      row_length: of rows that whole pairs share; None = a pair to a row of max_lengths.

    Raises:
      BadInput: no pair fits.
    """
    import grain

    lengths = np.stack([np.diff(sources.offsets), np.diff(targets.offsets)], axis=1) + specials
    kept = np.arange(len(lengths)) if too_long == 'cut' else np.flatnonzero((lengths <= max_lengths).all(axis=1))
    if not len(kept):
        raise BadInput(f'none of {len(lengths)} pairs fits max_source_length {max_lengths[0]} and max_target_length {max_lengths[1]}')

    def text(cache: TokenCache, row: int, limit: int) -> np.ndarray:
        ids = cache.tokens[cache.offsets[row] : cache.offsets[row + 1]]
        return framed(ids[: limit - specials])

    def example(row: int) -> Features:
        ids = text(targets, row, max_lengths[1])
        ids = ids[1:] if ids[0] == first_id and len(ids) > 1 else ids
        target = {'inputs': np.concatenate([[first_id], ids[:-1]]), 'targets': ids, 'weights': np.ones(len(ids), np.float32)}
        return {**source(text(sources, row, max_lengths[0])), **target}

    members = kept[:, None].tolist()
    if row_length is not None:
        bins = packing.best_fit(np.minimum(lengths[kept], max_lengths).max(axis=1), row_length)
        members = [kept[bins == row].tolist() for row in range(bins.max() + 1)]
    size = max_lengths if row_length is None else (row_length, row_length)
    dataset = grain.MapDataset.source(members).map(lambda row: _row([example(pair) for pair in row], *size, row_length is not None))
    return examples.named(dataset, sources.fingerprint + targets.fingerprint, *max_lengths, first_id, too_long, row_length)


def source(ids: np.ndarray) -> Features:
    """A source as the encoder reads it."""
    return {'source': ids, 'source_segments': np.ones(len(ids), np.int32)}


def _row(pairs: Sequence[Features], source_length: int, target_length: int, shared: bool) -> Features:
    """Pairs side by side, padded; in shared rows each is a segment of its own."""
    columns = {name: np.concatenate([pair[name] for pair in pairs]) for name in pairs[0]}
    if shared:
        for name, side in (('source_segments', 'source'), ('segments', 'targets')):
            columns[name] = np.repeat(np.arange(1, len(pairs) + 1), [len(pair[side]) for pair in pairs])
    lengths = {'source': source_length, 'source_segments': source_length}
    return {name: examples.padded(column, lengths.get(name, target_length)) for name, column in columns.items()}
