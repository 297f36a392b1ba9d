"""A tag for every word: named entities, parts of speech (Tjong Kim Sang & De Meulder 2003, cs/0306050; as BERT, arXiv:1810.04805, section 5.3)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmx import objectives
from lmx.data import examples
from lmx.data.cache import checked
from lmx.metrics.entities import spans
from lmx.types import Apply, Array, BadInput, Batch, Features, Record, Task

OUTSIDE = 'O'


def token_classification(
    *,
    tokenizer: Any,
    max_length: int,
    labels: Sequence[str],
    words: str = 'words',
    tags: str = 'tags',
    label_smoothing: float = 0.0,
    metric: Callable[[Sequence[Any], Sequence[Any]], Any] | None = None,
) -> Task:
    """Cross-entropy of words' tags under any model whose `__call__` gives scores [B, T, N]; records are {words: [...], tags: [...]}.

    A word's first token carries its tag; the others, and the special tokens, count nothing. Words that the tokenizer drops altogether
    have none. Training leaves out the words that do not fit; prediction refuses them.

    Args:
      tokenizer: text -> ids; words are joined by blanks.
      max_length: tokens with their special tokens.
      labels: tags, in the order of the model's scores; 'B-X' and 'I-X' make entities of type X.
      words, tags: fields. Tags are names or numbers. In a prediction, `words` may be a text, which is split at blanks.
      label_smoothing: see `lmx.objectives.token_losses`.
      metric: (predicted tags, true tags), both a list per text -> `lmx.metrics.Scores`.

    Raises:
      BadInput: no room for words.
    """
    room = max_length - len(tokenizer.join([])[0])
    before = np.flatnonzero(tokenizer.join([-1])[0] == -1)[0]
    if room < 1:
        raise BadInput(f'max_length {max_length} leaves no room beside {max_length - room} special tokens; give more')

    def tags_of(record: Record) -> list[int]:
        if len(record[words]) != len(record[tags]):
            raise BadInput(
                f'{len(record[words])} words and {len(record[tags])} tags, beginning {list(record[words])[:5]}; give each word one'
            )
        return [examples.index_of(tag, labels) for tag in record[tags]]

    def example(record: Record) -> Features:
        ids, first = first_tokens(tokenizer, [str(word) for word in record[words]])
        targets, weights = np.zeros(max_length, np.int32), np.zeros(max_length, np.float32)
        for place, tag in zip(first, tags_of(record)):
            if 0 <= place < room:
                targets[before + place], weights[before + place] = tag, 1
        return {**examples.tokens_of(tokenizer.join(ids[:room])[0], length=max_length), 'targets': targets, 'weights': weights}

    def encode(record: Record) -> list[Features]:
        ids, first = first_tokens(tokenizer, split(record[words]))
        if not len(ids):
            raise BadInput('there are no words; give at least one')
        if len(ids) > room:
            raise BadInput(f'the text has {len(ids) + max_length - room} tokens, the limit is max_length {max_length}; give it in parts')
        length = examples.size(len(ids) + max_length - room, max_length)
        places = examples.padded(np.where(first < 0, -1, first + before), examples.size(len(first), max_length))
        return [{**examples.tokens_of(tokenizer.join(ids)[0], length=length), 'places': places}]

    def predict(apply: Apply, batch: Batch, key: Any, emit: Any = None) -> Mapping[str, Array]:
        logits_BTN, _ = apply(batch['tokens'], segments=batch['segments'])
        return {'probabilities': jax.nn.softmax(logits_BTN.astype(jnp.float32))}

    def decode(record: Record, windows: Sequence[tuple[Features, Mapping[str, Any]]]) -> dict[str, Any]:
        ((features, arrays),) = windows
        texts = split(record[words])
        places = np.asarray(features['places'])[: len(texts)]
        found = arrays['probabilities'][places]
        best = [labels[int(row.argmax())] if place >= 0 else OUTSIDE for place, row in zip(places, found)]
        sure = [float(row.max()) if place >= 0 else 0.0 for place, row in zip(places, found)]
        return {'words': texts, 'tags': best, 'probabilities': sure, 'entities': entities(texts, best)}

    def describe(example: Features) -> str:
        counted = [labels[int(tag)] for tag, weight in zip(example['targets'], example['weights']) if weight]
        return f'{tokenizer.decode(example["tokens"][example["segments"] > 0])}: {" ".join(counted)}'

    def score(predictions: Sequence[Any], records: Sequence[Record]) -> Any:
        assert metric is not None
        return metric([p['tags'] for p in predictions], [[labels[examples.index_of(tag, labels)] for tag in r[tags]] for r in records])

    def features(records: Any) -> Any:
        checked(records, tags_of, tuple(labels), words, tags)
        return examples.mapped(records, example, tokenizer.fingerprint, max_length, tuple(labels), words, tags)

    return Task(
        inputs=(words,),
        features=features,
        objective=functools.partial(objectives.token_classes, label_smoothing=label_smoothing),
        encode=encode,
        predict=predict,
        decode=decode,
        score=metric and score,
        describe=describe,
    )


def split(words: Any) -> list[str]:
    return words.split() if isinstance(words, str) else [str(word) for word in words]


def first_tokens(tokenizer: Any, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the words joined by blanks, and the place of each word's first token, -1 for a word without any."""
    ids, offsets = tokenizer.encode_with_offsets(' '.join(words))
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    # A token of nothing but the blank before a word ends where the word begins, and is no part of it.
    word = np.where(offsets[:, 0] < offsets[:, 1], np.searchsorted(starts, offsets[:, 0], side='right') - 1, -1)
    word = np.where(offsets[:, 0] < starts[word + 1] - 1, word, -1)
    return ids, np.array([next(iter(np.flatnonzero(word == index)), -1) for index in range(len(words))], np.int64)


def entities(words: Sequence[str], tags: Sequence[str]) -> list[dict[str, Any]]:
    """The entities that the tags say, in order; start and end count words, the end is behind the last."""
    found = sorted(spans(tags), key=lambda span: span[1])
    return [{'type': kind, 'start': start, 'end': end, 'text': ' '.join(words[start:end])} for kind, start, end in found]
