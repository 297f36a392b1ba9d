"""STS benchmark (Cer et al. 2017, arXiv:1708.00055): pairs of sentences and how much they mean the same, 0 to 5; 5,749, 1,500 and 1,379.

{'text': 'A girl is styling her hair.', 'other': 'A girl is brushing her hair.', 'score': 2.5}
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lmx.data import raw
from lmx.data.raw import TEXT
from lmx.data.sources import read_text


def examples(split: str, *files: pathlib.Path) -> Iterator[dict[str, Any]]:
    for line in filter(None, read_text(str(files[0])).split('\n')):
        fields = line.rstrip('\r').split('\t')  # genre, file, year, number, score, two sentences, at times their sources
        yield {'text': fields[5], 'other': fields[6], 'score': float(fields[4])}


def builder(config: str | None, **kwargs: Any) -> Any:
    features = {'text': TEXT, 'other': TEXT, 'score': tfds.features.Scalar(np.float32)}
    splits = {'train': ('sts-train.csv',), 'validation': ('sts-dev.csv',), 'test': ('sts-test.csv',)}
    source = 'they are the tab-separated files of stsbenchmark'
    return raw.builder('stsb', features=features, splits=splits, source=source, examples=examples, **kwargs)
