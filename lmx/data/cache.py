"""Tokens of a whole source in one memory-mapped file, made once and found again by content."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from lmx.text.tokenizers import cache_dir, source_fingerprint, text_of
from lmx.types import BadInput

BATCH = 1000


@dataclasses.dataclass(frozen=True)
class TokenCache:
    """tokens: uint16 or uint32 [total], memory-mapped, documents one after the other; offsets: int64 [documents + 1]; fingerprint: of both."""

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
    identity = hashlib.blake2b(f'{source_fingerprint(records, field)}/{tokenizer.fingerprint}'.encode(), digest_size=16).hexdigest()
    folder = cache_dir() / 'tokens' / identity
    if not folder.is_dir():
        _write(folder, records, tokenizer, field)
    offsets = np.load(folder / 'offsets.npy', mmap_mode='r')
    return TokenCache(np.load(folder / 'tokens.npy', mmap_mode='r'), offsets, identity)


def _write(folder: pathlib.Path, records: Any, tokenizer: Any, field: str) -> None:
    """Writes beside and renames: two processes may race, and a kill leaves nothing that looks finished."""
    from tqdm import tqdm

    part = folder.with_name(f'{folder.name}.{os.getpid()}.part')
    part.mkdir(parents=True, exist_ok=True)
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    lengths = [0]
    try:
        with open(part / 'raw', 'wb') as file, tqdm(total=len(records), desc='tokens', unit='records', leave=False, mininterval=1) as bar:
            for start in range(0, len(records), BATCH):
                batch = [text_of(records[index], field) for index in range(start, min(start + BATCH, len(records)))]
                for ids in tokenizer.encode_batch(batch):
                    file.write(ids.astype(dtype).tobytes())
                    lengths.append(len(ids))
                bar.update(len(batch))
        if not sum(lengths):
            raise BadInput('the data holds no text; is the source empty?')
        np.save(part / 'offsets.npy', np.cumsum(lengths, dtype=np.int64))
        np.save(part / 'tokens.npy', np.memmap(part / 'raw', dtype, 'r'))
        (part / 'raw').unlink()
        if not folder.is_dir():
            part.rename(folder)
    except OSError:
        if not folder.is_dir():  # not the other process's rename, then
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
