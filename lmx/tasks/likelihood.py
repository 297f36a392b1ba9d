"""How likely a text is behind another under a decoder: what evaluation without training asks for (Brown et al. 2020, arXiv:2005.14165)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmx import objectives
from lmx.data.examples import named, padded, size
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


def windows(context: Any, continuation: Any, *, max_length: int) -> list[Features]:
    """The continuation in as few rows as it takes, as `scored` makes them. Where it takes several, each token is scored once, behind at
    least one token and as many as there is room for."""
    if len(continuation) <= max_length:
        return [scored(context, continuation, max_length=max_length)] if len(continuation) else []
    ids = np.concatenate([context[-1:], continuation])
    ends = [min(start + max_length, len(ids)) for start in range(1, len(ids), max_length)]
    starts = [1, *ends[:-1]]
    return [scored(ids[max(end - max_length - 1, 0) : start], ids[start:end], max_length=max_length) for start, end in zip(starts, ends)]


def trained(context: Any, continuation: Any, *, max_length: int) -> Features:
    """inputs, targets int32 [max_length] and weights float32 [max_length], 1 on the continuation; the beginning goes where it is too long."""
    ids = np.concatenate([context, continuation])[-(max_length + 1) :]
    weights = np.arange(1, len(ids)) >= len(ids) - len(continuation)
    columns = {'inputs': ids[:-1], 'targets': ids[1:], 'weights': weights.astype(np.float32)}
    return {name: padded(column, max_length) for name, column in columns.items()}


def split(tokenizer: Any, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a context, with the special tokens that the tokenizer puts before a text, and of its continuation, int32 each.

    Both are tokenized as one text, which is cut where the context by itself would end; blanks at the end of the context belong to the
    continuation. An empty context is the tokenizer's bos, else eos.

    Raises:
      BadInput: an empty context, and a tokenizer without either.
    """
    kept = context.rstrip()
    context, continuation = kept, context[len(kept) :] + continuation
    whole, begun = tokenizer.encode_batch([context + continuation, context])
    return opened(tokenizer, begun), whole[len(begun) :]


def opened(tokenizer: Any, ids: Any) -> np.ndarray:
    """The ids of a text behind the special tokens that the tokenizer puts before a text, int32; of an empty one, `first_id` where there are
    none."""
    marked = tokenizer.join([-1])[0]
    out = np.concatenate([marked[: int(np.flatnonzero(marked == -1)[0])], ids]).astype(np.int32)
    return out if len(out) else np.array([first_id(tokenizer)], np.int32)


def first_id(tokenizer: Any) -> int:
    """The token before a text: bos, else eos.

    Raises:
      BadInput: the tokenizer has neither.
    """
    if tokenizer.bos_id is None and tokenizer.eos_id is None:
        raise BadInput('the prompt is empty, and the tokenizer has neither bos nor eos to begin with; give a prompt')
    return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id


def scored(context: Any, continuation: Any, *, max_length: int) -> Features:
    """What `logprobs` reads of one row: inputs int32 [T], of which the beginning goes where it is too long; places and targets int32 [N]
    and weights float32 [N], the continuation. T and N take few values, so that few programs are compiled.

    Args:
      context, continuation: ids, at least one each; the continuation at most max_length.
    """
    ids = np.concatenate([context, continuation]).astype(np.int32)[-(max_length + 1) :]
    length, count = len(ids) - 1, len(continuation)
    room = size(count, max_length, least=8)
    return {
        'inputs': padded(ids[:-1], size(length, max_length)),
        'places': padded(np.arange(length - count, length), room),
        'targets': padded(ids[-count:], room),
        'weights': padded(np.ones(count, np.float32), room),
    }


def logprobs(apply: Apply, batch: Batch) -> dict[str, Array]:
    """Of rows as `scored` makes them, under a `Decoder`: logprob float32 [B], the continuation's log-probability in nats; greedy bool [B],
    whether it is the likeliest at each place. Only these places are unembedded."""
    (hidden_BTD, _), _ = apply(batch['inputs'], method='hidden')
    hidden_BND = jnp.take_along_axis(hidden_BTD, batch['places'][..., None], axis=1)
    logits_BNV = apply(hidden_BND, method='unembed')[0].astype(jnp.float32)
    own_BN = jnp.take_along_axis(jax.nn.log_softmax(logits_BNV), batch['targets'][..., None], axis=-1)[..., 0]
    best_BN = (jnp.argmax(logits_BNV, axis=-1) == batch['targets']) | (batch['weights'] == 0)
    return {'logprob': jnp.sum(own_BN * batch['weights'], axis=-1), 'greedy': jnp.all(best_BN, axis=-1)}
