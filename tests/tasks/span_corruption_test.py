"""Span corruption: what is left and what is lost make the text, gaps are filled where they stand, and a run learns to fill them."""

import functools

import jax
import numpy as np
import pytest

from lmx import models, tasks, text
from lmx.data import sources
from lmx.data.corrupt import whole
from lmx.train.state import bind, init_params
from lmx.types import BadInput

RECORDS = [{'text': 'the cat sat on the mat and the dog sat on the log ' * 6}, {'text': 'one two three four five six seven ' * 5}]


@functools.cache
def tokenizer():
    return text.unigram(source=sources.in_memory(records=RECORDS), vocab_size=330, sentinels=8)


def task(**keywords):
    return tasks.span_corruption(**{'tokenizer': tokenizer(), 'max_length': 48, **keywords})


def spliced(example) -> list[int]:
    """The window that an example was made of."""
    sentinels = set(tokenizer().sentinel_ids)
    source = example['source'][example['source_segments'] > 0].tolist()
    targets = example['targets'][example['weights'] > 0].tolist()
    assert source[-1] == targets[-1] == tokenizer().eos_id
    spans, current = {}, None
    for token in targets[:-1]:
        if token in sentinels:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return [each for token in source[:-1] for each in (spans[token] if token in sentinels else [token])]


def test_left_and_lost_make_the_text_and_nothing_is_padding():
    features = task().features(sources.in_memory(records=RECORDS))
    stream = [token for record in RECORDS for token in [tokenizer().eos_id, *tokenizer().encode(record['text']).tolist()]]
    joined = [token for index in range(len(features)) for token in spliced(features[index])]
    assert joined == stream[: len(joined)]
    first = features[0]
    assert first['source_segments'].min() == 1
    assert first['weights'].min() == 1
    assert first['inputs'].tolist() == [tokenizer().pad_id, *first['targets'][:-1].tolist()]
    again = task().features(sources.in_memory(records=RECORDS))
    np.testing.assert_array_equal(again[1]['source'], features[1]['source'])
    later = features[1 + len(features)]  # the same window in the next pass
    assert spliced(later) == spliced(features[1])
    assert later['source'].tolist() != features[1]['source'].tolist()


def test_windows_fill_their_room():
    assert whole(23, 0.15, 3.0) == 26  # 26 tokens lose 4 in 1 span, which leaves 22 and its sentinel; 27 would leave one more
    with pytest.raises(BadInput, match='no room'):
        whole(1, 0.15, 3.0)


def test_gaps_are_filled_where_they_stand():
    made = task()
    eos, (first, second, *_) = tokenizer().eos_id, tokenizer().sentinel_ids
    said = np.array([first, *tokenizer().encode('cat'), second, *tokenizer().encode('the mat'), eos, 0])
    length = int(np.flatnonzero(said == eos)[0])
    arrays = {'tokens': said, 'lengths': length, 'logprobs': np.zeros(len(said))}
    record = {'text': 'the <extra_id_0> sat on <extra_id_1> and'}
    found = made.decode(record, [(made.encode(record)[0], arrays)])
    assert found['text'] == 'the cat sat on the mat and'
    assert found['spans'] == ['cat', 'the mat']
    ids = made.encode(record)[0]
    source = ids['source'][ids['source_segments'] > 0].tolist()
    assert (source.count(first), source.count(second), source[-1]) == (1, 1, eos)


def test_it_trains_and_predicts():
    made = task(max_tokens=5)
    features = made.features(sources.in_memory(records=RECORDS))
    batch = {name: np.stack([features[index][name] for index in range(4)]) for name in features[0]}
    model = models.t5(vocab_size=tokenizer().vocab_size, dim=16, num_layers=1, num_heads=2, head_dim=8, mlp_dim=32)
    params = jax.jit(lambda key: init_params(model, made.objective, batch, key))(jax.random.key(0))
    gradient = jax.jit(jax.grad(lambda params: made.objective(bind(model, params), batch)['loss/seq2seq'].total))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    one = {name: array[None] for name, array in made.encode({'text': 'the <extra_id_0> sat'})[0].items()}
    arrays = jax.jit(lambda params: made.predict(bind(model, params), one, jax.random.split(jax.random.key(0), 1)))(params)
    assert arrays['tokens'].shape == (1, 5)


@pytest.mark.parametrize('said', ['no gap', '<extra_id_1> first', '<extra_id_0> and <extra_id_0>'])
def test_texts_without_gaps_are_refused(said):
    with pytest.raises(BadInput, match='<extra_id_0>, <extra_id_1>'):
        task().encode({'text': said})


def test_what_is_wrong_is_said():
    with pytest.raises(BadInput, match='an end token and sentinels'):
        tasks.span_corruption(tokenizer=text.byte_level(), max_length=24)
    with pytest.raises(BadInput, match='8 sentinels'):
        tasks.span_corruption(tokenizer=tokenizer(), max_length=500)
    with pytest.raises(BadInput, match='rate 1'):
        task(rate=1.0)
