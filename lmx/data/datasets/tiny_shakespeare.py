"""Tiny Shakespeare (Karpathy 2015): 1,115,394 characters, split as nanoGPT does, the first 90 % for training and the rest for validation."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

from lmx.data import raw
from lmx.data.raw import TEXT
from lmx.data.sources import read_text
from lmx.types import BadInput

SOURCE = 'input.txt is data/tinyshakespeare/input.txt of the repository karpathy/char-rnn'
SHA256 = '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'


def examples(split: str, *files: pathlib.Path) -> Iterator[dict[str, str]]:
    text = read_text(str(files[0]))
    if hashlib.sha256(text.encode()).hexdigest() != SHA256:
        raise BadInput(f'{files[0]} is not tiny Shakespeare (its SHA-256 differs); {SOURCE}')
    cut = int(len(text) * 0.9)
    yield {'text': text[:cut] if split == 'train' else text[cut:]}


def builder(config: str | None, **kwargs: Any) -> Any:
    features = {'text': TEXT}
    splits = {'train': ('input.txt',), 'validation': ('input.txt',)}
    source = SOURCE
    return raw.builder('tiny_shakespeare', features=features, splits=splits, source=source, examples=examples, **kwargs)
