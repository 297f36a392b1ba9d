"""The span of a text that answers a question (Rajpurkar et al. 2016, arXiv:1606.05250; no answer: 2018, arXiv:1806.03822)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lmx import objectives
from lmx.data import contexts, examples
from lmx.data.cache import checked, token_cache
from lmx.decode import spans
from lmx.types import Apply, Array, BadInput, Batch, Features, Record, Task


def question_answering(
    *,
    tokenizer: Any,
    max_length: int = 384,
    overlap: int = 128,
    max_question_length: int = 64,
    max_answer_length: int = 30,
    null_threshold: float | None = None,
    question: str = 'question',
    context: str = 'context',
    answers: str = 'answers',
    num_types: int = 2,
    metric: Callable[[Sequence[str], Sequence[Sequence[str]]], Any] | None = None,
) -> Task:
    """Cross-entropy of the answer's first and last token under any model whose `__call__` gives scores [B, T, 2].

    Records are as SQuAD has them: {question, context, answers: {text: [...], answer_start: [...]}}, starts in characters, no answer where
    the lists are empty. A context that is too long is read in overlapping windows. A window that does not hold the whole of the (first)
    answer is trained to point at its first token, [CLS], which stands for 'not here' (Devlin et al. 2018, arXiv:1810.04805, section 4.3).

    Args:
      max_length: tokens of a window, with the question and the special tokens.
      overlap: tokens that neighbouring windows share.
      max_question_length: tokens; training cuts longer questions, prediction refuses them.
      max_answer_length: tokens of a predicted answer.
      null_threshold: there is no answer ('') where the best span's score is not above it. Scores are those of the span less that of 'not
        here' in the window that is surest of it. None = there always is one.
      question, context, answers: fields.
      num_types: how many types of tokens the model tells apart; below 2 it is not told what is question and what context.
      metric: (predicted answers, all true answers of each question) -> `lmx.metrics.Scores`.

    Raises:
      BadInput: records whose answer is not where they say; a window without room for more context than the overlap.
    """
    specials = len(tokenizer.join([], [])[0])
    if max_length - max_question_length - specials <= overlap:
        raise BadInput(
            f'max_length {max_length} less max_question_length {max_question_length} and {specials} special tokens leaves no more context'
            f' than overlap {overlap}; give more, or less overlap'
        )
    reader = contexts.Reader(tokenizer, max_length, overlap, examples.tells_apart(tokenizer, num_types))

    def features(records: Any) -> Any:
        checked(records, lambda record: contexts.place(record[answers], record[context]), context, answers)
        caches = [token_cache(records, tokenizer, field=field) for field in (question, context)]
        asked, lengths = (np.diff(cache.offsets) for cache in caches)
        plan = [
            (row, start)
            for row, (some, length) in enumerate(zip(np.minimum(asked, max_question_length).tolist(), lengths.tolist()))
            for start in reader.starts(some, length)
        ]

        def example(row_start: tuple[int, int]) -> Features:
            row, start = row_start
            record = records[row]
            asked = tokenizer.encode(record[question])[:max_question_length]
            return reader.example(asked, record[context], start, contexts.place(record[answers], record[context]))

        import grain

        settings = (max_length, overlap, max_question_length, num_types, question, context, answers)
        return examples.named(grain.MapDataset.source(plan).map(example), getattr(records, 'lmx_fingerprint', None), *settings)

    def encode(record: Record) -> list[Features]:
        asked = tokenizer.encode(record[question])
        if len(asked) > max_question_length:
            raise BadInput(f'the question has {len(asked)} tokens, the limit is max_question_length {max_question_length}; shorten it')
        ids, offsets = tokenizer.encode_with_offsets(record[context])
        if not len(ids):
            raise BadInput('the context is empty; give the text that holds the answer')
        return [reader.window(asked, ids, offsets, start) for start in reader.starts(len(asked), len(ids))]

    def predict(apply: Apply, batch: Batch, key: Any, emit: Any = None) -> Mapping[str, Array]:
        given = {name: batch[name] for name in ('segments', 'types') if name in batch}
        scores_BT2 = objectives.span_scores(apply(batch['tokens'], **given)[0], batch['segments'])
        return {**spans.best(scores_BT2, batch['inside'] > 0, longest=max_answer_length), 'null': jnp.sum(scores_BT2[:, 0], axis=-1)}

    def decode(record: Record, windows: Sequence[tuple[Features, Mapping[str, Any]]]) -> dict[str, Any]:
        features, arrays = max(windows, key=lambda window: float(window[1]['score']))
        score = float(arrays['score']) - min(float(each['null']) for _, each in windows)
        if null_threshold is not None and score <= null_threshold:
            return {'answer': '', 'score': score, 'start': None, 'end': None}
        start, end = int(features['offsets'][arrays['start'], 0]), int(features['offsets'][arrays['end'], 1])
        return {'answer': record[context][start:end], 'score': score, 'start': start, 'end': end}

    def describe(example: Features) -> str:
        return f'{tokenizer.decode(example["tokens"][example["segments"] > 0])} -> ' + (
            tokenizer.decode(example['tokens'][example['start'] : example['end'] + 1]) or '(not here)'
        )

    def score(predictions: Sequence[Any], records: Sequence[Record]) -> Any:
        assert metric is not None
        return metric([p['answer'] for p in predictions], [[str(text) for text in r[answers]['text']] for r in records])

    return Task(
        inputs=(question, context),
        features=features,
        objective=objectives.span,
        encode=encode,
        predict=predict,
        decode=decode,
        score=metric and score,
        describe=describe,
    )
