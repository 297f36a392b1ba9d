"""A choice by likelihood: against sums over the whole vocabulary, examples before the question, and a run that learns to choose."""

import functools

import jax
import numpy as np
import pytest

from lmx import models, rng, tasks, text
from lmx.data import sources
from lmx.data.continuations import split, windows
from lmx.tasks.likelihood import logprobs
from lmx.train.state import bind
from lmx.types import BadInput

RECORDS = [
    {'question': '1+1', 'choices': ['2', '13', '4'], 'answer': '2'},
    {'question': '2+2', 'choices': ['5', '4'], 'answer': 1},
    {'question': '3+3', 'choices': ['6', '77', '888'], 'answer': 0},
]


@functools.cache
def tokenizer():
    return text.byte_level()


@functools.cache
def model():
    made = models.gpt(vocab_size=tokenizer().vocab_size, dim=16, num_layers=2, num_heads=2, max_length=48)
    params = made.init(jax.random.key(0), np.zeros((1, 8), np.int32))['params']
    noise = rng.numpy_rng(0, 'noise')
    return bind(made, jax.tree.map(lambda x: x + 0.3 * noise.normal(size=x.shape).astype(np.float32), params))


def task(**keywords):
    return tasks.multiple_choice(tokenizer=tokenizer(), max_length=48, **keywords)


def predicted(made, record):
    rows = made.encode(record)
    return made.decode(record, [(row, {k: v[0] for k, v in made.predict(model(), _batch(row), None).items()}) for row in rows])


def _batch(row):
    return {name: np.asarray(value)[None] for name, value in row.items()}


def by_hand(context: str, continuation: str) -> tuple[float, bool]:
    ids = np.concatenate([tokenizer().encode(context), tokenizer().encode(continuation)])[None]
    table = np.asarray(jax.nn.log_softmax(model()(ids)[0][0][0]))
    places = range(len(context.encode()) - 1, ids.shape[1] - 1)
    own = [table[place, ids[0, place + 1]] for place in places]
    return float(sum(own)), all(table[place].argmax() == ids[0, place + 1] for place in places)


def test_log_likelihoods_are_sums_over_the_continuation():
    for record in RECORDS:
        found = predicted(task(), record)
        wanted = [by_hand(f'{record["question"]}\nAnswer:', f' {choice}')[0] for choice in record['choices']]
        np.testing.assert_allclose(found['logprobs'], wanted, rtol=1e-5)  # float32
        assert found['choice'] == record['choices'][int(np.argmax(wanted))]
        assert found['tokens'] == [len(choice) + 1 for choice in record['choices']]
        np.testing.assert_allclose(found['probabilities'], np.exp(wanted) / np.exp(wanted).sum(), rtol=1e-4)


@pytest.mark.parametrize('normalise', ['characters', 'bytes', 'tokens'])
def test_lengths_divide(normalise):
    record = {'question': 'x', 'choices': ['é', 'abc def'], 'answer': 0}
    found, plain = predicted(task(normalise=normalise), record), predicted(task(), record)
    lengths = {'characters': [1, 7], 'bytes': [2, 7], 'tokens': [3, 8]}[normalise]
    values = np.array(plain['logprobs']) / lengths
    np.testing.assert_allclose(found['probabilities'], np.exp(values) / np.exp(values).sum(), rtol=1e-4)


def test_examples_come_before_and_never_the_question_itself():
    made = task(shots=2, examples=sources.in_memory(records=RECORDS))
    for record in RECORDS:
        features = made.features(sources.in_memory(records=[record]))[0]
        whole = made.describe(features)
        assert whole.count('Answer:') == 3
        assert whole.count(record['question']) == 1
        assert whole.endswith(
            f'{record["question"]}\nAnswer: ' + str(record['choices'][0 if record['answer'] == '2' else record['answer']])
        )
    assert made.encode(RECORDS[0])[0]['inputs'].tolist() == made.encode(RECORDS[0])[0]['inputs'].tolist()
    with pytest.raises(BadInput, match='fewer than shots 3'):
        task(shots=3, examples=sources.in_memory(records=RECORDS)).encode(RECORDS[0])


def test_the_objective_sees_the_right_choice_alone():
    made = task()
    features = made.features(sources.in_memory(records=RECORDS[:1]))[0]
    sums = made.objective(model(), _batch(features))
    assert float(sums['nll'].count) == 2  # blank and digit
    assert float(sums['nll'].total) == pytest.approx(-by_hand('1+1\nAnswer:', ' 2')[0], rel=1e-5)


def test_scores_by_hand():
    made = [{'logprobs': [-2.0, -4.0, -9.0], 'tokens': [2, 3, 2]}, {'logprobs': [-1.0, -1.5], 'tokens': [1, 1]}]
    records = [{'choices': ['a', 'bbbbbb', 'c'], 'answer': 0}, {'choices': ['a', 'b'], 'answer': 1}]
    assert task().score(made, records).values() == {'accuracy': 0.5, 'accuracy_normalised': 0.0}


def test_likelihood_in_windows_scores_each_token_once():
    rows = windows([1], np.arange(2, 12), max_length=4)
    assert [row['targets'][row['weights'] > 0].tolist() for row in rows] == [[2, 3, 4, 5], [6, 7, 8, 9], [10, 11]]
    assert rows[2]['inputs'].tolist() == [7, 8, 9, 10]  # as much before as there is room for
    made = tasks.likelihood(tokenizer=tokenizer(), max_length=48)
    found = predicted(made, {'context': 'ab', 'continuation': 'cd'})
    assert found == {'logprob': pytest.approx(by_hand('ab', 'cd')[0], rel=1e-5), 'tokens': 2, 'greedy': by_hand('ab', 'cd')[1]}
    greedy = int(np.argmax(model()(np.array([[97, 98]]))[0][0][0, 1]))
    row = windows([97, 98], [greedy], max_length=48)[0]
    assert bool(logprobs(model(), _batch(row))['greedy'][0])
    cut = predicted(made, {'context': 'x' * 60, 'continuation': 'cd'})
    assert cut['tokens_cut'] == 60 + 2 - 49


def test_blanks_go_with_what_follows():
    first, last = split(tokenizer(), 'a  ', 'b')
    assert (first.tolist(), last.tolist()) == ([97], [32, 32, 98])


@pytest.mark.parametrize(
    ('keywords', 'record', 'said'),
    [
        ({'normalise': 'words'}, RECORDS[0], "normalise 'words' is unknown"),
        ({'choices': ['yes']}, RECORDS[0], '1 choices are no choice'),
        ({'shots': 1}, RECORDS[0], 'shots 1 without examples'),
        ({'prompt': '{ask}'}, RECORDS[0], "asks for 'ask'"),
        ({}, {'question': 'x', 'choices': ['one'], 'answer': 0}, 'at least 2 texts'),
        ({}, {'question': 'x', 'choices': ['a', 'x' * 90], 'answer': 0}, '91 tokens'),
    ],
)
def test_what_is_wrong_is_said(keywords, record, said):
    with pytest.raises(BadInput, match=said):
        task(**keywords).encode(record)
    if not keywords:
        with pytest.raises(BadInput, match="'nine' is not among"):
            task().features(sources.in_memory(records=[{**RECORDS[0], 'answer': 'nine'}]))[0]
