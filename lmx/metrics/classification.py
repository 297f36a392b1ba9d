"""Scores of labels (by scikit-learn's definitions) and of numbers (by SciPy's), as GLUE reports them (Wang et al. 2018, arXiv:1804.07461)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from lmx.metrics.scores import Scores, check
from lmx.types import BadInput


def classification(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> Scores:
    """{'accuracy', 'macro_f1' in [0, 1], 'matthews' in [-1, 1]}; the last is Matthews' correlation for any number of classes (Gorodkin 2004).

    The F1 of a label that is neither predicted nor true counts as no label at all; the correlation of constant labels is 0.
    """
    check(predictions, references)
    labels = {label: number for number, label in enumerate(sorted({*predictions, *references}, key=str))}
    rows = np.array([[labels[a], labels[b]] for a, b in zip(predictions, references)], np.float64)
    return Scores(rows, lambda rows: _of_confusion(_confusion(rows.astype(np.int64), len(labels))))


def _confusion(rows: np.ndarray, size: int) -> np.ndarray:
    """[true, predicted] counts."""
    return np.bincount(rows[:, 1] * size + rows[:, 0], minlength=size * size).reshape(size, size).astype(np.float64)


def _of_confusion(counts: np.ndarray) -> dict[str, float]:
    right, true, made, total = np.diag(counts), counts.sum(1), counts.sum(0), counts.sum()
    seen = (true + made) > 0
    spread = np.sqrt((total**2 - made @ made) * (total**2 - true @ true))
    return {
        'accuracy': float(right.sum() / total),
        'macro_f1': float(np.mean(2 * right[seen] / (true + made)[seen])),
        'matthews': float((right.sum() * total - true @ made) / spread) if spread else 0.0,
    }


def correlation(predictions: Sequence[float], references: Sequence[float]) -> Scores:
    """{'pearson', 'spearman'}, each in [-1, 1]; nan where all numbers of a side are the same.

    Raises:
      BadInput: fewer than 2 pairs, or numbers that are all the same.
    """
    check(predictions, references)
    if len(predictions) < 2 or len(set(predictions)) < 2 or len(set(references)) < 2:
        raise BadInput(
            f'{len(predictions)} pairs with less than two different numbers on a side have no correlation; evaluate more of them'
        )
    return Scores(np.stack([np.asarray(predictions, np.float64), np.asarray(references, np.float64)], axis=1), _correlations)


def _correlations(rows: np.ndarray) -> dict[str, float]:
    from scipy import stats

    ranks = stats.rankdata(rows, axis=0)
    return {'pearson': _pearson(*rows.T), 'spearman': _pearson(*ranks.T)}


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size else float('nan')
