"""Multi30k (Elliott et al. 2016, arXiv:1605.00459), task 1: captions of images in English and German; 29,000, 1,014 and 1,000 pairs.

{'en': 'Two young, White males are outside near many bushes.', 'de': 'Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.'}
The test split is that of 2016 (Flickr).
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from lmx.data import raw
from lmx.data.raw import TEXT
from lmx.data.sources import read_text


def examples(split: str, *files: pathlib.Path) -> Iterator[dict[str, str]]:
    sides = [read_text(str(file)).removesuffix('\n').split('\n') for file in files]
    return ({'en': en.strip(), 'de': de.strip()} for en, de in zip(*sides, strict=True))


def builder(config: str | None, **kwargs: Any) -> Any:
    features = {'en': TEXT, 'de': TEXT}
    splits = {
        split: (f'{file}.en', f'{file}.de') for split, file in (('train', 'train'), ('validation', 'val'), ('test', 'test_2016_flickr'))
    }
    source = 'they are data/task1/raw of the repository multi30k/dataset'
    return raw.builder('multi30k', features=features, splits=splits, source=source, examples=examples, **kwargs)
