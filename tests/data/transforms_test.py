"""Cleaning: what each step changes and keeps, and that near duplicates are those by exact Jaccard similarity."""

import numpy as np
import pytest

from lmx.data import sources, transforms
from lmx.types import BadInput


def texts(records, *steps):
    dataset = transforms.apply(source=sources.in_memory(records=[{'text': text} for text in records]), steps=steps)
    return [dataset[index]['text'] for index in range(len(dataset))]


def test_each_step():
    assert texts(['Cafe\u0301'], transforms.normalize()) == ['Café']
    assert texts(['ﬁne'], transforms.normalize(form='NFKC')) == ['fine']
    assert texts([' a \t b \n\n\n\n c '], transforms.collapse_whitespace()) == ['a b\n\nc']
    assert texts(['', 'ab', 'abcd'], transforms.length(min_chars=1, max_chars=3)) == ['ab']
    assert texts(['x', 'y', 'x', 'z', 'y'], transforms.deduplicate()) == ['x', 'y', 'z']


def test_words_become_a_text_beside_them():
    made = transforms.joined(field='words')(sources.in_memory(records=[{'words': ['Ada', 'wrote', '.'], 'tags': [1, 0, 0]}]))
    assert made[0] == {'words': ['Ada', 'wrote', '.'], 'tags': [1, 0, 0], 'text': 'Ada wrote .'}


def test_steps_run_in_order():
    assert texts(['a  b', 'a b'], transforms.collapse_whitespace(), transforms.deduplicate()) == ['a b']
    assert texts(['a  b', 'a b'], transforms.deduplicate(), transforms.collapse_whitespace()) == ['a b', 'a b']


def test_near_duplicates_equal_the_exact_ones_at_high_and_low_similarity():
    rng = np.random.default_rng(0)
    base = [rng.integers(0, 5000, 120).tolist() for _ in range(40)]
    varied = []
    for words in base:
        varied.append(words)
        for changes in (1, 80):  # similarity about 0.92 and below 0.1
            copy = list(words)
            for place in rng.choice(120, changes, replace=False):
                copy[place] = int(rng.integers(5000, 9000))
            varied.append(copy)
    given = [' '.join(map(str, words)) for words in varied]
    kept = texts(given, transforms.near_duplicates(threshold=0.8))
    assert kept == [text for index, text in enumerate(given) if index % 3 != 1]


def test_refusals():
    with pytest.raises(BadInput, match='left none of 1'):
        texts(['x'], transforms.length(min_chars=9))
    with pytest.raises(BadInput, match="no field 'body'"):
        texts(['x'], transforms.deduplicate(field='body'))
    with pytest.raises(BadInput, match='NFX'):
        transforms.normalize(form='NFX')
