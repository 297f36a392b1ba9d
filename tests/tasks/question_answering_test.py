"""Question answering: spans map back to the exact characters, windows cover the context, the loss is PyTorch's."""

import functools

import numpy as np
import pytest

from lmx import objectives, rng, tasks, text
from lmx.data import sources
from lmx.metrics.baselines import trivial
from lmx.types import BadInput

WORDS = ['Ada', 'wrote', 'notes', 'on', 'the', 'engine', 'in', 'London', ',', 'été', 'and', '"programs"', '1843']


@functools.cache
def tokenizer():
    return text.wordpiece(source=sources.in_memory(records=[{'text': ' '.join(WORDS) + ' who what when ?'}]), vocab_size=80)


def task(max_length: int = 24, overlap: int = 5, question: int = 6, **keywords):
    lengths = {'max_length': max_length, 'overlap': overlap, 'max_question_length': question}
    return tasks.question_answering(tokenizer=tokenizer(), **lengths, **keywords)


def records(count: int = 12):
    """Random contexts, and answers that are runs of their words."""
    random = rng.numpy_rng(0, 'contexts')
    out = []
    for _ in range(count):
        words = random.choice(WORDS, random.integers(1, 40)).tolist()
        start = int(random.integers(0, len(words)))
        answer = ' '.join(words[start : start + int(random.integers(1, 4))])
        before = '  '.join(words[:start])  # two blanks: characters and tokens must not be counted alike
        context = f'{before}  {answer}' + ''.join(f' {word}' for word in words[start + len(answer.split()) :])
        out.append(
            {'question': 'Who wrote ?', 'context': context, 'answers': {'text': [answer], 'answer_start': [len(before) + 2]}, 'id': 'x'}
        )
    return out


def examples(made, given):
    features = made.features(sources.in_memory(records=given))
    return [features[index] for index in range(len(features))]


def answered(made, record, start_of, threshold_null: float = 0.0):
    """The prediction of a model that gives every token of each window the scores `start_of(window, features)` [T, 2]."""
    windows = []
    for number, features in enumerate(made.encode(record)):
        logits = start_of(number, features)
        batch = {name: value[None] for name, value in features.items()}
        given = lambda tokens, segments, types=None, logits=logits: (logits[None], {})  # noqa: E731
        windows.append((features, {name: np.asarray(array[0]) for name, array in made.predict(given, batch, None).items()}))
    return made.decode(record, windows)


def test_true_spans_map_back_to_the_exact_characters():
    made, seen = task(), 0
    for record in records():
        answer, begin = record['answers']['text'][0], record['answers']['answer_start'][0]
        trained = examples(made, [record])
        held = [number for number, example in enumerate(trained) if example['start'] > 0]
        assert held
        seen += len(trained) > len(held) > 0

        def truth(number, features, trained=trained):
            logits = np.zeros((24, 2), np.float32)
            logits[trained[number]['start'], 0] = logits[trained[number]['end'], 1] = 9
            return logits

        found = answered(made, record, truth)
        assert (found['answer'], found['start'], found['end']) == (answer, begin, begin + len(answer))
        assert found['answer'] == record['context'][found['start'] : found['end']]
        for example in trained:
            span = example['tokens'][example['start'] : example['end'] + 1]
            text_of = tokenizer().encode(answer).tolist() if example['start'] else [tokenizer().cls_id]
            assert span.tolist() == text_of
    assert seen  # contexts of several windows, some without the answer, were among them


def test_windows_cover_the_context_with_the_overlap_they_say():
    made = task()
    for record in records():
        _, offsets = tokenizer().encode_with_offsets(record['context'])
        parts = [features['offsets'][features['inside'] > 0] for features in made.encode(record)]
        joined = parts[0]
        for part in parts[1:]:
            np.testing.assert_array_equal(joined[-5:], part[:5])
            joined = np.concatenate([joined, part[5:]])
        np.testing.assert_array_equal(joined, offsets)
        for features, example in zip(made.encode(record), examples(made, [record]), strict=True):
            np.testing.assert_array_equal(features['tokens'], example['tokens'])
            assert features['segments'].sum() == 3 + len(tokenizer().encode(record['question'])) + features['inside'].sum()
            np.testing.assert_array_equal(
                features['types'] == 1, (features['segments'] > 0) & (np.arange(24) >= np.argmax(features['inside']))
            )


