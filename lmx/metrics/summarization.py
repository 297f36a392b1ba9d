"""ROUGE (Lin 2004) by Google's rouge_score, F1 in percent."""

from __future__ import annotations

from collections.abc import Sequence

from lmx.metrics.scores import Scores, check, mean_of
from lmx.types import BadInput

KINDS = ('rouge1', 'rouge2', 'rougeL', 'rougeLsum')


def rouge(predictions: Sequence[str], references: Sequence[str | Sequence[str]], *, stemmer: bool = True) -> Scores:
    """{'rouge1', 'rouge2', 'rougeL', 'rougeLsum': 0-100}; of several references the one that is matched best.

    Args:
      stemmer: compare words by their stems (Porter's), as published figures mostly do.

    'rougeLsum' takes sentences to be lines, as the published figures of summaries of several sentences do.
    """
    check(predictions, references)
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        raise BadInput("ROUGE needs rouge_score; `pip install 'lmx[metrics]'`") from None
    scorer = rouge_scorer.RougeScorer(KINDS, use_stemmer=stemmer)
    found = [scorer.score_multi([given] if isinstance(given, str) else list(given), made) for made, given in zip(predictions, references)]
    return mean_of({kind: [each[kind].fmeasure for each in found] for kind in KINDS}, 100.0, rouge=f'rouge_score|stemmer:{stemmer}')
