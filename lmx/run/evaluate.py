"""`lmx evaluate`: the values of a checkpoint on whole splits."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
) -> dict[str, dict[str, float]]:
    """{split: values}, also added to `WORKDIR/eval.jsonl`.

    Args:
      splits: names under the config's data; none = those evaluated during training.
      checkpoint, config, allow: see `lmx.run.restore`.
    """
    parts, params, step = restore(workdir, checkpoint, config, allow)
    compiled = parts.jitted_eval_step()
    out = {}
    for split in splits or parts.config.evaluate:
        out[split] = evaluation.evaluate(compiled, params, _batches(parts, split), parts.eval_carry(split))
        out[split].update(_scores(parts, params, split))
        line = {'step': step, 'split': split, 'checkpoint': checkpoint, **out[split]}
        with open(pathlib.Path(workdir) / 'eval.jsonl', 'a') as file:
            file.write(json.dumps(rounded(line)) + '\n')
    return out


def _scores(parts: Any, params: Any, split: str) -> dict[str, float]:
    """The task's scores of its predictions for every record of a split; {} for tasks without."""
    task = parts.task
    if task.score is None:
        return {}
    records = parts.records(split)
    records = [records[index] for index in range(len(records))]
    asked = [record if task.question is None else task.question(record) for record in records]
    return task.score(predictions(parts, params, asked, batch_size=parts.config.batch_size), records)


def _batches(parts: Any, split: str) -> Iterator[Any]:
    from tqdm import tqdm

    for batch in tqdm(parts.eval_batches(split), desc=split, unit='batch', leave=False):
        yield shard.put_batch(batch, parts.mesh)
