"""Written answers: source and target by hand, all true answers in the score, and refusals."""

import pytest

from lmx import tasks, text
from lmx.data import sources
from lmx.types import BadInput

RECORDS = [
    {'question': 'Who?', 'context': 'Ada did.', 'answers': {'text': ['Ada', 'Lovelace'], 'answer_start': [0, 0]}},
    {'question': 'When?', 'context': 'Ada did.', 'answers': {'text': [], 'answer_start': []}},
]


def task(**keywords):
    return tasks.generative_question_answering(
        **{'tokenizer': text.byte_level(), 'max_source_length': 48, 'max_target_length': 12, **keywords}
    )


def shown(made, records=RECORDS):
    features = made.features(sources.in_memory(records=records))
    return [made.describe(features[index]) for index in range(len(features))]


def test_the_source_is_the_prompt_and_the_target_the_first_answer():
    assert shown(task()) == ['question: Who? context: Ada did. -> Ada', 'question: When? context: Ada did. -> ']
    closed = task(prompt='{question}')
    assert shown(closed)[0] == 'Who? -> Ada'
    assert closed.inputs == ('question',)
    assert task().inputs == ('question', 'context')
    assert shown(task(answers='answer'), [{**RECORDS[0], 'answer': ['a', 'b']}, {**RECORDS[0], 'answer': 'c'}])[0].endswith('-> a')


def test_the_score_knows_every_true_answer():
    made = [{'answer': 'lovelace'}, {'answer': ''}]
    assert task().score(made, RECORDS).values() == {'exact_match': 100, 'f1': 100}
    assert task().score([{'answer': 'Ada'}, {'answer': 'never'}], RECORDS).values() == {'exact_match': 50, 'f1': 50}


def test_a_prediction_reads_the_prompt():
    (features,) = task().encode({'question': 'Who?', 'context': 'Ada did.'})
    ids = features['source'][features['source_segments'] > 0]
    assert text.byte_level().decode(ids) == 'question: Who? context: Ada did.'


@pytest.mark.parametrize(
    ('make', 'says'),
    [
        (lambda: task().encode({'question': 'Who?'}), "asks for 'context', records have question"),
        (lambda: task(prompt='{question'), 'cannot be read'),
        (lambda: shown(task(answers='answer')), "no field 'answer', only question, context, answers"),
        (lambda: task().encode({'question': 'Who?' * 20, 'context': ''}), 'the limit is max_source_length 48'),
    ],
)
def test_refusals(make, says):
    with pytest.raises(BadInput, match=says):
        make()
