"""Documents that answer queries, ranked by the cosine of their vectors and scored as in TREC (Thakur et al. 2021, arXiv:2104.08663)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmx import metrics
from lmx.data.sources import in_memory
from lmx.spec import extends
from lmx.tasks.semantic_search import semantic_search
from lmx.text.tokenizers import text_of
from lmx.types import BadInput, Record, Task


@extends(semantic_search, 'text', 'other', 'similarity', 'best')
def retrieval(**keywords: Any) -> Task:
    """`semantic_search`, evaluated on a whole collection.

    A split holds the documents, {'id', 'text'}, and the queries, {'id', 'text', 'relevant': [ids of documents], 'grades': [numbers]}
    (`lmx.data.sources.concatenated`). Every document is ranked for every query. Loss and training are on each query with the first of
    its relevant documents.

    Raises:
      BadInput: see `semantic_search`; a split without queries or documents.
    """
    task = semantic_search(**keywords)

    def features(records: Any) -> Any:
        documents, queries = _parted([records[index] for index in range(len(records))])
        texts = {_str(each['id']): text_of(each, 'text') for each in documents}
        pairs = [(text_of(each, 'text'), next(iter(_gains(each)), None)) for each in queries]
        found = [{'query': query, 'document': texts[name]} for query, name in pairs if name in texts]
        if not found:
            raise BadInput(f'none of {len(queries)} queries has a relevant document among {len(documents)}')
        return task.features(in_memory(records=found))

    def score(predictions: Sequence[Any], records: Sequence[Record]) -> metrics.Scores:
        vectors = np.array([made['embedding'] for made in predictions], np.float32)
        asks = np.array(['relevant' in record for record in records])
        documents, queries = _parted(records)
        names = np.array([_str(each['id']) for each in documents])
        order = np.argsort(-(vectors[asks] @ vectors[~asks].T), axis=1, kind='stable')
        return metrics.retrieval([names[row].tolist() for row in order], [_gains(each) for each in queries])

    return dataclasses.replace(task, features=features, score=score, question=lambda record: {'text': text_of(record, 'text')})


def _parted(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """(documents, queries)."""
    parts = [[record for record in records if ('relevant' in record) == asks] for asks in (False, True)]
    if not all(parts):
        raise BadInput(f'{len(parts[0])} documents and {len(parts[1])} queries are no collection; queries are records with `relevant`')
    return parts[0], parts[1]


def _gains(query: Record) -> dict[str, float]:
    """The relevant documents of a query, best first as given."""
    names = [_str(name) for name in query['relevant']]
    grades = query.get('grades')
    gains = [1.0] * len(names) if grades is None else [float(grade) for grade in grades]
    return {name: gain for name, gain in zip(names, gains, strict=True) if gain > 0}


def _str(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
