"""Which of several texts is the likeliest: by log-likelihood alone, or by length too (Brown et al. 2020, arXiv:2005.14165, section 2.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmx.metrics import scores

LENGTHS = ('none', 'characters', 'bytes', 'tokens')
"""What a log-likelihood may be divided by, for one choice."""


def normalised(made: Mapping[str, Any], texts: Sequence[str], kind: str) -> np.ndarray:
    """The log-likelihood of each choice by its length, float64 [choices].

    Args:
      made: 'logprobs', nats, and 'tokens' of each choice.
      texts: the choices.
      kind: of `LENGTHS`.
    """
    lengths = {
        'none': lambda: [1 for _ in texts],
        'characters': lambda: [len(text) for text in texts],
        'bytes': lambda: [len(text.encode()) for text in texts],
        'tokens': lambda: made['tokens'],
    }
    return np.array(made['logprobs'], np.float64) / np.maximum(lengths[kind](), 1)


def accuracies(predictions: Sequence[Mapping[str, Any]], texts: Sequence[Sequence[str]], right: Sequence[int], kind: str) -> scores.Scores:
    """'accuracy' by plain log-likelihoods, and 'accuracy_normalised' by length, in characters where `kind` is 'none': acc and acc_norm of
    lm-evaluation-harness. The arguments are those of `normalised`, and the number of each right choice."""
    kinds = {'accuracy': 'none', 'accuracy_normalised': 'characters' if kind == 'none' else kind}
    cases = list(zip(predictions, texts, right, strict=True))
    return scores.mean_of(
        {name: [float(normalised(made, of, by).argmax() == best) for made, of, best in cases] for name, by in kinds.items()}
    )
