"""Windows of fixed length over cached tokens, as random access: which tokens window i holds is arithmetic or a plan, never a stream.

Every window is {'inputs' [T] int32, 'targets' [T] int32, 'weights' [T] float32}; every token of the text is a target exactly once in a pass.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmx import rng
from lmx.data.cache import TokenCache
from lmx.types import BadInput


class Windows:
    """A random-access source that can also fetch many rows at once: `rows(indices)` -> features with a leading axis.

    Index i of pass p over the data is p * len + i, as in Grain; a source may make something else of the same text in every pass.
    """

    def __init__(self, fingerprint: str):
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        raise NotImplementedError

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        return {name: array[0] for name, array in self.rows(np.array([int(index)])).items()}


def concatenated(cache: TokenCache, *, length: int, eos_id: int | None, stride: int | None = None) -> Any:
    """Documents run on, each behind a separator: eos + first + eos + second + ..., cut into windows of `length`.

    Args:
      eos_id: the separator; None puts nothing between documents, and the first token of all is then no target.
      stride: targets per window; less than `length` lets windows overlap, each re-reading length - stride tokens as context of weight 0.
        Windows that do not overlap are cut elsewhere in each pass but the first, the one at the text's end going on at its beginning.

    Raises:
      BadInput: a stride outside 1..length, or too little text for one target.
    """
    stride = length if stride is None else stride
    if not 1 <= stride <= length:
        raise BadInput(f'stride {stride} is not between 1 and max_length {length}')
    return _dataset(_Concatenated(cache, length, eos_id, stride))


class _Concatenated(Windows):
    def __init__(self, cache: TokenCache, length: int, eos_id: int | None, stride: int):
        super().__init__(f'concatenated/cut anew/{cache.fingerprint}/{length}/{eos_id}/{stride}')
        self.cache, self.length, self.eos_id, self.stride = cache, length, eos_id, stride
        self._shift = functools.lru_cache(self._drawn)
        separators = 0 if eos_id is None else len(cache.offsets) - 1
        # Position of every document's first token in the stream that has the separators in it.
        self.starts = cache.offsets[:-1] + (np.arange(1, len(cache.offsets)) if eos_id is not None else 0)
        self.total = int(cache.offsets[-1]) + separators
        if self.total < 2:
            raise BadInput(f'the data holds {self.total} tokens; at least 2 are needed')

    def __len__(self) -> int:
        return -(-(self.total - 1) // self.stride)

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        # Targets of window i are stream positions 1 + i stride ... ; its context reaches back length - stride further.
        passes, window = np.divmod(np.asarray(indices, np.int64), len(self))
        first = window * self.stride - (self.length - self.stride)
        if self.stride == self.length:
            first -= np.array([self._shift(number) for number in passes.tolist()], np.int64)
            place = (first[:, None] + np.arange(self.length)) % (len(self) * self.length)
        else:
            place = first[:, None] + np.arange(self.length)
        target = place + 1
        fresh = (np.arange(self.length) >= self.length - self.stride) & (target < self.total) & (target > 0)
        inputs, targets = (self._at(np.clip(each, 0, self.total - 1)) for each in (place, target))
        return {'inputs': inputs, 'targets': targets, 'weights': fresh.astype(np.float32)}

    def _drawn(self, number: int) -> int:
        """How many tokens earlier the windows of a pass begin."""
        return int(rng.numpy_rng(0, 'cut', number).integers(self.length)) if number else 0

    def _at(self, place: np.ndarray) -> np.ndarray:
        """The stream's tokens at these positions, int32."""
        if self.eos_id is None:
            return self.cache.tokens[place].astype(np.int32)
        document = np.searchsorted(self.starts - 1, place, side='right') - 1
        source = place - document - 1
        separator = place == self.starts[document] - 1
        tokens = self.cache.tokens[np.where(separator, 0, source)].astype(np.int32)
        return np.where(separator, np.int32(self.eos_id), tokens)


def streams(cache: TokenCache, *, length: int, eos_id: int | None) -> Any:
    """`concatenated`, to be read in order: row b of a batch goes on where row b of the batch before ended.

    For models that carry recurrent state from window to window (truncated backpropagation; Merity et al. 2017, arXiv:1708.02182).
    """
    dataset = concatenated(cache, length=length, eos_id=eos_id)
    dataset.lmx_streams = True  # what the pipeline orders batches by
    dataset.lmx_fingerprint = f'streams/{dataset.lmx_fingerprint}'
    return dataset


