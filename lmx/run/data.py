"""`lmx data`: what the pipeline makes of the data, stage by stage, and the exact batch of any step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lmx import spec
from lmx.data import pipeline, transforms
from lmx.run.parts import Parts
from lmx.types import BadInput


def data(config: Mapping[str, Any], *, step: int | None = None, examples: int = 2) -> str:
    """The pipeline of a config as text; with `step`, the batch that the update after `step` - 1 others sees, and its hash.

    Args:
      step: as logged: the batch of the line of `metrics.jsonl` with this step, counted from 1.
      examples: how many to decode.

    Raises:
      BadInput: the data cannot be had, or there is no such step.
    """
    parts = Parts(config)
    if step is not None:
        return '\n'.join(_step(parts, step, examples))
    return '\n'.join(line for split in parts.config.data for line in _split(parts, split, examples))


def prepare(config: Mapping[str, Any]) -> str:
    """Downloads and prepares everything that training needs, for nodes without a network: data sets, tokenizer, token caches."""
    parts = Parts(config)
    return '\n'.join(f'{split}: {len(parts.features(split)):,} examples ready' for split in parts.config.data)


def _split(parts: Parts, split: str, examples: int) -> Iterator[str]:
    records = parts.records(split)
    yield f'{split}'
    yield from _cleaning(parts, split)
    yield f'  records   {len(records):,}: {_shorten(records[0])}'
    features = parts.features(split)
    yield f'  features  {len(features):,}: {_shapes(features[0])}'
    rows = [features[index] for index in np.linspace(0, len(features) - 1, min(len(features), 200)).astype(int)]
    padding = 1 - np.mean([np.mean(np.asarray(row['weights']) > 0) for row in rows])
    yield f'  batch     {parts.config.batch_size} examples a step; weight 0 (padding and context): {padding:.1%}'
    yield from _decoded(parts, rows[:examples])


def _cleaning(parts: Parts, split: str) -> Iterator[str]:
    """How many records each cleaning step leaves, where the config has any."""
    path = f'data.{split}'
    node = spec.get(parts.config, path)
    if node.get(spec.CALL) != spec.name_of(transforms.apply):
        return
    records = parts.builder(f'{path}.source')
    yield f'  source    {len(records):,}'
    for step, named in zip(parts.builder(f'{path}.steps'), node.steps):
        records = step(records)
        yield f'  cleaned   {len(records):,} after {named[spec.CALL].partition(":")[2]}'


def _step(parts: Parts, step: int, examples: int) -> Iterator[str]:
    if step < 1:
        raise BadInput(f'--step={step}: steps count from 1, as in metrics.jsonl')
    batches = pipeline.train_batches(parts.features('train'), batch_size=parts.config.batch_size, seed=parts.order())
    batch = batches(step - 1)
    yield f'step {step}: batch_hash {pipeline.batch_hash(batch)}'
    yield f'  {_shapes(batch)}'
    yield from _decoded(
        parts, [{name: array[row] for name, array in batch.items()} for row in range(min(examples, parts.config.batch_size))]
    )


def _decoded(parts: Parts, rows: list[Any]) -> Iterator[str]:
    if parts.task.describe is not None:
        for row in rows:
            yield f'  example   {parts.task.describe(row)[:300]!r}'


def _shapes(features: Mapping[str, Any]) -> str:
    return ', '.join(f'{name} {list(np.shape(value))} {np.asarray(value).dtype}' for name, value in features.items())


def _shorten(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value[:80] + '...' if isinstance(value, str) and len(value) > 80 else value for key, value in record.items()}
