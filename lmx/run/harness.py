"""`lmx harness`: a run's decoder under lm-evaluation-harness (Gao et al. 2024, extra `harness`), whose tasks, prompts and metrics they are."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import lm_eval
import numpy as np
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from lmx import tasks
from lmx.data.continuations import first_id, opened, windows
from lmx.data.examples import padded, size
from lmx.decode import sample
from lmx.decode.stream import Streamer, cut
from lmx.run.predict import predictions
from lmx.run.restore import restore
from lmx.spec import nearest
from lmx.types import Apply, Array, BadInput, Batch, Features, Record, Task

MAX_TOKENS = 256
"""New tokens where a task sets no limit, as in the harness' own models."""


def harness(
    workdir: str | os.PathLike[str],
    names: Sequence[str],
    *,
    shots: int | None = None,
    limit: int | None = None,
    include: str | None = None,
    checkpoint: str = 'last',
    config: Mapping[str, Any] | None = None,
    allow: Sequence[str] = (),
    batch_size: int = 16,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """{task: scores}, with the ends of their 95 % intervals; all that the harness says goes to `WORKDIR/harness/TASK-STEP.json`.

    Args:
      names: tasks or groups of the harness.
      shots: answered examples before each question; None = as the task says.
      limit: questions per task; None = all.
      include: a folder with task files of one's own.
      checkpoint, config, allow: see `lmx.run.restore`. The model reads `config.task.max_length` tokens.
      seed: of sampling and of what the harness draws.

    Raises:
      BadInput: an unknown task, a model that is no decoder.
    """
    manager = TaskManager(include_path=include)
    for name in names:
        if name not in manager.all_tasks:
            raise BadInput(f'the harness has no task {name!r}{nearest(name, manager.all_tasks)}; give --include=DIR for tasks of your own')
    parts, params, step = restore(workdir, checkpoint, config, allow)
    model = Model(parts, params, batch_size=batch_size, seed=seed)
    seeds = dict.fromkeys(('random_seed', 'numpy_random_seed', 'torch_random_seed', 'fewshot_random_seed'), seed)
    options: dict[str, Any] = {'num_fewshot': shots, 'limit': limit, 'task_manager': manager, 'log_samples': False, **seeds}
    found: Any = lm_eval.simple_evaluate(model, tasks=list(names), **options)
    out = {name: _scores(values) for name, values in found['results'].items()}
    folder = pathlib.Path(workdir) / 'harness'
    folder.mkdir(exist_ok=True)
    for name in out:
        kept = {key: found[key].get(name) for key in ('results', 'configs', 'versions', 'n-shot', 'n-samples') if key in found}
        part = folder / f'{name}-{step}.json.part'
        part.write_text(json.dumps({'step': step, 'checkpoint': checkpoint, 'lm_eval': lm_eval.__version__, **kept}, indent=1, default=str))
        part.replace(folder / f'{name}-{step}.json')
    return out


def _scores(values: Mapping[str, Any]) -> dict[str, float]:
    """'acc,none' and 'acc_stderr,none' -> 'acc' with its interval; the filter's name stays where it is not 'none'."""
    out = {}
    for key, value in values.items():
        metric, _, kind = key.partition(',')
        if metric.endswith('_stderr') or not isinstance(value, (int, float)) or not kind:
            continue
        name = metric if kind == 'none' else f'{metric}/{kind}'
        out[name] = float(value)
        error = values.get(f'{metric}_stderr,{kind}')
        if isinstance(error, (int, float)):
            out.update({f'{name}/low': value - 1.96 * error, f'{name}/high': value + 1.96 * error})
    return out


class Model(LM):
    """What the harness asks of a language model, answered by a run that is open."""

    def __init__(self, parts: Any, params: Any, *, batch_size: int = 16, seed: int = 0):
        super().__init__()
        if 'tokenizer' not in parts.config or 'max_length' not in parts.config.task:
            raise BadInput(f'{parts.config.task.call} has no tokenizer and max_length; the harness needs a run of a language model')
        self.tokens, self.max_length = parts.builder('tokenizer'), parts.config.task.max_length
        self.asked = lambda task, records: predictions(parts, params, records, batch_size=batch_size, seed=seed, task=task)

    def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        task = tasks.likelihood(tokenizer=self.tokens, max_length=self.max_length)
        made = self.asked(task, [{'context': context, 'continuation': text} for context, text in (each.args for each in requests)])
        return [(each['logprob'], each['greedy']) for each in made]

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        first = first_id(self.tokens)

        def encode(record: Record) -> list[Features]:
            # As the harness does it, the special tokens that a tokenizer puts before a text are scored with it.
            return windows([first], self.tokens.join(self.tokens.encode(record['text']))[0], max_length=self.max_length)

        task = tasks.likelihood(tokenizer=self.tokens, max_length=self.max_length)
        rolling = dataclasses.replace(task, inputs=('text',), encode=encode)
        return [each['logprob'] for each in self.asked(rolling, [{'text': each.args[0]} for each in requests])]

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        out = [''] * len(requests)
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        for options, members in groups.items():
            made = self.asked(self._generation(json.loads(options)), [{'text': requests[index].args[0]} for index in members])
            for index, each in zip(members, made):
                out[index] = each['text']
        return out

    def _generation(self, options: dict[str, Any]) -> Task:
        """Text behind a prompt that loses its beginning where it is too long, as the harness does it."""
        wanted: dict[str, Any] = dict(normalize_gen_kwargs(options, MAX_TOKENS))
        stops, count = [stop for stop in wanted.pop('until') if stop], wanted.pop('max_gen_toks')
        sampled = wanted.pop('do_sample')
        unknown = set(wanted) - {'temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty'}
        if unknown:
            raise BadInput(f'generation option {min(unknown)!r} is unknown; there are temperature, top_k, top_p, min_p, repetition_penalty')
        sampling = sample.Sampling(**wanted) if sampled else sample.Sampling(temperature=0)
        room = self.max_length - count
        if room < 1:
            raise BadInput(f'max_gen_toks {count} leaves nothing of max_length {self.max_length} for the prompt; give fewer')
        tokenizer = self.tokens

        def encode(record: Record) -> list[Features]:
            ids = opened(tokenizer, tokenizer.encode(record['text']))[-room:]
            return [{'prompt': padded(ids, size(len(ids), room)), 'length': np.int32(len(ids))}]

        def predict(apply: Apply, batch: Batch, key: Any, emit: Any = None) -> Mapping[str, Array]:
            def step(tokens: Array, cache: Any, segments: Array | None = None) -> tuple[Array, Any]:
                return apply(tokens, cache=cache, segments=segments)[0]

            cache = apply(len(batch['prompt']), batch['prompt'].shape[1] + count, method='init_cache')[0]
            settings: dict[str, Any] = {'max_tokens': count, 'sampling': sampling, 'eos_id': tokenizer.eos_id, 'emit': emit}
            return sample.generate(step, cache, batch['prompt'], batch['length'], key, **settings)

        def decode(record: Record, rows: Sequence[tuple[Features, Mapping[str, Any]]]) -> dict[str, Any]:
            ((_, arrays),) = rows
            return {'text': cut(tokenizer.decode(arrays['tokens'][: int(arrays['lengths'])]), stops)[0]}

        stream = (lambda write: Streamer(tokenizer, stops, write)) if stops else None
        return Task(
            inputs=('text',),
            features=lambda records: records,
            objective=_untrained,
            encode=encode,
            predict=predict,
            decode=decode,
            stream=stream,
        )


def _untrained(apply: Apply, batch: Batch) -> Any:
    raise BadInput('the harness evaluates; it does not train')
