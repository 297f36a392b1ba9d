"""Programs from their beginnings, judged by tests that are run (Chen et al. 2021, arXiv:2107.03374)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lmx.data import conversations, examples
from lmx.metrics import code, execution, scores
from lmx.spec import extends
from lmx.tasks.instruction_tuning import instruction_tuning
from lmx.types import Apply, Array, BadInput, Batch, Features, Record, Task

STOP = ('\nclass ', '\ndef ', '\n#', '\nif ', '\nprint')
"""What ends the body of a function, in Python."""


@extends(instruction_tuning, 'template')
def code_generation(
    *,
    tokenizer: Any,
    max_length: int,
    samples: int = 1,
    ks: Sequence[int] = (1,),
    execute: bool = False,
    seconds: float = 5.0,
    max_tokens: int = 256,
    stop: Sequence[str] = STOP,
    metric: Callable[[Sequence[str], Sequence[str]], Any] | None = None,
    **keywords: Any,
) -> Task:
    """Completions of programs, for any `Decoder`; records are {prompt, completion, test, entry_point} as HumanEval has them.

    Trained, it maximises the likelihood of the completion and of the end token behind it. A prediction is {'completion', 'completions': all
    samples}. A sample passes where prompt, completion, test and `check(entry_point)` come to their end as one program.

    Args:
      samples: drawn for each prompt.
      ks: pass@k for these.
      execute: run the programs for the score. They are strangers' code: see `lmx.metrics.sandbox` for how they are confined. Off, the
        score is `metric` alone.
      seconds: for each program.
      stop: texts that end a completion.
      metric: (first completions, completions of the records) -> `lmx.metrics.Scores`.
      keywords: see `instruction_tuning`.

    Raises:
      BadInput: fewer samples than k, several samples without a temperature, a tokenizer without an end token.
    """
    if max(ks, default=1) > samples:
        raise BadInput(f'ks {tuple(ks)} needs at least {max(ks)} samples, task.samples is {samples}; raise it')
    if samples > 1 and not keywords.get('temperature', 0.0):
        raise BadInput(f'samples {samples} at temperature 0 are all the same; set task.temperature, as to 0.8')
    options = {'tokenizer': tokenizer, 'max_length': max_length, 'max_tokens': max_tokens, 'stop': stop}
    task = instruction_tuning(**{**options, **keywords})
    assert task.predict is not None
    assert task.decode is not None
    draw, read, end = task.predict, task.decode, [tokenizer.eos_id]

    def halves(messages: Sequence[Mapping[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        """Prompt and completion, each by itself, as prediction has them: no token reaches from one into the other."""
        first, last = (tokenizer.encode(message['content']) for message in messages)
        return np.concatenate([first, last, end]).astype(np.int32), np.arange(len(first) + len(last) + 1) >= len(first)

    def encode(record: Record) -> list[Features]:
        ids = tokenizer.encode(record['prompt'])
        if not 0 < len(ids) < max_length:
            raise BadInput(f'the prompt has {len(ids)} tokens, the model reads 1 to {max_length - 1}; change it')
        row = {'prompt': examples.padded(ids, examples.size(len(ids), max_length - 1)), 'length': np.int32(len(ids))}
        return [{**row, 'sample': np.int32(number)} for number in range(samples)]

    def predict(apply: Apply, batch: Batch, key: Any, emit: Any = None) -> Mapping[str, Array]:
        return draw(apply, batch, jax.vmap(jax.random.fold_in)(key, batch['sample']), emit)  # all samples of a prompt share its key

    def decode(record: Record, windows: Sequence[tuple[Features, Mapping[str, Any]]]) -> dict[str, Any]:
        made = [read(record, [window])['answer'] for window in sorted(windows, key=lambda window: int(window[0]['sample']))]
        return {'completion': made[0], 'completions': made} if samples > 1 else {'completion': made[0]}

    def score(predictions: Sequence[Any], records: Sequence[Record]) -> scores.Scores:
        parts = [] if metric is None else [metric([made['completion'] for made in predictions], [each['completion'] for each in records])]
        if execute:
            every = [made.get('completions', [made['completion']]) for made in predictions]
            programs = [program(record, text) for record, texts in zip(records, every, strict=True) for text in texts]
            ended = iter(execution.run_all(programs, seconds=seconds))
            parts.append(code.pass_at_k([[next(ended).passed for _ in texts] for texts in every], ks))
        return scores.joined(*parts)

    return dataclasses.replace(
        task,
        features=lambda records: conversations.rows(records, halves, max_length),
        encode=encode,
        predict=predict,
        decode=decode,
        score=score if execute or metric else None,
        question=lambda record: {'prompt': record['prompt']},
    )


def program(record: Record, completion: str) -> str:
    """What is run to judge a completion.

    Raises:
      BadInput: a record without tests.
    """
    for name in ('prompt', 'test', 'entry_point'):
        if name not in record:
            raise BadInput(f'a record with {", ".join(record)} has no {name!r}; programs are judged by prompt, test and entry_point')
    return f'{record["prompt"]}{completion}\n\n{record["test"]}\n\ncheck({record["entry_point"]})\n'
