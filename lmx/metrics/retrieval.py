"""How well documents are ranked for queries, as trec_eval defines it: MRR, MAP, nDCG (Järvelin and Kekäläinen 2002) and recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lmx.metrics.scores import Scores, check, mean_of


def retrieval(
    ranked: Sequence[Sequence[str]], relevant: Sequence[Mapping[str, float]], *, cutoffs: Sequence[int] = (1, 10, 100), ndcg: int = 10
) -> Scores:
    """{'mrr', 'map', 'ndcg@10', 'recall@1', 'recall@10', 'recall@100'}, means over queries, each in [0, 1].

    Args:
      ranked: for each query the names of documents, best first; 'mrr' and 'map' are over all that are given.
      relevant: for each query {name: gain}; gains of 0 and below are not relevant. A query without relevant documents scores 0.
      cutoffs: of recall; ndcg: of nDCG, whose gains are as given.
    """
    check(ranked, relevant)
    rows = [
        _query(list(names), {name: gain for name, gain in given.items() if gain > 0}, cutoffs, ndcg)
        for names, given in zip(ranked, relevant)
    ]
    return mean_of({name: [row[name] for row in rows] for name in rows[0]})


def _query(names: list[str], gains: Mapping[str, float], cutoffs: Sequence[int], ndcg: int) -> dict[str, float]:
    gain = np.array([gains.get(name, 0.0) for name in names], np.float64)
    hits = np.cumsum(gain > 0)
    places = np.flatnonzero(gain > 0)
    count = max(len(gains), 1)
    best = np.sort(np.array(list(gains.values()), np.float64))[::-1]
    return {
        'mrr': 1 / (places[0] + 1) if len(places) else 0.0,
        'map': float(np.sum(hits[places] / (places + 1))) / count,
        f'ndcg@{ndcg}': _discounted(gain[:ndcg]) / (_discounted(best[:ndcg]) or 1.0),
        **{f'recall@{k}': float(np.sum(gain[:k] > 0)) / count for k in cutoffs},
    }


def _discounted(gains: np.ndarray) -> float:
    return float(np.sum(gains / np.log2(np.arange(len(gains)) + 2)))
