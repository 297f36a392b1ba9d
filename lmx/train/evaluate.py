"""Evaluation: every example exactly once, sums added up in float64 on the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from lmx.types import Batch, Mean, Sums


def evaluate(step: Callable[..., Any], params: Any, batches: Iterable[Batch], carry: Any = ()) -> dict[str, float]:
    """The report over all batches; see `gather`."""
    return report({name: Mean(*value) for name, value in gather(step, params, batches, carry).items()})


def gather(step: Callable[..., Any], params: Any, batches: Iterable[Batch], carry: Any = ()) -> dict[str, np.ndarray]:
    """{name: (total, count), float64} over all batches; the sum of one batch is read while the next one runs.

    Args:
      step: (params, batch) -> Sums; with a carry, (params, batch, carry) -> (Sums, the next carry). Sums of arrays [S] give arrays [2, S].
      carry: recurrent state before the first batch.
    """
    total: dict[str, np.ndarray] = {}
    pending = None
    for batch in batches:
        if jax.tree.leaves(carry):
            sums, carry = step(params, batch, carry)
        else:
            sums = step(params, batch)
        _add(total, pending)
        pending = sums
    _add(total, pending)
    return total


def _add(total: dict[str, np.ndarray], sums: Sums | None) -> None:
    for name, mean in jax.device_get(sums or {}).items():
        total[name] = total.get(name, 0.0) + np.asarray(mean, np.float64)


def report(sums: Mapping[str, Mean]) -> dict[str, float]:
    """Sums as numbers: every mean by its name, 'loss' = the sum of all losses, and 'perplexity' = exp(nll) where there is an 'nll'.
    A metric that counted nothing (words, in text without any) is left out."""
    counted = {name: mean for name, mean in sums.items() if float(mean.count) or name.startswith('loss/')}
    means = {name: float(mean.total) / float(mean.count) if float(mean.count) else math.nan for name, mean in counted.items()}
    out = {'loss': sum(value for name, value in means.items() if name.startswith('loss/'))}
    losses = [name for name in means if name.startswith('loss/')]
    out.update({name: value for name, value in means.items() if name not in losses or len(losses) > 1})
    for name, perplexity in (('nll', 'perplexity'), ('word_nats', 'word_perplexity')):
        if name in means:
            out[perplexity] = math.exp(min(means[name], 700.0))
    out.pop('word_nats', None)
    return out
