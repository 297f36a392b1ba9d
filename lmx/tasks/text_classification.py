"""The class of a text or of a pair of texts, or a number for it (Devlin et al. 2018, arXiv:1810.04805, section 4.1)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmx import objectives
from lmx.data import examples
from lmx.data.cache import checked
from lmx.text.tokenizers import text_of
from lmx.types import Apply, Array, BadInput, Batch, Features, Record, Task


def text_classification(
    *,
    tokenizer: Any,
    max_length: int,
    labels: Sequence[str] | None = None,
    text: str = 'text',
    other: str | None = None,
    label: str = 'label',
    num_types: int = 2,
    label_smoothing: float = 0.0,
    metric: Callable[[Sequence[Any], Sequence[Any]], Any] | None = None,
) -> Task:
    """Cross-entropy of a text's label under any model whose `__call__` gives scores [B, N]; records are {text: text, label: name or number}.

    Longer texts are cut at the end, of a pair the longer one first; a prediction says so.

    Args:
      tokenizer: text -> ids, and the special tokens around them.
      max_length: tokens with their special tokens.
      labels: names, in the order of the model's scores; None = the label is a number, the model has one score, and squared error is
        minimised.
      text, other, label: fields; `other` is the second text of a pair, None = there is none.
      num_types: how many types of tokens the model tells apart; below 2 it is not told which text of a pair a token belongs to.
      label_smoothing: see `lmx.objectives.token_losses`.
      metric: (predictions, references) -> `lmx.metrics.Scores`; labels, or numbers.

    Raises:
      BadInput: fewer than 2 labels.
    """
    if labels is not None and len(labels) < 2:
        raise BadInput(f'{len(labels)} labels are no choice; give at least 2, or None to predict a number')

    typed = other is not None and examples.tells_apart(tokenizer, num_types)
    fields = (text,) if other is None else (text, other)

    def read(ids: np.ndarray, types: np.ndarray, length: int) -> Features:
        return examples.tokens_of(ids, types if typed else None, length=length)

    def value_of(record: Record) -> np.float32 | np.int32:
        if label not in record:
            raise BadInput(f'records have no field {label!r}, only {", ".join(record)}; name the field of the label')
        return _number(record[label]) if labels is None else np.int32(examples.index_of(record[label], labels))

    def example(record: Record) -> Features:
        ids, types = tokenizer.encode_pair(*(text_of(record, field) for field in fields), max_length=max_length)
        return {**read(ids, types, max_length), 'label': value_of(record), 'weights': np.float32(1)}

    def encode(record: Record) -> list[Features]:
        texts = [record[field] for field in fields]
        if not all(texts):
            raise BadInput('the text is empty; give at least one character')
        ids, types = tokenizer.encode_pair(*texts, max_length=max_length)
        cut = len(tokenizer.encode_pair(*texts)[0]) - len(ids)
        return [{**read(ids, types, examples.size(len(ids), max_length)), 'cut': np.int32(cut)}]

    def predict(apply: Apply, batch: Batch, key: Any, emit: Any = None) -> Mapping[str, Array]:
        given = {name: batch[name] for name in ('segments', 'types') if name in batch}
        logits_BN = apply(batch['tokens'], **given)[0].astype(jnp.float32)
        return {'values': logits_BN[:, 0]} if labels is None else {'probabilities': jax.nn.softmax(logits_BN)}

    def decode(record: Record, windows: Sequence[tuple[Features, Mapping[str, Any]]]) -> dict[str, Any]:
        ((features, arrays),) = windows
        cut = {'tokens_cut': int(features['cut'])} if features['cut'] else {}
        if labels is None:
            return {'value': float(arrays['values']), **cut}
        probabilities = dict(zip(labels, map(float, arrays['probabilities']), strict=True))
        best = max(probabilities, key=probabilities.__getitem__)
        return {'label': best, 'probability': probabilities[best], 'probabilities': probabilities, **cut}

    def score(predictions: Sequence[Any], records: Sequence[Record]) -> Any:
        assert metric is not None
        if labels is None:
            return metric([each['value'] for each in predictions], [float(record[label]) for record in records])
        references = [labels[examples.index_of(record[label], labels)] for record in records]
        return metric([each['label'] for each in predictions], references)

    def describe(example: Features) -> str:
        name = str(example['label']) if labels is None else labels[int(example['label'])]
        return f'{name}: {tokenizer.decode(example["tokens"][example["segments"] > 0])}'

    def features(records: Any) -> Any:
        checked(records, value_of, labels, label)
        return examples.mapped(records, example, tokenizer.fingerprint, max_length, labels, text, other, label, num_types)

    return Task(
        inputs=fields,
        features=features,
        objective=objectives.regress if labels is None else functools.partial(objectives.classify, label_smoothing=label_smoothing),
        encode=encode,
        predict=predict,
        decode=decode,
        score=metric and score,
        describe=describe,
    )


def _number(value: Any) -> np.float32:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadInput(f'label {value!r} is no finite number; give one, or name the classes in task.labels')
    return np.float32(number)
