"""Answers to questions: exact match and F1 of words by SQuAD's rules (Rajpurkar et al. 2016, arXiv:1606.05250), and the last number of a text."""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Sequence

from lmx.metrics.scores import Scores, check, mean_of

_NUMBER = re.compile(r'-?\d[\d,]*(?:\.\d+)?|-?\.\d+')


def squad(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> Scores:
    """{'exact_match', 'f1'}, in percent; the best over all true answers. No answer, given or true, is '' or an empty list (SQuAD 2)."""
    check(predictions, references)
    several = [([given] if isinstance(given, str) else list(given)) or [''] for given in references]
    pairs = [[(normalized(made), normalized(one)) for one in given] for made, given in zip(predictions, several)]
    columns = {
        'exact_match': [max(float(a == b) for a, b in pair) for pair in pairs],
        'f1': [max(_f1(a.split(), b.split()) for a, b in pair) for pair in pairs],
    }
    return mean_of(columns, 100.0)


def normalized(text: str) -> str:
    """Lower case without punctuation, articles and superfluous blanks."""
    text = ''.join(character for character in text.lower() if character not in string.punctuation)
    return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def _f1(made: list[str], given: list[str]) -> float:
    if not made or not given:
        return float(made == given)
    shared = sum((collections.Counter(made) & collections.Counter(given)).values())
    return 2 * shared / (len(made) + len(given))


def final_number(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """{'exact_match': 0-1}: whether the last number of the prediction is that of the reference, as gsm8k is scored
    (Cobbe et al. 2021, arXiv:2110.14168: '#### 42')."""
    check(predictions, references)
    return mean_of(
        {'exact_match': [last_number(a) is not None and last_number(a) == last_number(b) for a, b in zip(predictions, references)]}
    )


def last_number(text: str) -> float | None:
    """The last number in a text ('$1,250.00.' -> 1250.0); None where there is none."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(',', '')) if found else None


def exact(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """{'exact_match': 0-1}: the share of predictions that are the reference, but for blanks around them."""
    check(predictions, references)
    return mean_of({'exact_match': [made.strip() == given.strip() for made, given in zip(predictions, references)]})
