"""Spans that were lost, from what is around them: T5's pre-training (Raffel et al. 2020, arXiv:1910.10683, section 3.1.4)."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lmx import objectives, rng
from lmx.data import corrupt, examples, packing
from lmx.data.cache import token_cache
from lmx.decode import sample, steps
from lmx.types import Apply, Array, BadInput, Batch, Features, Record, Task

_SENTINEL = re.compile(r'<extra_id_(\d+)>')


def span_corruption(
    *,
    tokenizer: Any,
    max_length: int,
    field: str = 'text',
    rate: float = 0.15,
    mean_length: float = 3.0,
    seed: int = 0,
    chunk: int | None = None,
    max_tokens: int = 64,
) -> Task:
    """Maximum likelihood of lost spans under any `EncoderDecoder`; records are {field: text}.

    Documents run on, with the end token between them, and are cut into windows of one length, so that every source has `max_length` tokens
    and nothing is padding. What is lost is a function of `seed` and of the index that a window is asked for: see
    `lmx.tasks.masked_language_modelling`. A text to mend has <extra_id_0>, <extra_id_1>, ... where something is missing.

    Args:
      tokenizer: one with an end token and sentinels, as text.unigram(sentinels=100).
      max_length: tokens of a source, sentinels and end token included.
      rate, mean_length: see `lmx.data.corrupt.lose_spans`.
      chunk: see `lmx.objectives.token_losses`.
      max_tokens: of a prediction.

    Raises:
      BadInput: a tokenizer without sentinels or end token, or with too few for the length, a rate outside 0 to 1.
    """
    if tokenizer.eos_id is None or not tokenizer.sentinel_ids:
        raise BadInput('span_corruption needs a tokenizer with an end token and sentinels; use text.unigram(sentinels=100)')
    if not 0 < rate < 1:
        raise BadInput(f'rate {rate} is not between 0 and 1')
    length = corrupt.whole(max_length - 1, rate, mean_length)
    lost, spans = corrupt.span_counts(length, rate, mean_length)
    if spans > len(tokenizer.sentinel_ids):
        raise BadInput(
            f'max_length {max_length} has {spans} spans, the tokenizer {len(tokenizer.sentinel_ids)} sentinels; give more or shorten'
        )
    first_id = tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
    losing = {'sentinel_ids': tokenizer.sentinel_ids, 'rate': rate, 'mean_length': mean_length}

    def example(index: int, window: Features) -> Features:
        ids = window['inputs'][window['weights'] > 0]
        left, gone = corrupt.lose_spans(ids, rng=rng.numpy_rng(seed, 'spans', index), **losing) if len(ids) > 1 else (ids, ids[:0])
        source, targets = np.append(left, tokenizer.eos_id), np.append(gone, tokenizer.eos_id)
        inputs = np.concatenate([[first_id], targets[:-1]])
        sides = {'inputs': inputs, 'targets': targets, 'weights': np.ones(len(targets), np.float32)}
        return {**_source(source, max_length), **{name: examples.padded(side, lost + spans + 1) for name, side in sides.items()}}

    def features(records: Any) -> Any:
        windows = packing.concatenated(token_cache(records, tokenizer, field=field), length=length, eos_id=tokenizer.eos_id)
        settings = (tokenizer.fingerprint, max_length, rate, mean_length, seed)
        return examples.named(windows.map_with_index(example), windows.lmx_fingerprint, *settings)

    def encode(record: Record) -> list[Features]:
        parts = _SENTINEL.split(record[field])  # text, number, text, number, ... text
        if [int(number) for number in parts[1::2]] != list(range(len(parts) // 2)) or len(parts) == 1:
            raise BadInput(
                'the text has no <extra_id_0>, or others out of their order; put <extra_id_0>, <extra_id_1>, ... where words are missing'
            )
        ids = [
            tokenizer.encode(part.strip()) if place % 2 == 0 else [tokenizer.sentinel_ids[int(part)]] for place, part in enumerate(parts)
        ]
        source = np.concatenate([*ids, [tokenizer.eos_id]]).astype(np.int32)
        if len(source) > max_length:
            raise BadInput(f'the text has {len(source)} tokens, the limit is max_length {max_length}; shorten it')
        return [_source(source, examples.size(len(source), max_length))]

    def predict(apply: Apply, batch: Batch, key: Any, emit: Callable[[Array], Array] | None = None) -> Mapping[str, Array]:
        rows = len(batch['source'])
        start = jnp.full((rows, 1), first_id, jnp.int32), jnp.ones((rows,), jnp.int32)
        settings: dict[str, Any] = {'max_tokens': max_tokens, 'sampling': sample.Sampling(temperature=0), 'eos_id': tokenizer.eos_id}
        return sample.generate(*steps.reader(apply, batch, max_tokens), *start, key, emit=emit, **settings)

    def decode(record: Record, windows: Sequence[tuple[Features, Mapping[str, Any]]]) -> dict[str, Any]:
        ((_, arrays),) = windows
        ids = arrays['tokens'][: int(arrays['lengths'])]
        marks = {int(sentinel): number for number, sentinel in enumerate(tokenizer.sentinel_ids)}
        places = [place for place, token in enumerate(ids.tolist()) if token in marks]
        spans = {marks[int(ids[a])]: tokenizer.decode(ids[a + 1 : b]).strip() for a, b in zip(places, [*places[1:], len(ids)])}
        filled = _SENTINEL.sub(lambda found: spans.get(int(found[1]), found[0]), record[field])
        wanted = len(_SENTINEL.findall(record[field]))
        return {'text': filled, 'spans': [spans.get(number) for number in range(wanted)], 'logprob': float(np.sum(arrays['logprobs']))}

    def describe(example: Features) -> str:
        parts = example['source'][example['source_segments'] > 0], example['targets'][example['weights'] > 0]
        return ' -> '.join(tokenizer.inner.decode(part.tolist(), skip_special_tokens=False) for part in parts)

    return Task(
        inputs=(field,),
        features=features,
        objective=functools.partial(objectives.seq2seq, chunk=chunk),
        encode=encode,
        predict=predict,
        decode=decode,
        describe=describe,
    )


def _source(ids: np.ndarray, length: int) -> Features:
    return {'source': examples.padded(ids, length), 'source_segments': examples.padded(np.ones(len(ids), np.int32), length)}
