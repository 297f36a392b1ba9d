"""What is done once with a whole source and found again by its content: its tokens in one memory-mapped file, and checks of its records."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lmx.text.tokenizers import cache_dir, source_fingerprint, text_of
from lmx.types import BadInput, Record

BATCH = 4_000_000  # characters that are encoded at once


@dataclasses.dataclass(frozen=True)
class TokenCache:
    """tokens: uint16 or uint32 [total], memory-mapped, documents one after the other; offsets: int64 [documents + 1].

    fingerprint: a hash of both. Where the source lies and when its files were written is no part of it, so that a run goes on after its
    data was copied to, or prepared anew on, another machine.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    fingerprint: str


def token_cache(records: Any, tokenizer: Any, *, field: str = 'text') -> TokenCache:
    """The tokens of every record's `field`, from `$LMX_CACHE/tokens`, where they are made on first use.

    Args:
      records: MapDataset of records. Its content decides which cache it is, not its name.
      tokenizer: see `lmx.text`.

    Raises:
      BadInput: a record without the field, text that the tokenizer refuses, no text at all.
    """
    identity = hashlib.blake2b(f'{source_fingerprint(records, field)}/{tokenizer.fingerprint}/1'.encode(), digest_size=16).hexdigest()
    folder = cache_dir() / 'tokens' / identity
    if not folder.is_dir():
        _write(folder, records, tokenizer, field)
    offsets = np.load(folder / 'offsets.npy', mmap_mode='r')
    return TokenCache(np.load(folder / 'tokens.npy', mmap_mode='r'), offsets, (folder / 'fingerprint').read_text())


def checked(records: Any, check: Callable[[Record], Any], *settings: Any) -> None:
    """Calls `check` with every record, so that a bad one ends a run before its first step and not in the middle of it.

    Where the content of the records is known by a name, it is done once for these settings.

    Raises:
      BadInput: what `check` raised, and of which record.
    """
    from tqdm import tqdm

    origin = getattr(records, 'lmx_fingerprint', None)
    name = hashlib.blake2b(repr((origin, check.__qualname__, settings)).encode(), digest_size=16).hexdigest()
    marker = cache_dir() / 'checked' / name
    if origin is not None and marker.exists():
        return
    places = getattr(records, 'lmx_places', None)
    for index in tqdm(range(len(records)), desc='checking', unit='records', leave=False, mininterval=1, delay=1):
        try:
            check(records[index])
        except BadInput as error:
            raise BadInput(f'{places[index] if places else f"record {index + 1}"}: {error}') from None
    if origin is not None:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


def _batches(records: Any, field: str) -> Iterator[list[str]]:
    batch, size = [], 0
    for index in range(len(records)):
        batch.append(text_of(records[index], field))
        size += len(batch[-1]) + 100  # empty ones count as well
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write(folder: pathlib.Path, records: Any, tokenizer: Any, field: str) -> None:
    """Writes beside and renames: two processes may race, and a kill leaves nothing that looks finished."""
    from tqdm import tqdm

    part = folder.with_name(f'{folder.name}.{os.getpid()}.part')
    part.mkdir(parents=True, exist_ok=True)
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    lengths, digest = [0], hashlib.blake2b(digest_size=16)
    try:
        with open(part / 'raw', 'wb') as file, tqdm(total=len(records), desc='tokens', unit='records', leave=False, mininterval=1) as bar:
            for batch in _batches(records, field):
                for ids in tokenizer.encode_batch(batch):
                    data = ids.astype(dtype).tobytes()
                    file.write(data)
                    digest.update(data)
                    lengths.append(len(ids))
                bar.update(len(batch))
        if not sum(lengths):
            raise BadInput('the data holds no text; is the source empty?')
        offsets = np.cumsum(lengths, dtype=np.int64)
        digest.update(offsets.tobytes() + np.dtype(dtype).str.encode())
        (part / 'fingerprint').write_text(digest.hexdigest())
        np.save(part / 'offsets.npy', offsets)
        np.save(part / 'tokens.npy', np.memmap(part / 'raw', dtype, 'r'))
        (part / 'raw').unlink()
        if not folder.is_dir():
            part.rename(folder)
    except OSError:
        if not folder.is_dir():  # not the other process's rename, then
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
