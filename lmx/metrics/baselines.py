"""What a config prints beside its evaluation: the scores of answers and summaries that nothing was learnt for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from lmx.metrics.answers import normalized, squad
from lmx.metrics.summarization import rouge
from lmx.text.sentences import sentences
from lmx.text.tokenizers import text_of
from lmx.types import Record


def lead(*, source: Any, text: str = 'text', target: str = 'summary', count: int = 1) -> dict[str, float]:
    """ROUGE of every text's first `count` sentences."""
    return _baseline(source, target, f'lead {count}', lambda record: ' '.join(sentences(text_of(record, text))[:count]))


def named(*, source: Any, name: str = 'name', target: str = 'summary') -> dict[str, float]:
    """ROUGE of a function's name, 'read_allLines' as 'read all lines'."""
    words = re.compile(r'[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+')
    return _baseline(source, target, 'name', lambda record: ' '.join(words.findall(text_of(record, name))).lower())


def _baseline(source: Any, target: str, name: str, summary: Callable[[Record], str]) -> dict[str, float]:
    records = [source[index] for index in range(len(source))]
    values = rouge([summary(record) for record in records], [text_of(record, target) for record in records]).values()
    return {f'{name}, {metric}': value for metric, value in values.items()}


def trivial(*, source: Any, question: str = 'question', context: str = 'context', answers: str = 'answers') -> dict[str, float]:
    """SQuAD's scores of the context's first sentence, and of the one with most of the question's words."""
    records = [source[index] for index in range(len(source))]
    true = [[str(text) for text in record[answers]['text']] for record in records]
    out = {}
    for name, pick in {'first sentence': _first, 'nearest sentence': _nearest}.items():
        made = [pick(sentences(text_of(record, context)), text_of(record, question)) for record in records]
        out.update({f'{name}, {metric}': value for metric, value in squad(made, true).values().items()})
    return out


def _first(texts: Sequence[str], question: str) -> str:
    return texts[0] if texts else ''


def _nearest(texts: Sequence[str], question: str) -> str:
    words = set(normalized(question).split())
    return max(texts, key=lambda text: len(words & set(normalized(text).split())), default='')
