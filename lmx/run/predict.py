"""`lmx predict`: the task's own prediction for what a person types or hands over in a file."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lmx.run.restore import restore
from lmx.spec import nearest
from lmx.train.state import bind
from lmx.types import BadInput, Features, Record, Task


def predict(
    workdir: str | os.PathLike[str],
    inputs: str | Record | Sequence[str | Record],
    *,
    checkpoint: str = 'last',
    config: Mapping[str, Any] | None = None,
    allow: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 16,
    skip_bad: bool = False,
    write: Callable[[int, str], None] | None = None,
    draft: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """One prediction per input, in the inputs' order.

    Args:
      inputs: a text, a record with the task's inputs, or several of either.
      checkpoint, config, allow: see `lmx.run.restore`; config changes the sampling (`config.task.temperature = 0`).
      seed: of the sampling; input i draws from a stream of its own, whatever it is batched with.
      batch_size: inputs predicted together.
      skip_bad: an input that cannot be read gets {'error': why} for its prediction, and the rest goes on.
      write: (index, text) -> None gets text as it is made, one input at a time.
      draft: the workdir of a smaller run with the same tokenizer, which proposes what this one says; see `lmx.decode.speculative`.

    Raises:
      BadInput: an empty or too long input, one of unknown tokens alone, a record without a field, a task that predicts nothing.
    """
    parts, params, _ = restore(workdir, checkpoint, config, allow)
    single = isinstance(inputs, (str, Mapping))
    options: dict[str, Any] = {'seed': seed, 'batch_size': 1 if write else batch_size, 'skip_bad': skip_bad, 'write': write}
    if draft is not None:
        options['draft'] = _draft(parts, draft, allow)
    options['tokenizer'] = parts.builder('tokenizer') if 'tokenizer' in parts.config else None
    return predictions(parts, params, [inputs] if single else inputs, **options)


def _draft(parts: Any, workdir: str | os.PathLike[str], allow: Sequence[str]) -> tuple[Any, Any]:
    """(parts, parameters) of the run that proposes."""
    theirs, params, _ = restore(workdir, allow=allow)
    if theirs.builder('tokenizer').fingerprint != parts.builder('tokenizer').fingerprint:
        raise BadInput(f'the draft {workdir} has another tokenizer; proposals need the same one')
    if 'draft' not in inspect.signature(parts.task.predict).parameters:
        raise BadInput(f'the task {parts.config.task.call} takes no draft')
    return theirs, params


def predictions(
    parts: Any,
    params: Any,
    inputs: Sequence[Any],
    *,
    seed: int = 0,
    batch_size: int = 16,
    skip_bad: bool = False,
    write: Callable[[int, str], None] | None = None,
    task: Task | None = None,
    draft: tuple[Any, Any] | None = None,
    predictor: Predictor | None = None,
    tokenizer: Any = None,
) -> list[dict[str, Any]]:
    """As `predict`, with a run that is already open, and a draft that is; by its own task or another.

    Args:
      predictor: one that was made for these parts, parameters and task, whose programs are compiled already.
      tokenizer: refuses inputs in which it knows nothing; None = nothing is refused, as where a whole data set is evaluated.
    """
    task = parts.task if task is None else task
    if task.encode is None or task.predict is None or task.decode is None:
        raise BadInput(f'the task {parts.config.task.call} makes no predictions')
    records: dict[int, Record] = {}
    errors: dict[int, str] = {}
    windows: list[tuple[int, Features]] = []
    for index, item in enumerate(inputs):
        try:
            record = _record(task, item, index)
            found = _encode(task, record, index)
            if tokenizer is not None:
                _check_known(tokenizer, task, record, index)
            windows += [(index, features) for features in found]
            records[index] = record
        except BadInput as error:
            if not skip_bad:
                raise
            errors[index] = str(error)
    run = predictor or Predictor(parts, params, seed, task, draft)
    made: dict[int, list[tuple[Features, Any]]] = {index: [] for index in records}
    from tqdm import tqdm

    with tqdm(total=len(windows), unit='input', leave=False, disable=write is not None or len(windows) <= batch_size) as bar:
        for group in _batches(windows, batch_size):
            arrays = run(group, write)
            for row, (index, features) in enumerate(group):
                made[index].append((features, {name: array[row] for name, array in arrays.items()}))
            bar.update(len(group))
    said = {index: task.decode(record, made[index]) for index, record in records.items()}
    return [said[index] if index in said else {'error': errors[index]} for index in range(len(inputs))]


class Predictor:
    """The compiled prediction: one compilation for every shape of features."""

    def __init__(self, parts: Any, params: Any, seed: int, task: Task, draft: tuple[Any, Any] | None = None):
        self.parts, self.key, self.task = parts, jax.random.key(seed), task
        self.draft, self.params = draft and draft[0], (params, draft and draft[1])
        self.listener: Callable[[Any], Any] | None = None
        self.compiled = {listening: jax.jit(self._trace(listening)) for listening in (False, True)}

    def _trace(self, listening: bool) -> Callable[..., Any]:
        emit = (lambda tokens: self.listener(tokens)) if listening else None  # type: ignore[misc]

        def run(params: Any, batch: Any, indices: Any) -> Any:
            own, drafts = params
            model = self.parts.make(self.parts.values)[0]
            extra = {} if self.draft is None else {'draft': bind(self.draft.make(self.draft.values)[0], drafts)}
            keys = jax.vmap(lambda index: jax.random.fold_in(self.key, index))(indices)
            assert self.task.predict is not None
            return self.task.predict(bind(model, own), batch, keys, emit, **extra)

        return run

    def __call__(self, group: Sequence[tuple[int, Features]], write: Callable[[int, str], None] | None) -> dict[str, np.ndarray]:
        indices = [index for index, _ in group]
        stream = None if self.draft is not None else self.task.stream  # whole rounds are said at once
        self.listener = stream and stream(write and (lambda row, text: write(indices[row], text)))
        batch = {name: np.stack([features[name] for _, features in group]) for name in group[0][1]}
        out = jax.device_get(self.compiled[self.listener is not None](self.params, batch, np.array(indices, np.int32)))
        if self.listener is not None and hasattr(self.listener, 'finish'):
            self.listener.finish()
        return out


def _record(task: Task, item: Any, index: int) -> Record:
    if isinstance(item, str):
        first, *others = task.inputs
        if not others:
            return {first: item}
        item = _fields(item)
        if item is None:
            wanted = ', '.join(f'"{name}": ...' for name in task.inputs)
            raise BadInput(f'input {index + 1} is a bare text; this task needs records, {{{wanted}}}')
    for name in task.inputs:
        if name not in item:
            raise BadInput(f'input {index + 1} has no field {name!r}{nearest(name, list(item))}; this task needs {", ".join(task.inputs)}')
    return item


def _fields(text: str) -> Record | None:
    """A record that is written as JSON; None where it is none."""
    with contextlib.suppress(json.JSONDecodeError):
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    return None


def _encode(task: Task, record: Record, index: int) -> Sequence[Features]:
    assert task.encode is not None
    try:
        return task.encode(record)
    except BadInput as error:
        raise BadInput(f'input {index + 1}: {error}') from None


def _check_known(tokenizer: Any, task: Task, record: Record, index: int) -> None:
    """Whatever a model says to nothing, or to nothing that it knows, means nothing."""
    texts = [record[name] for name in task.inputs]
    if not all(isinstance(text, str) for text in texts):
        return
    ids = np.concatenate([tokenizer.encode(text) for text in texts])
    if not len(ids):
        raise BadInput(f'input {index + 1}: the text is empty; give at least one word')
    if tokenizer.unk_id is not None and (ids == tokenizer.unk_id).all():
        raise BadInput(
            f'input {index + 1}: {" ".join(texts)[:40]!r} is nothing but unknown tokens to this run; it was trained on other text'
        )


def _batches(windows: Sequence[tuple[int, Features]], size: int) -> Iterable[list[tuple[int, Features]]]:
    """Groups of up to `size` windows of one shape; the order within a shape is kept."""

    def shape(window: tuple[int, Features]) -> Any:
        return tuple((name, np.shape(value)) for name, value in sorted(window[1].items()))

    for _, same in itertools.groupby(sorted(windows, key=lambda window: str(shape(window))), key=shape):
        same = list(same)
        yield from (same[start : start + size] for start in range(0, len(same), size))


def read_inputs(path: str | os.PathLike[str], skip_bad: bool = False) -> list[Any]:
    """Inputs from a file: one JSON text or record per line (.jsonl), or one text per line.

    Args:
      skip_bad: leave broken lines out, each named on stderr.

    Raises:
      BadInput: no such file, an empty one, or a broken line (its number is named).
    """
    file = pathlib.Path(path)
    if not file.exists():
        raise BadInput(f'there is no file {path}')
    content = file.read_text()
    if not content:
        raise BadInput(f'{path} is empty')
    lines = content.removesuffix('\n').split('\n')  # not splitlines: JSON text may hold U+2028 and its like
    if file.suffix != '.jsonl':
        return lines
    out = []
    for number, line in enumerate(lines, 1):
        try:
            out.append(_json(path, number, line))
        except BadInput as error:
            if not skip_bad:
                raise
            print(f'lmx: left out: {error}', file=sys.stderr)
    return out


def _json(path: Any, number: int, line: str) -> Any:
    with contextlib.suppress(json.JSONDecodeError):
        value = json.loads(line)
        if isinstance(value, (str, dict)):
            return value
    raise BadInput(f'{path}:{number} is neither a JSON text nor a JSON record: {line[:60]!r}')


def write_outputs(path: str | os.PathLike[str], inputs: Sequence[Any], outputs: Sequence[Mapping[str, Any]]) -> None:
    """JSONL, one line per input in order; the file appears whole or not at all, and an existing one is not overwritten.

    Raises:
      BadInput: the file exists.
    """
    target = pathlib.Path(path)
    if target.exists():
        raise BadInput(f'{path} exists; give another --output')
    part = target.with_name(target.name + '.part')
    part.write_text(''.join(json.dumps({'input': a, **b}, ensure_ascii=False) + '\n' for a, b in zip(inputs, outputs)))
    part.rename(target)
