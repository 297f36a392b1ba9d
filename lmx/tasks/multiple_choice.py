"""A choice among given texts by their likelihood behind a prompt, with examples before it or none (Brown et al. 2020, arXiv:2005.14165,
section 2.4)."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmx import objectives, rng
from lmx.data.continuations import scored, split, trained
from lmx.data.examples import index_of, named
from lmx.metrics import likeliest, scores
from lmx.tasks.likelihood import logprobs
from lmx.text.templates import fields_of, filled
from lmx.types import Apply, Array, BadInput, Batch, Features, Record, Sums, Task


def multiple_choice(
    *,
    tokenizer: Any,
    max_length: int,
    prompt: str = '{question}\nAnswer:',
    choice: str = ' {choice}',
    choices: str | Sequence[str] = 'choices',
    answer: str = 'answer',
    shots: int = 0,
    examples: Any = None,
    separator: str = '\n\n',
    normalise: str = 'none',
    seed: int = 0,
    chunk: int | None = None,
) -> Task:
    """The likeliest continuation among a record's choices under any `Decoder`; trained, it maximises the likelihood of the right one alone.

    Records are {the prompt's fields, choices: texts, answer: the number or the text of the right one}. Text is split into tokens as
    lm-evaluation-harness splits it, and both accuracies agree with its acc and acc_norm.

    Args:
      max_length: tokens that the model reads; longer prompts lose their beginning, and a prediction says so.
      prompt: `str.format` over the record's fields.
      choice: likewise, over 'choice' beside them: what is put behind the prompt.
      choices: the field with a record's choices, or the texts that every record has.
      answer: the field with the right one.
      shots: answered examples before each prompt. Which, follows from `seed` and the prompt alone; a record is no example for itself.
      examples: the records to draw them from, as ref('data.train').
      separator: behind each example.
      normalise: what a prediction divides log-likelihoods by: 'none', or the choice's length in 'characters', 'bytes' or 'tokens'.
      chunk: see `lmx.objectives.token_losses`.

    Its scores are 'accuracy' by plain log-likelihoods and 'accuracy_normalised' by length, in `normalise`, or characters where that is
    'none'. The objective reports 'nll' and 'token_accuracy' per token of the right choice.

    Raises:
      BadInput: fewer than 2 choices, an unknown `normalise`, shots without examples.
    """
    if normalise not in likeliest.LENGTHS:
        raise BadInput(f'normalise {normalise!r} is unknown; there are {", ".join(likeliest.LENGTHS)}')
    if not isinstance(choices, str) and len(choices) < 2:
        raise BadInput(f'{len(choices)} choices are no choice; give at least 2, or the field that holds them')
    if shots and examples is None:
        raise BadInput(f'shots {shots} without examples; set task.examples = ref("data.train")')

    def texts(record: Record) -> list[str]:
        if not isinstance(choices, str):
            return list(choices)
        if choices not in record:
            raise BadInput(f'records have no field {choices!r}, only {", ".join(record)}; name the field of the choices')
        found = [str(each) for each in record[choices]] if not isinstance(record[choices], str) else []
        if len(found) < 2:
            raise BadInput(f'field {choices!r} holds {str(record[choices])[:40]!r}; give a list of at least 2 texts')
        return found

    def right(record: Record) -> int:
        if answer not in record:
            raise BadInput(f'records have no field {answer!r}, only {", ".join(record)}; name the field of the right choice')
        return index_of(record[answer], texts(record))

    def context(record: Record) -> str:
        asked = filled(prompt, record)
        order = rng.numpy_rng(seed, 'shots', zlib.crc32(asked.encode())).permutation(len(examples)) if shots else ()
        others = (examples[int(index)] for index in order)
        drawn = list(itertools.islice((other for other in others if filled(prompt, other) != asked), shots))
        if len(drawn) < shots:
            raise BadInput(f'{len(drawn)} other examples are fewer than shots {shots}; give more examples or fewer shots')
        answered = [filled(prompt, each) + filled(choice, each, choice=texts(each)[right(each)]) for each in drawn]
        return separator.join([*answered, asked])

    def parts(record: Record, before: str, text: str) -> tuple[np.ndarray, np.ndarray]:
        first, last = split(tokenizer, before, filled(choice, record, choice=text))
        if not 0 < len(last) <= max_length:
            raise BadInput(f'choice {text[:40]!r} has {len(last)} tokens, and 1 to max_length {max_length} are possible; change the choice')
        return first, last

    def features(records: Any) -> Any:
        origin = tuple(getattr(each, 'lmx_fingerprint', None) for each in (records, *([examples] if shots else [])))
        settings = (tokenizer.fingerprint, max_length, prompt, choice, choices, answer, shots, separator, seed)
        return named(records.map(example), None if None in origin else repr(origin), *settings)

    def example(record: Record) -> Features:
        first, last = parts(record, context(record), texts(record)[right(record)])
        return trained(first, last, max_length=max_length)

    def encode(record: Record) -> list[Features]:
        before = context(record)
        pairs = [parts(record, before, text) for text in texts(record)]
        cuts = [max(len(first) + len(last) - max_length - 1, 0) for first, last in pairs]
        return [
            {**scored(*pair, max_length=max_length), 'choice': np.int32(index), 'cut': np.int32(cut)}
            for index, (pair, cut) in enumerate(zip(pairs, cuts))
        ]

    def predict(apply: Apply, batch: Batch, key: Any, emit: Any = None) -> Mapping[str, Array]:
        return {'logprob': logprobs(apply, batch)['logprob']}

    def decode(record: Record, windows: Sequence[tuple[Features, Mapping[str, Any]]]) -> dict[str, Any]:
        windows = sorted(windows, key=lambda window: int(window[0]['choice']))  # they were batched by shape
        made = {
            'logprobs': [float(arrays['logprob']) for _, arrays in windows],
            'tokens': [int(each['weights'].sum()) for each, _ in windows],
        }
        values = likeliest.normalised(made, texts(record), normalise)
        odds = np.exp(values - values.max())
        best = int(values.argmax())
        cut = max(int(each['cut']) for each, _ in windows)
        found = {'choice': texts(record)[best], 'index': best, **made, 'probabilities': (odds / odds.sum()).tolist()}
        return {**found, 'tokens_cut': cut} if cut else found

    def score(predictions: Sequence[Any], records: Sequence[Record]) -> scores.Scores:
        return likeliest.accuracies(predictions, [texts(each) for each in records], [right(each) for each in records], normalise)

    given = [name for name in fields_of(choice) if name != 'choice']

    def describe(example: Features) -> str:
        return tokenizer.decode(np.append(example['inputs'][:1], example['targets'][: np.flatnonzero(example['weights'])[-1] + 1]))

    return Task(
        inputs=tuple(dict.fromkeys([*fields_of(prompt), *given, *([choices] if isinstance(choices, str) else [])])),
        features=features,
        objective=lambda apply, batch: _objective(apply, batch, chunk),
        encode=encode,
        predict=predict,
        decode=decode,
        score=score,
        describe=describe,
    )


def _objective(apply: Apply, batch: Batch, chunk: int | None) -> Sums:
    sums = dict(objectives.next_token(apply, batch, chunk=chunk))
    sums['token_accuracy'] = sums.pop('accuracy')  # of tokens, while the score of this name is of choices
    return sums
