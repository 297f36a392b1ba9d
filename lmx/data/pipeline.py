"""Training data is random access: `batch(step)` is a function of the seed and the step, on any number of processes.

Shuffling is a permutation per epoch, computed by index; a run that resumes at step N computes batch N, and nothing before it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from lmx import rng
from lmx.types import BadInput

T = TypeVar('T')
Rows = np.ndarray | slice | None


class Batches:
    """step -> batch, int from 0; endless, since every epoch has its own order. Batches run on across epochs, and nothing is dropped.

    Example i of epoch e is asked for by e * len + i: what is cut, hidden or drawn by its index is so anew in every epoch.
    """

    def __init__(self, features: Any, batch_size: int, seed: int, rows: Rows = None):
        if not len(features):
            raise BadInput('the training data holds no examples')
        self.features, self.batch_size, self.seed = features, batch_size, seed
        self.rows = np.arange(batch_size)[rows if rows is not None else slice(None)]
        self._order = functools.lru_cache(maxsize=2)(self._permutation)
        if in_streams(features) and batch_size > len(features):
            raise BadInput(f'batch_size {batch_size} is more than the {len(features)} windows of the text; lower it')

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the examples, their order and the batch size: what a checkpoint compares before it goes on."""
        return f'{identity(self.features)}/{self.batch_size}/{self.seed}'

    def epoch(self, step: int) -> float:
        """Passes over the data before this step."""
        return step * self.batch_size / len(self.features)

    def indices(self, step: int) -> np.ndarray:
        """The examples of the rows that this process holds, int64 from 0 to epochs x examples."""
        if in_streams(self.features):
            # Evenly spaced starts, then round and round: a row goes on through its neighbours' parts of the text, and nothing is left out.
            return (self.rows * len(self.features) // self.batch_size + step) % len(self.features)
        place = step * self.batch_size + self.rows
        epochs, within = np.divmod(place, len(self.features))
        out = np.empty(len(place), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            out[here] = self._order(int(epoch))[within[here]] + epoch * len(self.features)
        return out

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        return fetch(self.features, self.indices(step))

    def _permutation(self, epoch: int) -> np.ndarray:
        return rng.numpy_rng(self.seed, 'shuffle', epoch).permutation(len(self.features))


def train_batches(features: Any, *, batch_size: int, seed: int, rows: Rows = None) -> Batches:
    """Shuffled batches of a MapDataset of features, without end.

    Args:
      rows: which of the global rows 0..batch_size-1 this process supplies; None = all.

    Raises:
      BadInput: no examples.
    """
    return Batches(features, batch_size, seed, rows)


class EvalBatches(Sequence[dict[str, np.ndarray]]):
    """The examples in order, each exactly once; the last batch is filled with copies whose 'weights' are 0."""

    def __init__(self, features: Any, batch_size: int, rows: Rows = None):
        if not len(features):
            raise BadInput('the evaluation data holds no examples')
        self.features, self.batch_size = features, batch_size
        self.rows = np.arange(batch_size)[rows if rows is not None else slice(None)]

    def __len__(self) -> int:
        return -(-len(self.features) // self.batch_size)

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place, end = index * self.batch_size + self.rows, np.full(len(self.rows), len(self.features))
        if in_streams(self.features):
            place, end = (np.minimum(row * len(self), len(self.features)) for row in (self.rows, self.rows + 1))
            place = place + index
        batch = fetch(self.features, np.minimum(place, len(self.features) - 1))
        real = (place < end).reshape(-1, *(1,) * (batch['weights'].ndim - 1))
        return {**batch, 'weights': batch['weights'] * real.astype(np.float32)}


def eval_batches(features: Any, *, batch_size: int, rows: Rows = None) -> EvalBatches:
    """See `EvalBatches`.

    Raises:
      BadInput: no examples.
    """
    return EvalBatches(features, batch_size, rows)


def in_streams(features: Any) -> bool:
    """Whether row b of a batch goes on where row b of the batch before ended; see `lmx.data.packing.streams`."""
    return getattr(features, 'lmx_streams', False)


def fetch(features: Any, indices: np.ndarray) -> dict[str, np.ndarray]:
    """These examples as one batch: in one gather where the dataset is windows over cached tokens, else one by one."""
    windows = getattr(features, 'lmx_windows', None)
    if windows is not None:
        return windows.rows(indices)
    examples = [features[int(index)] for index in indices]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def identity(features: Any) -> str:
    """A hash of all examples, or the cheaper identity that the dataset knows."""
    known = getattr(features, 'lmx_fingerprint', None)
    if known is not None:
        return str(known)
    digest = hashlib.blake2b(digest_size=16)
    for index in range(len(features)):
        digest.update(_rows_bytes({name: np.asarray(value)[None] for name, value in features[index].items()}))
    with contextlib.suppress(AttributeError):  # trainings that share the examples need not hash them again
        features.lmx_fingerprint = digest.hexdigest()
    return digest.hexdigest()


class prefetch(Generic[T], Iterator[T]):
    """get(start), get(start + 1), ..., get(stop - 1), computed `depth` ahead in a thread. A context manager: leaving it ends the thread.

    An error in `get` comes out of `next` at its place.
    """

    def __init__(self, get: Callable[[int], T], start: int, stop: int, depth: int = 2):
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._left = max(stop - start, 0)
        self._thread = threading.Thread(target=self._fill, args=(get, start, stop), daemon=True, name='lmx-prefetch')
        self._thread.start()

    def _fill(self, get: Callable[[int], T], start: int, stop: int) -> None:
        for index in range(start, stop):
            try:
                item: tuple[T | None, BaseException | None] = (get(index), None)
            except BaseException as error:
                item = (None, error)
            while not self._closed.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if self._closed.is_set() or item[1] is not None:
                return

    def __next__(self) -> T:
        if self._left <= 0:
            raise StopIteration
        self._left -= 1
        if self._closed.is_set():
            raise StopIteration
        value, error = self._queue.get()
        if error is not None:
            self._left = 0
            raise error
        return value  # type: ignore[return-value]

    def __enter__(self) -> prefetch[T]:
        return self

    def __exit__(self, *_: Any) -> None:
        self._closed.set()
        self._thread.join(timeout=10)


def batch_hash(batch: Mapping[str, np.ndarray], rows: Rows = None) -> str:
    """16 hex digits: the sum, modulo 2^64, of a hash per (global row, bytes of the row). The sums of several processes add up.

    Args:
      rows: the global rows that the batch's rows are; None = 0, 1, 2, ...
    """
    count = len(next(iter(batch.values())))
    numbers = np.arange(count) if rows is None else np.arange(count)[rows] if isinstance(rows, slice) else np.asarray(rows)
    total = 0
    for data, number in zip(_rows_bytes(batch), numbers.tolist()):
        total += int.from_bytes(hashlib.blake2b(data, digest_size=8, salt=number.to_bytes(8, 'little')).digest(), 'little')
    return f'{total % (1 << 64):016x}'


def _rows_bytes(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """uint8 [rows, bytes]: names and values, the names in order."""
    parts = []
    for name in sorted(batch):
        array = np.ascontiguousarray(batch[name])
        label = np.frombuffer(name.encode(), np.uint8)
        parts += [np.broadcast_to(label, (len(array), len(label))), array.reshape(len(array), -1).view(np.uint8)]
    return np.concatenate(parts, axis=1)
