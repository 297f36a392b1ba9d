"""A text from a text: translation, summaries, anything that is learnt from pairs (Sutskever et al. 2014, arXiv:1409.3215; T5, arXiv:1910.10683)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lmx import objectives
from lmx.data import examples, pairs
from lmx.data.cache import token_cache
from lmx.decode import beam, rules, sample, speculative, steps, stream
from lmx.types import Apply, Array, BadInput, Batch, Features, Record, Task


def text_to_text(
    *,
    tokenizer: Any,
    max_source_length: int,
    max_target_length: int,
    source: str = 'source',
    target: str = 'target',
    prefix: str = '',
    start_id: int | None = None,
    too_long: str = 'drop',
    row_length: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk: int | None = None,
    max_tokens: int | None = None,
    beam_size: int = 1,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    banned: Sequence[str] = (),
    forced: str = '',
    min_tokens: int = 0,
    no_repeat: int = 0,
    draft_tokens: int = 4,
    metric: Callable[[Sequence[str], Sequence[str]], Any] | None = None,
) -> Task:
    """Maximum likelihood of the target given the source, under any `EncoderDecoder`; records are {source: text, target: text}.

    Both texts get the special tokens that the tokenizer puts around a text, and end in its end token (eos, else sep) in any case.

    Args:
      tokenizer: of both sides.
      max_source_length, max_target_length: tokens with their special tokens.
      source, target: fields.
      prefix: put before every source, as T5 is told what to do.
      start_id: the decoder's first input. None = the tokenizer's bos, else pad (as T5), else its end token. A target that begins with it
        is not given it twice.
      too_long: what becomes of training pairs beyond the lengths: 'drop', or 'cut' at the end of the text. Prediction
        refuses them, or says how many tokens it cut.
      row_length: tokens of either side of a training row that whole pairs share, each attending to itself alone, which wastes little on
        padding; for models that take `segments`. None = a pair per row.
      label_smoothing, z_loss, chunk: see `lmx.objectives.token_losses`.
      max_tokens: of a prediction; None = max_target_length.
      beam_size: hypotheses that beam search follows; 1 = the likeliest token at each place.
      length_penalty: beam search ranks by log-probability / length^length_penalty.
      early_stopping: see `lmx.decode.beam.beam_search`.
      banned: texts that no prediction holds.
      forced: what every prediction begins with.
      min_tokens: of a prediction, before it may end.
      no_repeat: no so many tokens in a row come twice in a prediction; 0 = they may.
      draft_tokens: what a small model proposes at a time, where a prediction has one; see `lmx.decode.speculative`.
      metric: (predictions, references) -> `lmx.metrics.Scores` of whole texts.

    Raises:
      BadInput: a tokenizer without an end token, an unknown `too_long`, lengths without room for text, rows that are shorter.
    """
    if too_long not in ('drop', 'cut'):
        raise BadInput(f'too_long {too_long!r} is unknown; there are drop, cut')
    end_id = tokenizer.sep_id if tokenizer.eos_id is None else tokenizer.eos_id
    if end_id is None:
        raise BadInput('text_to_text needs a tokenizer with an end token; use text.characters(eos=True), text.bpe or text.unigram')
    first_id = next(i for i in (start_id, tokenizer.bos_id, tokenizer.pad_id, end_id) if i is not None)
    framed = functools.partial(_framed, tokenizer, end_id)
    specials = len(framed([]))
    if min(max_source_length, max_target_length) <= specials:
        raise BadInput(f'lengths {max_source_length} and {max_target_length} leave no room beside {specials} special tokens; give more')

    if row_length is not None and row_length < max(max_source_length, max_target_length):
        raise BadInput(f'row_length {row_length} is below the lengths {max_source_length} and {max_target_length} of one pair; give more')

    limits = {'banned_texts': banned, 'forced_text': forced, 'least': min_tokens, 'no_repeat_size': no_repeat}
    ruled = rules.of_texts(tokenizer, end_id, **limits)

    def features(records: Any) -> Any:
        sources = token_cache(_prefixed(records, source, prefix), tokenizer, field=source)
        targets = token_cache(records, tokenizer, field=target)
        settings = {'framed': framed, 'first_id': first_id, 'specials': specials, 'too_long': too_long, 'row_length': row_length}
        return pairs.rows(sources, targets, max_lengths=(max_source_length, max_target_length), **settings)

    def encode(record: Record) -> list[Features]:
        ids = tokenizer.encode(prefix + record[source])
        ids = framed(ids[: max_source_length - specials if too_long == 'cut' else None])
        if len(ids) > max_source_length:
            raise BadInput(
                f'the text has {len(ids)} tokens, the limit is max_source_length {max_source_length}; shorten it or raise the limit'
            )
        return [{name: examples.padded(array, examples.size(len(ids), max_source_length)) for name, array in pairs.source(ids).items()}]

    def predict(
        apply: Apply, batch: Batch, key: Any, emit: Callable[[Array], Array] | None = None, draft: Apply | None = None
    ) -> Mapping[str, Array]:
        rows, count = len(batch['source']), max_target_length if max_tokens is None else max_tokens
        prompt_BT, lengths_B = jnp.full((rows, 1), first_id, jnp.int32), jnp.ones((rows,), jnp.int32)
        settings: dict[str, Any] = {'max_tokens': count, 'eos_id': end_id}
        if beam_size > 1 and draft is None:
            settings.update(beam_size=beam_size, length_penalty=length_penalty, early_stopping=early_stopping, rules=ruled)
            return beam.best(*steps.reader(apply, batch, count, copies=beam_size), prompt_BT, lengths_B, **settings)
        settings['sampling'] = sample.Sampling(temperature=0)
        if draft is None:
            return sample.generate(*steps.reader(apply, batch, count), prompt_BT, lengths_B, key, emit=emit, rules=ruled, **settings)
        speculative.check(beam_size, ruled)
        readers = *steps.reader(apply, batch, count), *steps.reader(draft, batch, count)
        return speculative.speculate(*readers, prompt_BT, lengths_B, key, draft_tokens=draft_tokens, **settings)

    def decode(record: Record, windows: Sequence[tuple[Features, Mapping[str, Any]]]) -> dict[str, Any]:
        ((_, arrays),) = windows
        count = int(arrays['lengths'])
        made = {
            'text': tokenizer.decode(arrays['tokens'][:count]),
            'tokens': count,
            **steps.told(arrays, len(arrays['tokens']), draft_tokens),
        }
        left = len(tokenizer.encode(prefix + record[source])) - max_source_length + specials
        return {**made, 'tokens_cut': left} if left > 0 else made

    def describe(example: Features) -> str:
        parts = (example['source'][example['source_segments'] > 0], example['targets'][example['weights'] > 0])
        return ' -> '.join(tokenizer.decode(part) for part in parts)

    return Task(
        inputs=(source,),
        features=features,
        objective=functools.partial(objectives.seq2seq, label_smoothing=label_smoothing, z_loss=z_loss, chunk=chunk),
        encode=encode,
        predict=predict,
        decode=decode,
        score=metric and (lambda predictions, records: metric([p['text'] for p in predictions], [r[target] for r in records])),
        describe=describe,
        stream=lambda write: stream.Streamer(tokenizer, (), write) if write and beam_size == 1 else None,
    )


def _framed(tokenizer: Any, end_id: int, ids: Any) -> np.ndarray:
    out = tokenizer.join(ids)[0]
    return out if len(out) and out[-1] == end_id else np.append(out, np.int32(end_id))


def _prefixed(records: Any, field: str, prefix: str) -> Any:
    return records.map(lambda record: {**record, field: prefix + record[field]}) if prefix else records
