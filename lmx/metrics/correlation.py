"""How well predicted numbers follow given ones: Pearson's and Spearman's correlation, by SciPy."""

from __future__ import annotations

from collections.abc import Sequence

from lmx.types import BadInput


def correlation(predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """{'pearson', 'spearman'}, each in [-1, 1].

    Raises:
      BadInput: fewer than 2 pairs, or numbers that are all the same.
    """
    from scipy import stats

    if len(predictions) < 2 or len(set(predictions)) < 2 or len(set(references)) < 2:
        raise BadInput(
            f'{len(predictions)} pairs with less than two different numbers on a side have no correlation; evaluate more of them'
        )
    pearson, spearman = stats.pearsonr(predictions, references), stats.spearmanr(predictions, references)
    return {'pearson': float(pearson.statistic), 'spearman': float(spearman.statistic)}
