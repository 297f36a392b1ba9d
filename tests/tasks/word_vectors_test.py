"""Skip-gram: the loss by hand, examples that can be made again, and vectors that leave and come back as text."""

import jax
import numpy as np
import pytest

from lmx import models, run, tasks, text
from lmx.data import sources
from lmx.run.config import load
from lmx.spec import ref, spec
from lmx.text import vectors
from lmx.train import init
from lmx.train.state import bind
from lmx.types import BadInput

# Two circles of words that never meet: near each other are the words of one circle.
CIRCLES = [['red', 'green', 'blue'] * 40, ['one', 'two', 'three'] * 40]


def records(*, split: str = 'train'):
    return sources.in_memory(records=[{'text': ' '.join(words)} for words in CIRCLES])


def tokenizer():
    return text.words(source=records())


def task(**options):
    return tasks.word_vectors(tokenizer=tokenizer(), window=2, negatives=3, subsample=None, neighbours=2, **options)


def batch_of(features, indices):
    return features.lmx_windows.rows(np.asarray(indices))


def test_the_loss_is_equation_four():
    features = task().features(records())
    batch = batch_of(features, [0, 5, 130, 239])
    model = models.skip_gram(vocab_size=tokenizer().vocab_size, dim=4)
    rng = np.random.default_rng(0)
    shape = (tokenizer().vocab_size, 4)
    params = {name: {'embedding': rng.normal(size=shape).astype(np.float32)} for name in ('embed', 'context')}
    sums = task().objective(bind(model, params), batch)
    total, count = 0.0, 0
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    for row in range(4):
        v = params['embed']['embedding'][batch['center'][row]]
        for slot in np.flatnonzero(batch['weights'][row]):
            context = batch['context'][row, slot]
            total -= np.log(sigmoid(params['context']['embedding'][context] @ v))
            negatives = [n for n in batch['negatives'][row, slot] if n != context]
            total -= sum(np.log(sigmoid(-params['context']['embedding'][n] @ v)) for n in negatives)
            count += 1
    assert sums['loss/skip_gram'].count == count
    np.testing.assert_allclose(sums['loss/skip_gram'].total, total, rtol=1e-5)  # float32


def test_examples_are_random_access_and_stay_within_their_document():
    features = task().features(records())
    again = task().features(records())
    together = batch_of(features, range(len(features)))
    for index in (0, 119, 120, 239):
        for name, array in again[index].items():
            np.testing.assert_array_equal(together[name][index], array)
    circle = [set(tokenizer().encode(' '.join(words)).tolist()) for words in CIRCLES]
    for center, context, weights in zip(together['center'], together['context'], together['weights']):
        assert set(context[weights > 0].tolist()) <= circle[center in circle[1]]
    other = task(seed=1).features(records())
    assert not np.array_equal(batch_of(other, range(50))['negatives'], together['negatives'][:50])


def test_frequent_words_are_dropped_as_often_as_said():
    words = ['a'] * 9000 + ['b'] * 1000
    source = sources.in_memory(records=[{'text': ' '.join(words)}])
    made = tasks.word_vectors(tokenizer=text.words(source=source), subsample=0.01, neighbours=1)
    kept = batch_of(made.features(source), range(len(made.features(source))))['center']
    for word, share in (('a', 0.9), ('b', 0.1)):
        (index,) = text.words(source=source).encode(word)
        expected = 10_000 * share * (0.01 / share) ** 0.5
        assert abs((kept == index).sum() - expected) < 4 * expected**0.5  # four standard errors


def test_words_of_one_circle_end_near_each_other_and_survive_the_file(tmp_path):
    config = load('tests/tiny.py:steps=60,ema=0')
    with config.unlocked(), config.ignore_type():
        config.data = {'train': spec('tests.tasks.word_vectors_test:records')}
        config.evaluate, config.tokenizer = (), spec(text.words, source=ref('data.train'))
        config.task = spec(tasks.word_vectors, tokenizer=ref('tokenizer'), window=3, subsample=None, neighbours=2)
        config.model = spec(models.skip_gram, vocab_size=ref('tokenizer.vocab_size'), dim=8)
        config.optim.schedule, config.batch_size = 0.05, 64
        config.keep.best = None
    run.train(config, tmp_path / 'run')
    for word, near in (('red', {'green', 'blue'}), ('two', {'one', 'three'})):
        (made,) = run.predict(tmp_path / 'run', word, allow=('tests',))
        assert {each['word'] for each in made['neighbours']} == near
    with pytest.raises(BadInput, match="'reds' is not one of the 7 words; did you mean 'red'"):
        run.predict(tmp_path / 'run', 'reds', allow=('tests',))
    for style in ('word2vec', 'glove'):
        path = tmp_path / f'{style}.txt.gz'
        assert run.export_vectors(tmp_path / 'run', path, style=style).startswith(
            '7 vectors of 8 numbers'
        )  # with the word for a line's end
        names, matrix = vectors.load(path)
        table = init.read_params(str(tmp_path / 'run'))['embed']['embedding']
        for name, row in zip(names, matrix):
            np.testing.assert_array_equal(row, table[tokenizer().encode(name)[0]])
    assert 'format of word2vec' in run.export_model(tmp_path / 'run', tmp_path / 'again.vec.gz')
    np.testing.assert_array_equal(vectors.load(tmp_path / 'again.vec.gz')[1], matrix)
    with pytest.raises(BadInput, match=r'again\.vec\.gz is there already'):
        run.export_model(tmp_path / 'run', tmp_path / 'again.vec.gz')
    with pytest.raises(BadInput, match='a text file has no dtype float16'):
        run.export_model(tmp_path / 'run', tmp_path / 'half.vec', dtype='float16')
    with pytest.raises(BadInput, match=r'lmx export --to=FILE\.txt'):
        run.export_model(tmp_path / 'run', tmp_path / 'folder')
    start = vectors.initializer(path=str(tmp_path / 'glove.txt.gz'), tokenizer=tokenizer())
    made = start(jax.random.key(0), (tokenizer().vocab_size, 8))
    np.testing.assert_array_equal(np.asarray(made)[start.known_V], np.asarray(table)[start.known_V])


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        ('2 3\na 1 2 3\n', ':1 says 2 words, but 1 follow'),
        ('a 1 2\nb 1\n', ":2 has 1 fields behind the word 'b', not 2"),
        ('a 1 x\n', ":1 has 'x' where a number belongs"),
        ('a 1 nan\n', "'nan', which is no finite number"),
        ('', 'holds no vectors'),
    ],
)
def test_files_that_are_no_vectors_are_refused_by_line(tmp_path, content, says):
    path = tmp_path / 'v.txt'
    path.write_text(content)
    with pytest.raises(BadInput, match=says):
        vectors.load(path)
    with pytest.raises(BadInput, match='no place for blanks'):
        vectors.save(path, ['two words'], np.zeros((1, 2)))
