"""Texts as vectors whose cosine says how near they are (Reimers and Gurevych 2019, arXiv:1908.10084; Karpukhin et al. 2020, arXiv:2004.04906)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmx import metrics, objectives
from lmx.data import examples
from lmx.text.tokenizers import text_of
from lmx.types import Apply, Array, BadInput, Batch, Features, Record, Task


def semantic_search(
    *,
    tokenizer: Any,
    max_length: int,
    text: str = 'query',
    other: str = 'document',
    similarity: str | None = None,
    best: float = 5.0,
    negatives: int = 0,
    too_long: str = 'windows',
    loss_temperature: float = 0.05,
) -> Task:
    """Pairs of texts, for any model that gives a vector [B, D] of length 1 for a text (`heads.embedding`, `models.dual_encoder`).

    Without `similarity` each text is to find its other among all others of the batch (in-batch negatives); with it, the cosine is to be
    similarity / best, and an evaluation reports Pearson's and Spearman's correlation of the two.

    Args:
      tokenizer: text -> ids, and the special tokens around them.
      max_length: tokens with their special tokens; training cuts what is longer.
      text, other: fields of a record: a query and a document that answers it, or two sentences.
      similarity: field with a number from 0 to `best`; None = the pairs belong together.
      negatives: hard negatives per pair in training, from a record's list of texts 'negatives', taken in turn.
      too_long: 'windows' averages the vectors of a longer text's windows, 'cut' (sentence-transformers' way) reads its beginning alone.
      loss_temperature: of the softmax over the batch.

    Raises:
      BadInput: a length without room for text, an unknown `too_long`.
    """
    if too_long not in ('windows', 'cut'):
        raise BadInput(f'too_long {too_long!r} is unknown; there are windows, cut')
    room = max_length - len(tokenizer.join([])[0])
    if room < 1:
        raise BadInput(f'max_length {max_length} leaves no room beside {max_length - room} special tokens; give more')

    def example(record: Record) -> Features:
        out: dict[str, Any] = {'weights': np.float32(1)}
        for side, field in (('query', text), ('document', other)):
            out |= {f'{side}_{name}': value for name, value in read(text_of(record, field)).items()}
        if negatives:
            wrong = [text_of({'text': each}, 'text') for each in record.get('negatives', ())]
            if not wrong:
                raise BadInput(f'a record with {", ".join(record)} has no negatives; give a list of texts, or task.negatives=0')
            rows = [read(wrong[place % len(wrong)]) for place in range(negatives)]
            out |= {f'negative_{name}': np.stack([row[name] for row in rows]) for name in rows[0]}
        return out if similarity is None else {**out, 'similarity': np.float32(float(record[similarity]) / best)}

    def read(words: str) -> Features:
        return examples.tokens_of(tokenizer.encode_pair(words, max_length=max_length)[0], length=max_length)

    def windows(words: str, side: int) -> list[Features]:
        ids = tokenizer.encode(words)
        cut = max(len(ids) - room, 0) if too_long == 'cut' else 0
        parts = [ids[start : start + room] for start in range(0, max(len(ids) - cut, 1), room)]
        length = examples.size(min(len(ids), room) + max_length - room, max_length)
        said = {'side': np.int32(side), 'cut': np.int32(cut)}
        return [{**examples.tokens_of(tokenizer.join(part)[0], length=length), **said} for part in parts]

    def encode(record: Record) -> list[Features]:
        return windows(record['text'], 0) + (windows(record['other'], 1) if 'other' in record else [])

    def predict(apply: Apply, batch: Batch, key: Any, emit: Any = None) -> Mapping[str, Array]:
        return {'vectors': apply(batch['tokens'], segments=batch['segments'])[0]}

    def decode(record: Record, found: Sequence[tuple[Features, Mapping[str, Any]]]) -> dict[str, Any]:
        sides = [[arrays['vectors'] for features, arrays in found if features['side'] == side] for side in (0, 1)]
        vectors = [_unit(np.mean(np.asarray(side, np.float32), axis=0)) for side in sides if side]
        made = {'similarity': float(vectors[0] @ vectors[1])} if len(vectors) == 2 else {'embedding': vectors[0].tolist()}
        cut = max(int(features['cut']) for features, _ in found)
        return {**made, 'tokens_cut': cut} if cut else made

    def score(predictions: Sequence[Any], records: Sequence[Record]) -> Any:
        assert similarity is not None
        return metrics.correlation([made['similarity'] for made in predictions], [float(r[similarity]) for r in records])

    settings = (tokenizer.fingerprint, max_length, text, other, similarity, best, negatives)
    return Task(
        inputs=('text',),
        features=lambda records: examples.mapped(records, example, *settings),
        objective=objectives.cosine if similarity else functools.partial(objectives.contrastive, temperature=loss_temperature),
        encode=encode,
        predict=predict,
        decode=decode,
        score=score if similarity else None,
        question=lambda record: {'text': record[text], 'other': record[other]},
        additive=similarity is not None,
        describe=lambda features: ' | '.join(
            tokenizer.decode(features[f'{side}_tokens'][features[f'{side}_segments'] > 0]) for side in ('query', 'document')
        ),
    )


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
