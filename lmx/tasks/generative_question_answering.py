"""An answer written behind question and context (T5, arXiv:1910.10683, appendix D.15), or behind the question alone (arXiv:2002.08910)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmx import metrics
from lmx.data import examples
from lmx.spec import extends
from lmx.tasks.text_to_text import text_to_text
from lmx.text.templates import fields_of, filled
from lmx.types import BadInput, Features, Record, Task


@extends(text_to_text, 'source', 'target', 'prefix')
def generative_question_answering(
    *,
    prompt: str = 'question: {question} context: {context}',
    answers: str = 'answers',
    metric: Callable[[Sequence[str], Sequence[Sequence[str]]], Any] | None = metrics.squad,
    **keywords: Any,
) -> Task:
    """`text_to_text` from a question to its first answer; records are as SQuAD has them, {question, context, answers: {text: [...]}}.

    Where there is no answer the target is empty, and so is a prediction that says so.

    Args:
      prompt: `str.format` over the record's fields: the source.
      answers: the field with {text: all true answers}, or with one answer or a list of them.
      metric: (predicted answers, all true answers of each question) -> `lmx.metrics.Scores`.

    Raises:
      BadInput: see `text_to_text`; a record without a field of the prompt.
    """
    task = text_to_text(source='source', target='target', **keywords)
    assert task.encode is not None
    assert task.decode is not None
    encode: Callable[[Record], Sequence[Features]] = task.encode
    decode: Callable[[Record, Any], dict[str, Any]] = task.decode

    def asked(record: Record) -> Record:
        return {'source': filled(prompt, record)}

    def features(records: Any) -> Any:
        pairs = records.map(lambda record: {**asked(record), 'target': (_texts(record, answers) or [''])[0]})
        return task.features(examples.named(pairs, getattr(records, 'lmx_fingerprint', None), prompt, answers))

    def decoded(record: Record, windows: Any) -> dict[str, Any]:
        made = decode(asked(record), windows)
        return {'answer': made.pop('text'), **made}

    def score(predictions: Sequence[Any], records: Sequence[Record]) -> Any:
        assert metric is not None
        return metric([made['answer'] for made in predictions], [_texts(record, answers) for record in records])

    return dataclasses.replace(
        task,
        inputs=tuple(dict.fromkeys(fields_of(prompt))),
        features=features,
        encode=lambda record: encode(asked(record)),
        decode=decoded,
        score=metric and score,
    )


def _texts(record: Record, field: str) -> list[str]:
    if field not in record:
        raise BadInput(f'records have no field {field!r}, only {", ".join(record)}; name the field of the answers')
    given = record[field]['text'] if isinstance(record[field], Mapping) else record[field]
    return [given] if isinstance(given, str) else [str(text) for text in given]
