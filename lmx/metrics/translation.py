"""BLEU (Papineni et al. 2002) and chrF (Popović 2015) by sacreBLEU (Post 2018, arXiv:1804.08771), in percent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmx.metrics.scores import Scores, check, joined
from lmx.types import BadInput

References = Sequence[str | Sequence[str]]


def bleu(predictions: Sequence[str], references: References, *, tokenize: str = '13a', lowercase: bool = False) -> Scores:
    """{'bleu': 0-100}, of detokenised texts.

    Args:
      references: one for each prediction, or several.
      tokenize, lowercase: as sacreBLEU has them; WMT's default.
    """
    return _of('bleu', _sacrebleu().BLEU(tokenize=tokenize, lowercase=lowercase), predictions, references)


def chrf(predictions: Sequence[str], references: References, *, word_order: int = 0) -> Scores:
    """{'chrf': 0-100}; word_order 2 is chrF++."""
    return _of('chrf', _sacrebleu().CHRF(word_order=word_order), predictions, references)


def bleu_and_chrf(predictions: Sequence[str], references: References) -> Scores:
    """Both, at their defaults."""
    return joined(bleu(predictions, references), chrf(predictions, references))


def _of(name: str, metric: Any, predictions: Sequence[str], references: References) -> Scores:
    check(predictions, references)
    several = [[each] if isinstance(each, str) else list(each) for each in references]
    most = max(map(len, several))
    streams = [[each[place] if place < len(each) else None for each in several] for place in range(most)]
    # The sums over sentences are all that the corpus' score needs, so resampling does not count n-grams anew.
    statistics = metric._extract_corpus_statistics(list(predictions), streams)

    def corpus(rows: np.ndarray) -> dict[str, float]:
        return {name: float(metric._compute_score_from_stats(rows.sum(axis=0).astype(int).tolist()).score)}

    return Scores(np.array(statistics, np.float64), corpus, {name: str(metric.get_signature())})


def _sacrebleu() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError:
        raise BadInput("BLEU and chrF need sacrebleu; `pip install 'lmx[metrics]'`") from None
    return metrics
