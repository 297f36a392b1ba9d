"""How likely a text is behind another under a decoder: what evaluation without training asks for (Brown et al. 2020, arXiv:2005.14165)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmx import objectives
from lmx.data.continuations import split, trained, windows
from lmx.data.examples import named
from lmx.types import Apply, Array, BadInput, Batch, Features, Record, Task


def likelihood(*, tokenizer: Any, max_length: int, context: str = 'context', continuation: str = 'continuation') -> Task:
    """The log-likelihood of a text behind a context, under any `Decoder`; trained, it maximises that of the continuation alone.

    Text is split into tokens as lm-evaluation-harness splits it. A prediction is {'logprob': nats, 'tokens': of the continuation, 'greedy':
    whether each of them was the likeliest}. A continuation that is longer than the model reads is scored in windows, each token once, with
    one token or more before it, as the harness' rolling log-likelihood is.

    Args:
      max_length: tokens that the model reads; longer contexts lose their beginning.
      context, continuation: fields. A context may be ''.
    """

    def parts(record: Record) -> tuple[np.ndarray, np.ndarray]:
        first, last = split(tokenizer, record[context], record[continuation])
        if not len(last):
            raise BadInput(f'the continuation {record[continuation]!r} has no tokens; give a text')
        return first, last

    def features(records: Any) -> Any:
        settings = (tokenizer.fingerprint, max_length, context, continuation)
        return named(records.map(example), getattr(records, 'lmx_fingerprint', None), *settings)

    def example(record: Record) -> Features:
        first, last = parts(record)
        if len(last) > max_length:
            raise BadInput(f'a continuation has {len(last)} tokens, the limit for training is max_length {max_length}; raise it')
        return trained(first, last, max_length=max_length)

    def encode(record: Record) -> list[Features]:
        first, last = parts(record)
        rows = windows(first, last, max_length=max_length)
        cut = max(len(first) + len(last) - max_length - 1, 0) if len(rows) == 1 else 0
        return [{**row, 'cut': np.int32(cut)} for row in rows]

    def predict(apply: Apply, batch: Batch, key: Any, emit: Any = None) -> Mapping[str, Array]:
        return logprobs(apply, batch)

    def decode(record: Record, windows: Sequence[tuple[Features, Mapping[str, Any]]]) -> dict[str, Any]:
        made = {
            'logprob': float(sum(arrays['logprob'] for _, arrays in windows)),
            'tokens': int(sum(each['weights'].sum() for each, _ in windows)),
            'greedy': bool(all(arrays['greedy'] for _, arrays in windows)),
        }
        cut = max((int(each.get('cut', 0)) for each, _ in windows), default=0)
        return {**made, 'tokens_cut': cut} if cut else made

    return Task(
        inputs=(context, continuation), features=features, objective=objectives.next_token, encode=encode, predict=predict, decode=decode
    )


def logprobs(apply: Apply, batch: Batch) -> dict[str, Array]:
    """Of rows as `lmx.data.continuations.scored` makes them, under a `Decoder`: logprob float32 [B], the continuation's log-probability in nats; greedy bool [B],
    whether it is the likeliest at each place. Only these places are unembedded."""
    (hidden_BTD, _), _ = apply(batch['inputs'], method='hidden')
    hidden_BND = jnp.take_along_axis(hidden_BTD, batch['places'][..., None], axis=1)
    logits_BNV = apply(hidden_BND, method='unembed')[0].astype(jnp.float32)
    own_BN = jnp.take_along_axis(jax.nn.log_softmax(logits_BNV), batch['targets'][..., None], axis=-1)[..., 0]
    best_BN = (jnp.argmax(logits_BNV, axis=-1) == batch['targets']) | (batch['weights'] == 0)
    return {'logprob': jnp.sum(own_BN * batch['weights'], axis=-1), 'greedy': jnp.all(best_BN, axis=-1)}