def test_best_span_against_every_span():
    """Scores at random: the span found is the best of those that end behind their start, within the context and max_answer_length."""
    made, random = task(max_answer_length=3), rng.numpy_rng(1, 'scores')
    for record in records(6):
        scores = [random.normal(size=(24, 2)).astype(np.float32) for _ in made.encode(record)]
        found = answered(made, record, lambda number, _, scores=scores: scores[number])
        best, null = (-np.inf, 0, 0), np.inf
        for number, features in enumerate(made.encode(record)):
            null = min(null, float(scores[number][0].sum()))
            for start in np.flatnonzero(features['inside']):
                for end in range(start, min(start + 3, 24)):
                    if features['inside'][end]:
                        score = float(scores[number][start, 0] + scores[number][end, 1])
                        best = max(best, (score, int(features['offsets'][start, 0]), int(features['offsets'][end, 1])))
        assert (found['start'], found['end']) == best[1:]
        np.testing.assert_allclose(found['score'], best[0] - null, rtol=1e-5, atol=1e-5)


def test_no_answer_where_no_span_is_above_the_threshold():
    record = records(1)[0]
    flat = lambda number, features: np.zeros((24, 2), np.float32)  # noqa: E731
    assert answered(task(null_threshold=0.0), record, flat) == {'answer': '', 'score': 0.0, 'start': None, 'end': None}
    assert answered(task(null_threshold=-1.0), record, flat)['answer']
    assert answered(task(), record, flat)['answer']
    (example,) = examples(task(max_length=80), [{**record, 'answers': {'text': [], 'answer_start': []}}])
    assert (example['start'], example['end']) == (0, 0)


@pytest.mark.parity
def test_loss_equals_pytorch_and_padding_changes_nothing():
    torch = pytest.importorskip('torch')
    found = examples(task(), records())[:5]
    batch = {name: np.stack([example[name] for example in found]) for name in found[0]}
    batch['weights'] = np.array([1, 1, 0, 1, 1], np.float32)
    scores = np.random.default_rng(0).normal(size=(5, 24, 2)).astype(np.float32) * 3
    hidden = torch.tensor(np.where(batch['segments'][..., None] > 0, scores, -np.inf))
    losses = [
        torch.nn.functional.cross_entropy(hidden[..., end], torch.tensor(batch[name]).long(), reduction='none').numpy()
        for end, name in enumerate(('start', 'end'))
    ]
    sums = objectives.span(lambda tokens, segments, types: (scores, {}), batch)
    np.testing.assert_allclose(sums['loss/span'].total, (np.mean(losses, axis=0) * batch['weights']).sum(), rtol=1e-6)  # a float32 sum
    assert sums['loss/span'].count == 4
    wide = {name: np.pad(array, [(0, 0), (0, 7)]) if array.ndim == 2 else array for name, array in batch.items()}
    junk = np.concatenate([scores, 99 * np.ones((5, 7, 2), np.float32)], axis=1)
    more = objectives.span(lambda tokens, segments, types: (junk, {}), wide)
    np.testing.assert_allclose(more['loss/span'].total, sums['loss/span'].total, rtol=1e-6)
    assert more['accuracy'].total == sums['accuracy'].total


@pytest.mark.parametrize(
    ('make', 'says'),
    [
        (lambda: task(max_length=14), 'no more context than overlap 5'),
        (lambda: task().encode({'question': 'who ' * 9, 'context': 'Ada'}), '9 tokens, the limit is max_question_length 6'),
        (lambda: task().encode({'question': 'who', 'context': ' '}), 'context is empty'),
    ],
)
def test_refusals(make, says):
    with pytest.raises(BadInput, match=says):
        make()


def test_the_trivial_baselines_by_hand():
    records = [
        {'context': 'Rome is old. Paris is in France.', 'question': 'Where is Paris?', 'answers': {'text': ['Rome is old']}},
        {'context': 'It rains. Paris is in France.', 'question': 'Where is Paris?', 'answers': {'text': ['Paris is in France', 'x']}},
    ]
    found = trivial(source=sources.in_memory(records=records))
    assert found['first sentence, exact_match'] == found['nearest sentence, exact_match'] == 50
    assert found['first sentence, f1'] == 50
    assert found['nearest sentence, f1'] == pytest.approx(100 * (2 * 1 / (4 + 3) + 1) / 2)  # 'is' is shared


def test_an_answer_that_is_elsewhere_is_refused_before_training():
    record = {'question': 'Who ?', 'context': 'Kenji met Lucy', 'answers': {'text': ['Lucy'], 'answer_start': [9]}}
    good = {**record, 'answers': {'text': ['Lucy'], 'answer_start': [10]}}
    for answer, place in (('Lucy', 'at 10'), ('Omar', 'not in the context')):
        with pytest.raises(BadInput, match=f"record 2: answer '{answer}' is {place}, and not at answer_start 9"):
            examples(task(), [good, {**record, 'answers': {'text': [answer], 'answer_start': [9]}}])
    assert len(examples(task(), [good])) == 1
