"""`lmx evaluate`: the values of a checkpoint on whole splits."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lmx import metrics
from lmx.metrics.scores import interval
from lmx.run.predict import predictions
from lmx.run.restore import restore
from lmx.train import evaluate as evaluation
from lmx.train import shard
from lmx.train.log import rounded


def evaluate(
    workdir: str | os.PathLike[str],
    *,
    checkpoint: str = 'last',
    splits: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    allow: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """{split: values}, also added to `WORKDIR/eval.jsonl`; numbers, and texts that say how a score was computed.

    Args:
      splits: names under the config's data; none = those evaluated during training.
      checkpoint, config, allow: see `lmx.run.restore`.
    """
    parts, params, step = restore(workdir, checkpoint, config, allow)
    compiled = parts.jitted_eval_step()
    out = {}
    for split in splits or parts.config.evaluate:
        out[split] = evaluation.evaluate(compiled, params, _batches(parts, split), parts.eval_carry(split))
        out[split].update(_scores(parts, params, split, pathlib.Path(workdir) / 'scores' / f'{split}-{step}'))
        line = {'step': step, 'split': split, 'checkpoint': checkpoint, **out[split]}
        with open(pathlib.Path(workdir) / 'eval.jsonl', 'a') as file:
            file.write(json.dumps(rounded(line)) + '\n')
    return out


def _scores(parts: Any, params: Any, split: str, path: pathlib.Path) -> dict[str, Any]:
    """The task's scores of its predictions for every record of a split, 'NAME/low' and 'NAME/high' their 95 % intervals by the bootstrap,
    'NAME/signature' what the scorer says of itself; {} for tasks without. What was predicted goes to PATH.jsonl, the resampled scores to
    PATH.npz, by which `lmx report` pairs two runs."""
    task = parts.task
    if task.score is None:
        return {}
    records = parts.records(split)
    records = [records[index] for index in range(len(records))]
    asked = [record if task.question is None else task.question(record) for record in records]
    made = predictions(parts, params, asked, batch_size=parts.config.batch_size)
    found = task.score(made, records)
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps({'input': a, **b}, ensure_ascii=False, default=_plain) + '\n' for a, b in zip(asked, made)]
    _replace(path.with_suffix('.jsonl'), ''.join(lines).encode())
    if not isinstance(found, metrics.Scores):
        return dict(found)
    resampled = found.resampled()
    data = io.BytesIO()
    np.savez(data, records=np.array(_identity(records)), **resampled)  # type: ignore[arg-type]
    _replace(path.with_suffix('.npz'), data.getvalue())
    spans = {name: interval(values) for name, values in resampled.items()}
    ends = {f'{name}/{end}': value for name, span in spans.items() for end, value in zip(('low', 'high'), span)}
    return {**found.values(), **ends, **{f'{name}/signature': said for name, said in found.notes.items()}}


def _identity(records: Sequence[Any]) -> str:
    """A hash of what was scored, so that only scores of the same records are paired."""
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        digest.update(json.dumps(record, sort_keys=True, default=_plain).encode())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    return value.decode(errors='replace') if isinstance(value, bytes) else np.asarray(value).tolist()


def _replace(path: pathlib.Path, data: bytes) -> None:
    part = path.with_name(path.name + '.part')
    part.write_bytes(data)
    part.replace(path)


def _batches(parts: Any, split: str) -> Iterator[Any]:
    from tqdm import tqdm

    for batch in tqdm(parts.eval_batches(split), desc=split, unit='batch', leave=False):
        yield shard.put_batch(batch, parts.mesh)
