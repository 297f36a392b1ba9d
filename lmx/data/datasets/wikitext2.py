"""WikiText-2 (Merity et al. 2016, arXiv:1609.07843), tokenised words; one record per split, so that its text is exactly the published one."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from lmx.data import raw
from lmx.data.raw import TEXT
from lmx.data.sources import read_text


def examples(split: str, *files: pathlib.Path) -> Iterator[dict[str, str]]:
    yield {'text': read_text(str(files[0]))}


def builder(config: str | None, **kwargs: Any) -> Any:
    features = {'text': TEXT}
    splits = {'train': ('train.txt',), 'validation': ('valid.txt',), 'test': ('test.txt',)}
    source = 'they are the word-level files of wikitext-2, as in pytorch/examples, word_language_model/data/wikitext-2'
    return raw.builder('wikitext2', features=features, splits=splits, source=source, examples=examples, **kwargs)
