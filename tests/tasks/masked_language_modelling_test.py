"""Masked language modelling: windows and masks, the loss against PyTorch's, whole words, and what is put for [MASK]."""

import functools

import jax
import numpy as np
import pytest

from lmx import models, objectives, tasks, text
from lmx.data import corrupt, sources
from lmx.nn import heads
from lmx.tasks.masked_language_modelling import masked_ids
from lmx.train.state import bind, init_params
from lmx.types import BadInput

TEXTS = ['the cat sat on the mat and looked at me', 'a dog ran', 'unbelievable things happened to the neighbouring cat today'] * 3


@functools.cache
def source():
    return sources.in_memory(records=[{'text': each} for each in TEXTS])


@functools.cache
def tokenizer():
    return text.wordpiece(source=source(), vocab_size=90)


def task(max_length: int = 16, **keywords):
    return tasks.masked_language_modelling(tokenizer=tokenizer(), max_length=max_length, **{'rate': 0.3, **keywords})


def rows(made, indices=None):
    features = made.features(source())
    examples = [features[index] for index in (indices or range(len(features)))]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def restored(batch) -> list[np.ndarray]:
    """The tokens of each window before they were masked."""
    out = batch['tokens'].copy()
    for row, places, targets, weights in zip(out, batch['places'], batch['targets'], batch['weights']):
        row[places[weights > 0]] = targets[weights > 0]
    return [row[real > 0] for row, real in zip(out, batch['segments'])]


def test_windows_hold_the_text_once_between_special_tokens():
    windows = restored(rows(task()))
    assert {window[0] for window in windows} == {tokenizer().cls_id}
    assert {window[-1] for window in windows} == {tokenizer().sep_id}
    separator = [tokenizer().sep_id]
    stream = np.concatenate([np.concatenate([separator, tokenizer().encode(each)]) for each in TEXTS])
    # The last token of all, which no further one follows, is in no window.
    np.testing.assert_array_equal(np.concatenate([window[1:-1] for window in windows]), stream[:-1])


def test_masks_are_of_the_size_they_say_and_hide_no_special_token():
    batch = rows(task())
    assert batch['places'].shape[1] == corrupt.count(14, 0.3) == 4
    counts = [corrupt.count(int((~tokenizer().is_special[window]).sum()), 0.3) for window in restored(batch)]
    assert batch['weights'].sum(axis=1).tolist() == counts
    assert not tokenizer().is_special[batch['targets'][batch['weights'] > 0]].any()


def test_another_pass_and_another_seed_hide_others():
    made = task()
    count = len(made.features(source()))
    one, again, later, other = rows(made), rows(made), rows(made, range(count, 2 * count)), rows(task(seed=1))
    for name in one:
        np.testing.assert_array_equal(one[name], again[name])
    for spoilt in (later, other):
        assert (spoilt['tokens'] != one['tokens']).any()
        assert [window.tolist() for window in restored(spoilt)] == [window.tolist() for window in restored(one)]


def test_whole_words_are_hidden_whole():
    batch, pieces = rows(task(unit='word', shares=(1.0, 0.0))), 0
    for spoilt, window in zip(batch['tokens'], restored(batch)):
        hidden = spoilt[: len(window)] == tokenizer().mask_id
        for place in range(2, len(window)):
            if not tokenizer().starts_word[window[place]]:
                pieces += hidden[place]
                assert hidden[place] == hidden[place - 1] or tokenizer().is_special[window[place - 1]]
    assert pieces


@functools.cache
def built():
    sizes = {'vocab_size': tokenizer().vocab_size, 'dim': 16, 'num_layers': 1, 'num_heads': 2, 'dropout_rate': 0.0}
    model = models.bert(**sizes, head=heads.masked_lm())
    batch = rows(task())
    return model, jax.tree.map(
        lambda leaf: 4 * leaf, jax.jit(lambda key: init_params(model, objectives.masked_token, batch, key))(jax.random.key(0))
    )


