"""Language modelling: the next token, and text that goes on from a prompt."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmx import objectives
from lmx.data import packing
from lmx.data.cache import token_cache
from lmx.decode import beam, rules, sample, speculative, steps, stream
from lmx.types import Apply, Array, BadInput, Batch, Features, Record, Task


def language_modelling(
    *,
    tokenizer: Any,
    max_length: int,
    windows: Callable[..., Any] = packing.concatenated,
    stride: int | None = None,
    field: str = 'text',
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk: int | None = None,
    newline_is_word: bool = False,
    max_tokens: int = 128,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    banned: Sequence[str] = (),
    forced: str = '',
    min_tokens: int = 0,
    no_repeat: int = 0,
    beam_size: int = 1,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    draft_tokens: int = 4,
) -> Task:
    """Maximum likelihood of the next token; records are {field: text}.

    Args:
      tokenizer: text -> ids.
      max_length: tokens per window, and of context when text is continued.
      windows: `packing.concatenated` (documents run on, cut elsewhere in every epoch) or `packing.packed` (whole documents, attention within each).
      stride: evaluate with overlapping windows, each predicting only its last `stride` tokens; None = max_length. Training does best without.
      label_smoothing, z_loss, chunk: see `lmx.objectives.next_token`.
      newline_is_word: count line ends as words in word-level perplexity, as WikiText's published figures do.
      max_tokens: new tokens per prompt; temperature (0 = greedy), top_k, top_p, min_p, repetition_penalty: how they are drawn.
      stop: strings that end a continuation; they are not part of it.
      banned: texts that no continuation holds.
      forced: what every continuation begins with.
      min_tokens: of a continuation, before it may end.
      no_repeat: no so many tokens in a row come twice in a continuation; 0 = they may.
      beam_size, length_penalty, early_stopping: see `lmx.decode.beam.beam_search`, which draws nothing; 1 = tokens are drawn.
      draft_tokens: what a small model proposes at a time, where a prediction has one; see `lmx.decode.speculative`.

    The objective reports 'nll' and 'accuracy' per token, 'bits_per_byte' where the tokenizer is lossless, and 'word_nats' per word.
    """
    sampling = sample.Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty)
    limits = {'banned_texts': banned, 'forced_text': forced, 'least': min_tokens, 'no_repeat_size': no_repeat}
    ruled = rules.of_texts(tokenizer, tokenizer.eos_id, **limits)
    stops = (stop,) if isinstance(stop, str) else tuple(stop)

    def features(records: Any) -> Any:
        cache = token_cache(records, tokenizer, field=field)
        extra = {} if stride is None else {'stride': stride}
        return windows(cache, length=max_length, eos_id=tokenizer.eos_id, **extra)

    def encode(record: Record) -> list[Features]:
        if not record[field]:
            raise BadInput('the prompt is empty; give at least one character')
        start = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        ids = np.concatenate([np.array(start, np.int32), tokenizer.encode(record[field])])
        if len(ids) >= max_length:
            raise BadInput(f'the prompt has {len(ids)} tokens, the model reads at most {max_length - 1}; shorten it')
        size = min(max_length - 1, 1 << max(4, int(len(ids) - 1).bit_length()))  # few shapes, so few compilations
        return [{'prompt': np.pad(ids, (0, size - len(ids))).astype(np.int32), 'length': np.int32(len(ids))}]

    def predict(
        apply: Apply, batch: Batch, key: Any, emit: Callable[[Array], Array] | None = None, draft: Apply | None = None
    ) -> Mapping[str, Array]:
        prompt_BT, lengths_B, eos_id = batch['prompt'], batch['length'], tokenizer.eos_id
        empty, step = functools.partial(steps.empty_cache, apply), functools.partial(steps.decoder, apply)
        rows, room = len(prompt_BT), prompt_BT.shape[1] + max_tokens - 1
        if draft is None and beam_size == 1:
            settings: dict[str, Any] = {'sampling': sampling, 'eos_id': eos_id, 'emit': emit, 'rules': ruled}
            return sample.continue_text(step, empty, prompt_BT, lengths_B, key, context=max_length, max_tokens=max_tokens, **settings)
        if room > max_length:
            raise BadInput(
                f'max_tokens {max_tokens} behind prompts of up to {prompt_BT.shape[1]} tokens may pass max_length {max_length}; give fewer tokens'
            )
        if draft is None:
            search = {'beam_size': beam_size, 'length_penalty': length_penalty, 'early_stopping': early_stopping, 'rules': ruled}
            return beam.best(step, empty(rows * beam_size, room), prompt_BT, lengths_B, max_tokens=max_tokens, eos_id=eos_id, **search)
        speculative.check(beam_size, ruled)
        theirs = functools.partial(steps.decoder, draft), steps.empty_cache(draft, rows, room)
        settings = {'draft_tokens': draft_tokens, 'max_tokens': max_tokens, 'sampling': sampling, 'eos_id': eos_id}
        return speculative.speculate(step, empty(rows, room), *theirs, prompt_BT, lengths_B, key, **settings)

    def decode(record: Record, windows: Sequence[tuple[Features, Mapping[str, Any]]]) -> dict[str, Any]:
        ((_, arrays),) = windows
        count = int(arrays['lengths'])
        text, _ = stream.cut(tokenizer.decode(arrays['tokens'][:count]), stops)
        return {'continuation': text, 'tokens': count, **steps.told(arrays, count, draft_tokens)}

    def describe(example: Features) -> str:
        real = np.asarray(example['weights']) > 0
        return tokenizer.decode(np.asarray(example['targets'])[real])

    return Task(
        inputs=(field,),
        features=features,
        objective=_objective(tokenizer, label_smoothing, z_loss, chunk, newline_is_word),
        encode=encode,
        predict=predict,
        decode=decode,
        describe=describe,
        stream=lambda write: stream.Streamer(tokenizer, stops, write) if beam_size == 1 and (write or stops) else None,
    )


def _objective(tokenizer: Any, label_smoothing: float, z_loss: float, chunk: int | None, newline_is_word: bool) -> Any:
    pieces = tokenizer.pieces
    counts = {}
    if pieces is not None:
        counts['byte_counts_V'] = np.array([len(piece) for piece in pieces], np.float32)
        counts['words'] = objectives.Words.of(pieces, newline_is_word)
    return functools.partial(objectives.next_token, label_smoothing=label_smoothing, z_loss=z_loss, chunk=chunk, **counts)
