"""Programs judged by their tests: pass@k (Chen et al. 2021, arXiv:2107.03374, equation 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmx.metrics.scores import Scores, mean_of
from lmx.types import BadInput


def pass_at_k(passed: Sequence[Sequence[bool]], ks: Sequence[int] = (1,)) -> Scores:
    """{'pass@1': 0-1, ...}: the chance that at least one of k samples passes, the mean over problems of its unbiased estimate.

    Args:
      passed: for each problem, whether each of its samples passed.

    Raises:
      BadInput: a problem with fewer samples than k.
    """
    fewest = min(map(len, passed), default=0)
    if not ks or min(ks) < 1 or max(ks) > fewest:
        raise BadInput(
            f'pass@{max(ks, default=0)} of {fewest} samples a problem cannot be; draw more samples, or give k from 1 to {fewest}'
        )
    return mean_of({f'pass@{k}': [estimate(len(each), sum(map(bool, each)), k) for each in passed] for k in ks})


def estimate(samples: int, passed: int, k: int) -> float:
    """1 - C(samples - passed, k) / C(samples, k), without large numbers."""
    if samples - passed < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(samples - passed + 1, samples + 1)))