@functools.cache
def compiled():
    return jax.jit(lambda params, batch: objectives.masked_token(bind(built()[0], params), batch))


@pytest.mark.parity
def test_loss_equals_pytorch():
    torch = pytest.importorskip('torch')
    (model, params), batch = built(), rows(task())
    logits = np.asarray(jax.jit(model.apply)({'params': params}, batch['tokens'], segments=batch['segments']))
    labels = np.full(batch['tokens'].shape, -100)
    for row, places, targets, weights in zip(labels, batch['places'], batch['targets'], batch['weights']):
        row[places[weights > 0]] = targets[weights > 0]
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits).swapaxes(1, 2), torch.tensor(labels), reduction='sum')
    found = compiled()(params, batch)['loss/masked_token']
    np.testing.assert_allclose(found.total, loss.item(), rtol=1e-6)  # one float32 sum
    assert found.count == (labels != -100).sum()


def test_padding_changes_nothing():
    _, params = built()
    batch = rows(task())
    more = {name: np.pad(array, [(0, 0), (0, 5)]) for name, array in batch.items()}
    sums = [compiled()(params, each) for each in (batch, more)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-6), *sums)  # sums over more zeros


def test_predictions_are_the_likeliest_tokens_at_the_masks():
    model, params = built()
    made, record = task(top=3), {'text': 'the [MASK] sat on [MASK] mat'}
    (features,) = made.encode(record)
    assert features['tokens'][features['places'][: features['masks']]].tolist() == [tokenizer().mask_id] * 2
    batch = {name: np.array(value)[None] for name, value in features.items()}
    arrays = {name: np.asarray(array[0]) for name, array in made.predict(bind(model, params), batch, None).items()}
    found = made.decode(record, [(features, arrays)])
    logits = jax.jit(model.apply)({'params': params}, batch['tokens'], segments=batch['segments'])[0, features['places'][:2]]
    want = np.argsort(-np.asarray(jax.nn.softmax(logits)), axis=-1)[:, :3]
    assert [[mask['token'] for mask in masks] for masks in found['masks']] == [[tokenizer().decode([i]) for i in row] for row in want]
    probabilities = [[mask['probability'] for mask in masks] for masks in found['masks']]
    np.testing.assert_allclose(probabilities, np.take_along_axis(np.asarray(jax.nn.softmax(logits)), want, axis=1), rtol=1e-5)
    ids = np.array(features['tokens'][features['segments'] > 0])
    ids[features['places'][:2]] = want[:, 0]
    assert found['text'] == tokenizer().decode(ids)
    assert found['text'].startswith('the ')


def test_blanks_beside_a_mask_go_where_the_tokenizer_says():
    from tokenizers import AddedToken

    tokens = text.byte_level()
    tokens.inner.add_special_tokens([AddedToken('<mask>', lstrip=True, special=True)])
    inner = text.Tokenizer(tokens.inner, specials={'mask': '<mask>'})
    assert masked_ids(inner, 'a <mask> b').tolist() == [ord('a'), inner.mask_id, ord(' '), ord('b')]
    assert masked_ids(inner, 'a ').tolist() == [ord('a'), ord(' ')]


@pytest.mark.parametrize(
    ('make', 'says'),
    [
        (lambda: tasks.masked_language_modelling(tokenizer=text.byte_level(), max_length=8), 'needs a tokenizer with a mask token'),
        (lambda: task(unit='line'), "unit 'line' is unknown"),
        (lambda: task(rate=1.5), 'rate 1.5'),
        (lambda: task(max_length=3), 'no room beside 2'),
        (lambda: task().encode({'text': 'no mask'}), r'has no \[MASK\]'),
        (lambda: task().encode({'text': '[MASK] cat' * 10}), 'the limit is max_length 16'),
    ],
)
def test_refusals(make, says):
    with pytest.raises(BadInput, match=says):
        make()
