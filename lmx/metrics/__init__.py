"""Thin wrappers over the reference scorers, one file per application: (predictions, references) -> `scores.Scores`."""

from lmx.metrics import baselines, compression
from lmx.metrics.answers import exact, final_number, squad
from lmx.metrics.classification import classification, correlation
from lmx.metrics.code import pass_at_k
from lmx.metrics.entities import entities
from lmx.metrics.retrieval import retrieval
from lmx.metrics.scores import Scores
from lmx.metrics.summarization import rouge
from lmx.metrics.translation import bleu, bleu_and_chrf, chrf

__all__ = [
    'Scores',
    'baselines',
    'bleu',
    'bleu_and_chrf',
    'chrf',
    'classification',
    'compression',
    'correlation',
    'entities',
    'exact',
    'final_number',
    'pass_at_k',
    'retrieval',
    'rouge',
    'squad',
]
