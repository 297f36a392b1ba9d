"""Summaries: written anew (Rush et al. 2015, arXiv:1509.00685), or sentences of the text that are nearest to all of it (Radev et al. 2004)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmx import metrics
from lmx.spec import extends
from lmx.tasks.semantic_search import semantic_search
from lmx.tasks.text_to_text import text_to_text
from lmx.text.sentences import sentences
from lmx.text.tokenizers import text_of
from lmx.types import BadInput, Features, Record, Task


@extends(text_to_text)
def summarization(
    *,
    source: str = 'text',
    target: str = 'summary',
    too_long: str = 'cut',
    beam_size: int = 4,
    metric: Callable[[Sequence[str], Sequence[str]], Any] | None = metrics.rouge,
    **keywords: Any,
) -> Task:
    """`text_to_text` of {text, summary}, decoded by beam search and scored by ROUGE; texts beyond the length are cut, and predictions say so."""
    return text_to_text(source=source, target=target, too_long=too_long, beam_size=beam_size, metric=metric, **keywords)


@extends(semantic_search, 'text', 'other', 'similarity', 'best', 'negatives')
def extractive_summarization(
    *,
    text: str = 'text',
    target: str = 'summary',
    count: int = 1,
    metric: Callable[[Sequence[str], Sequence[str]], Any] | None = metrics.rouge,
    **keywords: Any,
) -> Task:
    """The `count` sentences whose vectors are nearest to the mean of all sentences' vectors, in the order of the text; for any model that
    gives vectors, as it is.

    Raises:
      BadInput: see `semantic_search`; a text without a sentence.
    """
    task = semantic_search(text=text, other=target, **keywords)
    assert task.encode is not None
    encode_one: Callable[[Record], Sequence[Features]] = task.encode

    def encode(record: Record) -> list[Features]:
        found = sentences(text_of(record, text))
        if not found:
            raise BadInput('the text is empty; give at least one sentence')
        windows = [(place, features) for place, each in enumerate(found) for features in encode_one({'text': each})]
        return [{**features, 'side': np.int32(place)} for place, features in windows]

    def decode(record: Record, found: Sequence[tuple[Features, Mapping[str, Any]]]) -> dict[str, Any]:
        texts = sentences(text_of(record, text))
        parts: list[list[Any]] = [[] for _ in texts]
        for features, arrays in found:
            parts[int(features['side'])].append(arrays['vectors'])
        vectors = np.array([np.mean(part, axis=0) for part in parts], np.float32)
        nearness = vectors @ vectors.mean(axis=0)
        best = sorted(np.argsort(-nearness, kind='stable')[:count].tolist())
        made = {'text': ' '.join(texts[place] for place in best), 'sentences': best, 'scores': nearness[best].tolist()}
        cut = sum({int(features['side']): int(features['cut']) for features, _ in found}.values())
        return {**made, 'tokens_cut': cut} if cut else made

    def score(predictions: Sequence[Any], records: Sequence[Record]) -> Any:
        assert metric is not None
        return metric([made['text'] for made in predictions], [text_of(record, target) for record in records])

    return dataclasses.replace(
        task, inputs=(text,), encode=encode, decode=decode, score=metric and score, question=lambda record: {text: text_of(record, text)}
    )
