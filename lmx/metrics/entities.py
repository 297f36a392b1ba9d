"""Named entities by whole spans, as CoNLL-2003's script counts them (Tjong Kim Sang and De Meulder 2003, arXiv:cs/0306050)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmx.metrics.scores import Scores, check
from lmx.types import BadInput


def entities(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> Scores:
    """{'precision', 'recall', 'f1'} in [0, 1], over the spans of all texts, from tags B-X, I-X and O.

    An I- behind O or behind another kind begins a span, as in the script.

    Raises:
      BadInput: texts of different lengths.
    """
    check(predictions, references)
    rows = []
    for number, (made, given) in enumerate(zip(predictions, references), 1):
        if len(made) != len(given):
            raise BadInput(f'text {number} has {len(made)} predicted tags and {len(given)} true ones; give a tag for each word')
        ours, theirs = spans(made), spans(given)
        rows.append((len(ours & theirs), len(ours), len(theirs)))
    return Scores(np.array(rows, np.float64), _of_counts)


def spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """{(kind, first word, word behind the last)}; tags that are neither B-KIND nor I-KIND are outside."""
    found, start, kind = set(), 0, ''
    for place, tag in enumerate([*tags, 'O']):
        mark, _, name = tag.partition('-')
        name = name if mark in ('B', 'I') else ''
        if kind and (mark != 'I' or name != kind):
            found.add((kind, start, place))
            kind = ''
        if name and not kind:
            start, kind = place, name
    return found


def _of_counts(rows: np.ndarray) -> dict[str, float]:
    right, made, true = rows.sum(axis=0).tolist()
    return {
        'precision': right / made if made else 0.0,
        'recall': right / true if true else 0.0,
        'f1': 2 * right / (made + true) if made + true else 0.0,
    }
