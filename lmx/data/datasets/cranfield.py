"""The Cranfield collection (Cleverdon 1967): 1,400 abstracts about aerodynamics, 225 queries, and which abstract answers which.

'lmx:cranfield/corpus' has {'id': '1', 'title', 'text'} as 'train' (two of the texts are empty); 'lmx:cranfield' has the queries as 'test':
{'id': '1', 'query', 'relevant': ['184', ...], 'grades': [1, ...]}, 1,837 judgements in all. They count the queries 1 to 225 in the order
of the file, whatever numbers the file gives them.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lmx.data import raw
from lmx.data.raw import TEXT
from lmx.data.sources import read_text
from lmx.types import BadInput


def documents(split: str, *files: pathlib.Path) -> Iterator[dict[str, str]]:
    for document in re.findall(r'<doc>(.*?)</doc>', read_text(str(files[0])), re.DOTALL):
        yield {'id': _between(document, 'docno'), 'title': _between(document, 'title'), 'text': _between(document, 'text')}


def queries(split: str, *files: pathlib.Path) -> Iterator[dict[str, Any]]:
    asked, judgements = (read_text(str(file)) for file in files)
    found: dict[str, list[tuple[str, int]]] = {}
    for query, _, document, grade in (line.split() for line in judgements.splitlines() if line.strip()):
        found.setdefault(query, []).append((document, int(grade)))
    for number, query in enumerate(re.findall(r'<top>(.*?)</top>', asked, re.DOTALL), 1):
        relevant = found.get(str(number), [])
        documents, grades = [document for document, _ in relevant], [grade for _, grade in relevant]
        yield {'id': str(number), 'query': _between(query, 'title'), 'relevant': documents, 'grades': grades}


def _between(text: str, tag: str) -> str:
    """What stands in an element, its line ends as blanks."""
    found = re.search(f'<{tag}>(.*?)</{tag}>', text, re.DOTALL)
    assert found is not None
    return ' '.join(found[1].split())


def builder(config: str | None, **kwargs: Any) -> Any:
    source = 'they are files of the repository oussbenk/cranfield-trec-dataset'
    if config == 'corpus':
        fields, files = dict.fromkeys(('id', 'title', 'text'), TEXT), {'train': ('cran.all.1400.xml',)}
        return raw.builder('cranfield_corpus', features=fields, splits=files, source=source, examples=documents, **kwargs)
    if config is not None:
        raise BadInput(f'there is no lmx:cranfield/{config}; there are lmx:cranfield (queries) and lmx:cranfield/corpus')
    judged = {'relevant': tfds.features.Sequence(TEXT), 'grades': tfds.features.Sequence(np.int32)}
    splits = {'test': ('cran.qry.xml', 'cranqrel.trec.txt')}
    return raw.builder(
        'cranfield', features={'id': TEXT, 'query': TEXT, **judged}, splits=splits, source=source, examples=queries, **kwargs
    )
