"""Scores of a whole corpus with their uncertainty: the bootstrap (Efron 1979; for BLEU, Koehn 2004)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmx import rng
from lmx.types import BadInput

COUNT = 1000


@dataclasses.dataclass(frozen=True)
class Scores:
    """What is known of every example, and what makes the corpus' scores of it.

    Attributes:
      statistics: float64 [N, S], a row per example.
      corpus: rows of any choice of examples -> {name: value}.
      notes: how it was computed, as sacreBLEU's signature.
    """

    statistics: np.ndarray
    corpus: Callable[[np.ndarray], dict[str, float]]
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """The scores of all examples."""
        return self.corpus(self.statistics)

    def resampled(self, count: int = COUNT, seed: int = 0) -> dict[str, np.ndarray]:
        """The scores of `count` corpora of N examples drawn with replacement, float64 [count] each.

        Which are drawn depends on N, count and seed alone, so that two systems' values on the same examples come in pairs.
        """
        size = len(self.statistics)
        draws = (rng.numpy_rng(seed, 'bootstrap', index).integers(0, size, size) for index in range(count))
        rows = [self.corpus(self.statistics[drawn]) for drawn in draws]
        return {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}


def mean_of(columns: Mapping[str, Sequence[float]], scale: float = 1.0, **notes: str) -> Scores:
    """Scores that are means over examples, times `scale`.

    Raises:
      BadInput: there is no example.
    """
    names = list(columns)
    rows = np.stack([np.asarray(columns[name], np.float64) for name in names], axis=1)
    if not len(rows):
        raise BadInput('there is nothing to score; give at least one example')
    return Scores(rows, lambda rows: dict(zip(names, (scale * rows.mean(axis=0)).tolist())), notes)


def joined(*parts: Scores) -> Scores:
    """Several scores of the same examples as one."""
    ends = np.cumsum([part.statistics.shape[1] for part in parts])
    spans = [slice(end - part.statistics.shape[1], end) for part, end in zip(parts, ends)]

    def corpus(rows: np.ndarray) -> dict[str, float]:
        return {name: value for part, span in zip(parts, spans) for name, value in part.corpus(rows[:, span]).items()}

    return Scores(
        np.concatenate([part.statistics for part in parts], axis=1), corpus, {k: v for part in parts for k, v in part.notes.items()}
    )


def interval(resampled: Any, confidence: float = 0.95) -> tuple[float, float]:
    """The percentile interval of resampled values; (nan, nan) where a value is not a number."""
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.asarray(resampled, np.float64), [tail, 100 - tail])
    return float(low), float(high)


def paired(ours: Any, theirs: Any, confidence: float = 0.95) -> dict[str, float]:
    """Whether two systems differ, from the values of one score on the same resampled corpora (Koehn 2004, section 4).

    Returns:
      'difference' (ours - theirs, mean), 'low' and 'high' (its interval), 'p': twice the smaller share of corpora on which one of the two
      is not ahead, at most 1.
    """
    gap = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    low, high = interval(gap, confidence)
    p = 2 * min(np.mean(gap <= 0), np.mean(gap >= 0))
    return {'difference': float(gap.mean()), 'low': low, 'high': high, 'p': float(min(p, 1))}


def shown(value: float) -> str:
    """A score as a person reads it: four decimals, or four digits where a loss has gone through the roof."""
    return f'{value:.4f}' if abs(value) < 1e6 else f'{value:.3e}'


def check(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    """Raises:
    BadInput: nothing to score, or not one reference (or list of references) for each prediction.
    """
    if len(predictions) != len(references) or not len(predictions):
        raise BadInput(f'{len(predictions)} predictions and {len(references)} references; give as many of each, and at least one')
