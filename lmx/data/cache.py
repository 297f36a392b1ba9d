"""Tokens of a whole source in one memory-mapped file, made once and found again by content."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from lmx.text.tokenizers import cache_dir, source_fingerprint, text_of
from lmx.types import BadInput

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
