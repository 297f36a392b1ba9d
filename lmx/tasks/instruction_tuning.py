"""Answers to instructions: maximum likelihood of what the assistant says, in conversations or pairs of prompt and completion (Ouyang et al.
2022, arXiv:2203.02155, section 3.5; Wei et al. 2021, arXiv:2109.01652)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmx import objectives
from lmx.data import conversations, examples
from lmx.decode import sample, steps, stream
from lmx.text.chat import Chat, messages_of
from lmx.types import Apply, Array, BadInput, Batch, Features, Record, Task


def instruction_tuning(
    *,
    tokenizer: Any,
    max_length: int,
    template: str | None = None,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
    max_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    metric: Callable[[Sequence[str], Sequence[str]], Any] | None = None,
) -> Task:
    """Loss on answers alone, for any `Decoder`; records are {messages: [{role, content}, ...]} or {prompt, completion}, where
    the prompt may be a list of messages too.

    Several conversations share a row, each a segment of its own. One that is longer than a row is left out of training and refused in
    prediction.

    Args:
      tokenizer: its chat template writes the conversations.
      max_length: tokens per row, and of context.
      template: another template (Jinja, as transformers has them); None = the tokenizer's, or `lmx.text.chat.PLAIN` where it has none.
      label_smoothing, chunk: see `lmx.objectives.token_losses`.
      max_tokens, temperature (0 = greedy), top_k, top_p: of an answer; it ends at the tokenizer's end token or at one of `stop`.
      metric: (answers, last answers of the records) -> `Scores`.

    Raises:
      BadInput: a template that the tokenizer cannot serve.
    """
    chat = Chat(tokenizer, template)
    sampling = sample.Sampling(temperature=temperature, top_k=top_k, top_p=top_p)

    def features(records: Any) -> Any:
        return conversations.rows(records, chat.encode, max_length)

    def encode(record: Record) -> list[Features]:
        ids = chat.prompt(_asked(messages_of(record)))
        if len(ids) >= max_length:
            raise BadInput(f'the conversation has {len(ids)} tokens, the model reads at most {max_length - 1}; shorten it')
        return [{'prompt': examples.padded(ids, examples.size(len(ids), max_length - 1)), 'length': np.int32(len(ids))}]

    def predict(apply: Apply, batch: Batch, key: Any, emit: Callable[[Array], Array] | None = None) -> Mapping[str, Array]:
        cache = functools.partial(steps.empty_cache, apply)
        settings = {'context': max_length, 'max_tokens': max_tokens, 'sampling': sampling, 'eos_id': tokenizer.eos_id, 'emit': emit}
        return sample.continue_text(functools.partial(steps.decoder, apply), cache, batch['prompt'], batch['length'], key, **settings)

    def decode(record: Record, windows: Sequence[tuple[Features, Mapping[str, Any]]]) -> dict[str, Any]:
        ((_, arrays),) = windows
        count = int(arrays['lengths'])
        text = tokenizer.decode(arrays['tokens'][:count])
        places = [text.index(each) for each in stop if each in text]
        return {'answer': text[: min(places, default=len(text))], 'tokens': count, 'logprob': float(np.sum(arrays['logprobs'][:count]))}

    return Task(
        inputs=('prompt',),
        features=features,
        objective=functools.partial(objectives.next_token, label_smoothing=label_smoothing, chunk=chunk),
        encode=encode,
        predict=predict,
        decode=decode,
        score=metric and (lambda made, records: metric([m['answer'] for m in made], [messages_of(r)[-1]['content'] for r in records])),
        question=lambda record: {'prompt': _asked(messages_of(record))},
        describe=lambda example: tokenizer.decode(example['targets'][example['weights'] > 0]),
        stream=lambda write: stream.Streamer(tokenizer, tuple(stop), write) if write or stop else None,
    )


def _asked(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The conversation up to the last question."""
    return messages[:-1] if messages[-1]['role'] == 'assistant' else messages