def packed(cache: TokenCache, *, length: int, eos_id: int | None) -> Any:
    """Whole documents side by side in windows, each a segment of its own that attends to itself alone; adds 'segments' and 'positions'.

    Documents are placed best-fit by decreasing length. One that is longer than a window is cut; a piece's first input is the token
    before it. With eos_id a document's inputs begin and its targets end with the separator.

    Adds 'segments' [T] int32 (1, 2, ... by document; 0 = padding) and 'positions' [T] int32 (0, 1, ... in every segment).
    """
    return _dataset(_Packed(cache, length, eos_id))


class _Packed(Windows):
    def __init__(self, cache: TokenCache, length: int, eos_id: int | None):
        super().__init__(f'packed/{cache.fingerprint}/{length}/{eos_id}')
        self.cache, self.length, self.eos_id = cache, length, eos_id
        pieces = _pieces(cache.offsets, length, eos_id is not None)
        if not len(pieces):
            raise BadInput('the data holds no document of at least two tokens')
        bins = best_fit(pieces[:, 1], length)
        order = np.argsort(bins, kind='stable')
        self.pieces = pieces[order]
        self.bounds = np.searchsorted(bins[order], np.arange(bins.max() + 2))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        indices = np.asarray(indices, np.int64) % len(self)
        counts = self.bounds[indices + 1] - self.bounds[indices]
        start, size, document = self.pieces[np.repeat(self.bounds[indices], counts) + _ramp(counts)].T
        position = _ramp(size)
        # Place in `tokens` of each input; with separators, place -1 and last of a document stand for them.
        place = np.repeat(self.cache.offsets[document] + start - (self.eos_id is not None), size) + position
        segment = np.repeat(_ramp(counts) + 1, size)
        filled = np.add.reduceat(size, np.cumsum(counts) - counts)
        flat = np.repeat(np.arange(len(indices)) * self.length, filled) + _ramp(filled)
        document = np.repeat(document, size)
        values = (self._at(place, document), self._at(place + 1, document), segment, position)
        out = {name: np.zeros((len(indices), self.length), np.int32) for name in ('inputs', 'targets', 'segments', 'positions')}
        for array, value in zip(out.values(), values):
            array.reshape(-1)[flat] = value
        return {**out, 'weights': (out['segments'] > 0).astype(np.float32)}

    def _at(self, place: np.ndarray, document: np.ndarray) -> np.ndarray:
        """The tokens at these places; the separator where a place is outside its document."""
        if self.eos_id is None:
            return self.cache.tokens[place]
        inside = (place >= self.cache.offsets[document]) & (place < self.cache.offsets[document + 1])
        tokens = self.cache.tokens[np.clip(place, 0, len(self.cache.tokens) - 1)]
        return np.where(inside, tokens.astype(np.int32), np.int32(self.eos_id))


def _ramp(counts: np.ndarray) -> np.ndarray:
    """0 .. n-1 for each n, one after the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _pieces(offsets: np.ndarray, length: int, separated: bool) -> np.ndarray:
    """[pieces, 3]: (first input within the document's stream, targets, document); a stream of n tokens has n - 1 targets."""
    targets = np.diff(offsets) + (1 if separated else -1)
    out = []
    for document, count in enumerate(targets.tolist()):
        out.extend((start, min(length, count - start), document) for start in range(0, max(count, 0), length))
    return np.array(out, np.int64).reshape(-1, 3)


def best_fit(sizes: Sequence[int] | np.ndarray, room: int) -> np.ndarray:
    """Best fit by decreasing size: the window that each item goes to, int64 [items]. Deterministic; items larger than `room` are an error."""
    sizes = np.asarray(sizes)
    if len(sizes) and sizes.max() > room:
        raise BadInput(f'an item of {sizes.max()} tokens does not fit into {room}')
    free: list[list[int]] = [[] for _ in range(room + 1)]  # windows by the room that is left in them
    some = 0  # bit r is set where free[r] has a window: the tightest fit is one shift away, however large the room
    out = np.empty(len(sizes), np.int64)
    count = 0
    for item in np.argsort(-sizes, kind='stable'):
        size = int(sizes[item])
        fitting = some >> size
        if fitting:
            left = size + (fitting & -fitting).bit_length() - 1
            window = free[left].pop()
            some ^= (not free[left]) << left
        else:
            window, left, count = count, room, count + 1
        free[left - size].append(window)
        some |= 1 << (left - size)
        out[item] = window
    return out


def _dataset(windows: Windows) -> Any:
    import grain

    dataset = grain.MapDataset.source(windows)
    dataset.lmx_windows = windows  # the pipeline fetches whole batches through it
    dataset.lmx_fingerprint = windows.fingerprint
    return dataset
