"""Token classification: which token carries a word's tag, the loss against PyTorch's, and entities from tags."""

import functools

import numpy as np
import pytest

from lmx import objectives, tasks, text
from lmx.data import sources
from lmx.tasks.token_classification import entities, first_tokens
from lmx.types import BadInput

LABELS = ('O', 'B-PER', 'I-PER', 'B-LOC')
WORDS = ['Ada', 'Lovelace', 'visited', 'Como', '.']
RECORD = {'words': WORDS, 'tags': ['B-PER', 'I-PER', 0, 'B-LOC', 'O']}


@functools.cache
def tokenizer():
    return text.wordpiece(source=sources.in_memory(records=[{'text': 'ada visited love lace all como .'}]), vocab_size=45, lowercase=True)


def task(max_length: int = 40, **keywords):
    return tasks.token_classification(tokenizer=tokenizer(), max_length=max_length, labels=LABELS, **keywords)


def row(made, record=RECORD):
    return made.features(sources.in_memory(records=[record]))[0]


def starts(tokens) -> list[int]:
    """Places of the tokens that begin a word, by WordPiece's own marks."""
    names = [tokenizer().inner.id_to_token(int(token)) for token in tokens]
    return [place for place, name in enumerate(names) if not name.startswith(('##', '['))]


def test_the_first_token_of_a_word_carries_its_tag():
    example = row(task())
    places = np.flatnonzero(example['weights'])
    assert places.tolist() == starts(example['tokens'])
    assert len(places) == len(WORDS) < example['segments'].sum() - 2  # some word has several tokens
    assert example['targets'][places].tolist() == [1, 2, 0, 3, 0]


def test_words_that_do_not_fit_are_left_out():
    whole, cut = row(task()), row(task(max_length=9))
    assert cut['tokens'][:8].tolist() == whole['tokens'][:8].tolist()
    assert cut['tokens'][8] == tokenizer().sep_id
    assert cut['weights'][:8].tolist() == whole['weights'][:8].tolist()
    assert cut['weights'][8] == 0
    with pytest.raises(BadInput, match='the limit is max_length 9'):
        task(max_length=9).encode(RECORD)


@pytest.mark.parametrize(
    ('make', 'words', 'places'),
    [
        (text.byte_level, ['ab', 'c', 'é'], [0, 2, 4]),  # the blank is a token of its own, and no word's
        (lambda: tokenizer(), ['.', '\u200b', '.'], [0, -1, 1]),  # a word that the tokenizer drops has no token
    ],
)
def test_first_tokens_of_words(make, words, places):
    ids, first = first_tokens(make(), words)
    found = [int(place) for place in first]
    if make is text.byte_level:
        assert [ids[place] for place in found] == [ord('a'), ord('c'), 'é'.encode()[0]]
    else:
        assert found == places


@pytest.mark.parity
def test_loss_equals_pytorch():
    torch = pytest.importorskip('torch')
    scores = np.random.default_rng(0).normal(size=(2, 40, 4)).astype(np.float32) * 3
    batch = {name: np.stack([array, array[::-1]]) for name, array in row(task()).items()}
    labels = torch.tensor(np.where(batch['weights'] > 0, batch['targets'], -100)).long()
    loss = torch.nn.functional.cross_entropy(torch.tensor(scores).swapaxes(1, 2), labels, reduction='sum')
    sums = objectives.token_classes(lambda tokens, segments: (scores, {}), batch)
    np.testing.assert_allclose(sums['loss/token_classes'].total, loss.item(), rtol=1e-6)  # one float32 sum of ten terms
    assert sums['loss/token_classes'].count == 10
    assert sums['accuracy'].total == ((scores.argmax(-1) == batch['targets']) * batch['weights']).sum()


def test_predicted_tags_are_those_of_first_tokens():
    """A model that is certain of the true tags at first tokens, and of another everywhere else."""
    made = task()
    for given in (WORDS, 'Ada  Lovelace visited\nComo .'):
        (features,) = made.encode({'words': given})
        logits = np.tile(np.array([0, 0, 0, 9.0], np.float32), (1, len(features['tokens']), 1))
        places, tags = starts(features['tokens'][features['segments'] > 0]), [1, 2, 0, 3, 0]
        logits[0, places] = 9 * np.eye(4)[tags]
        batch = {name: value[None] for name, value in features.items()}
        arrays = made.predict(lambda tokens, segments, logits=logits: (logits, {}), batch, None)
        found = made.decode({'words': given}, [(features, {name: np.asarray(array[0]) for name, array in arrays.items()})])
        assert found['words'] == WORDS
        assert found['tags'] == [LABELS[tag] for tag in tags]
        assert min(found['probabilities']) > 0.99
        assert found['entities'] == [
            {'type': 'PER', 'start': 0, 'end': 2, 'text': 'Ada Lovelace'},
            {'type': 'LOC', 'start': 3, 'end': 4, 'text': 'Como'},
        ]


@pytest.mark.parametrize(
    ('tags', 'spans'),
    [
        (['B-A', 'I-A', 'B-A', 'O'], [('A', 0, 2), ('A', 2, 3)]),
        (['I-A', 'I-B', 'B-B', 'I-A'], [('A', 0, 1), ('B', 1, 2), ('B', 2, 3), ('A', 3, 4)]),
        (['O', 'NOUN', 'B-A'], [('A', 2, 3)]),
        ([], []),
    ],
)
def test_entities(tags, spans):
    found = entities([str(index) for index in range(len(tags))], tags)
    assert [(each['type'], each['start'], each['end']) for each in found] == spans


@pytest.mark.parametrize(
    ('make', 'says'),
    [
        (lambda: row(task(), {'words': ['a'], 'tags': []}), '1 words and 0 tags'),
        (lambda: row(task(), {'words': ['a'], 'tags': ['B-X']}), "label 'B-X' is not among the 4 labels"),
        (lambda: task(max_length=2), 'no room beside 2'),
        (lambda: task().encode({'words': ''}), 'no words'),
    ],
)
def test_refusals(make, says):
    with pytest.raises(BadInput, match=says):
        make()
