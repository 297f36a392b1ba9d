"""TREC question classification (Li and Roth 2002): what kind of answer a question asks for; 5,452 and 500 questions, six classes.

{'text': 'How far is it from Denver to Aspen ?', 'label': 'NUM', 'fine': 'dist'}
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from lmx.data import raw
from lmx.data.raw import TEXT
from lmx.data.sources import read_bytes


def examples(split: str, *files: pathlib.Path) -> Iterator[dict[str, str]]:
    for line in filter(None, read_bytes(str(files[0])).decode('latin-1').split('\n')):  # one question has a byte that is no UTF-8
        kind, _, text = line.strip().partition(' ')
        label, _, fine = kind.partition(':')
        yield {'text': text, 'label': label, 'fine': fine}


def builder(config: str | None, **kwargs: Any) -> Any:
    features = {'text': TEXT, 'label': TEXT, 'fine': TEXT}
    splits = {'train': ('TREC.train',), 'test': ('TREC.test',)}
    source = 'they are TREC.train and TREC.test of the repository harvardnlp/sent-conv-torch'
    return raw.builder('trec', features=features, splits=splits, source=source, examples=examples, **kwargs)
