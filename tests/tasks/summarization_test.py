"""Summaries by choosing sentences, and the baseline that takes the first."""

import numpy as np
import pytest

from lmx import tasks, text
from lmx.data import sources
from lmx.metrics.baselines import lead
from lmx.text.sentences import sentences
from lmx.types import BadInput

TEXT = 'Cats sleep a lot. Cats sleep by day!\nThe stock fell? Cats eat'


def task(**keywords):
    tokenizer = text.wordpiece(source=sources.in_memory(records=[{'text': TEXT}] * 3), vocab_size=80)
    return tasks.extractive_summarization(tokenizer=tokenizer, max_length=12, **keywords)


def test_sentences():
    assert sentences(TEXT) == ['Cats sleep a lot.', 'Cats sleep by day!', 'The stock fell?', 'Cats eat']
    assert sentences(' \n ') == []


def test_the_sentences_nearest_to_the_middle_are_taken_in_order():
    made = task(count=2)
    vectors = np.array([[1.0, 0.2], [1.0, 0.0], [0.0, 1.0], [0.9, 0.1]], np.float32)
    features = made.encode({'text': TEXT})
    assert [int(each['side']) for each in features] == [0, 1, 2, 3]
    found = made.decode({'text': TEXT}, [(each, {'vectors': vectors[int(each['side'])]}) for each in features])
    nearness = vectors @ vectors.mean(axis=0)
    best = sorted(np.argsort(-nearness)[:2].tolist())
    assert found['sentences'] == best
    assert found['text'] == ' '.join(sentences(TEXT)[place] for place in best)
    assert made.score([found], [{'summary': found['text']}]).values()['rouge1'] == pytest.approx(100)
    with pytest.raises(BadInput, match='the text is empty'):
        made.encode({'text': ' '})


def test_the_lead_is_the_first_sentence():
    records = sources.in_memory(records=[{'text': TEXT, 'summary': 'cats sleep a lot'}])
    assert lead(source=records)['lead 1, rouge1'] == pytest.approx(100)
    assert lead(source=records, count=2)['lead 2, rouge1'] < 100
