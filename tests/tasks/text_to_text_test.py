"""Text to text: what the model is given, the loss against PyTorch's, padding that changes nothing, and a run that learns to reverse words."""

import functools
import itertools
from functools import partial

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx import metrics, models, objectives, optim, rng, run, tasks, text
from lmx.data import sources
from lmx.nn.block import pre_norm
from lmx.optim import schedules
from lmx.run.config import base
from lmx.spec import ref, spec
from lmx.text.tokenizers import template
from lmx.train.state import bind, init_params
from lmx.types import BadInput

PAIRS = [{'source': 'ab', 'target': 'c'}, {'source': 'abcd', 'target': 'ab'}, {'source': 'b', 'target': 'abcd'}]
IDS = {'<pad>': 0, '</s>': 1, '<s>': 2, '<unk>': 3, 'a': 4, 'b': 5, 'c': 6, 'd': 7}


def letters(single: str | None) -> text.Tokenizer:
    """A letter is a token; `single` is what the tokenizer puts around a text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel(IDS, unk_token='<unk>'))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex('.'), 'isolated')
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens(['<pad>', '</s>', '<unk>', *(['<s>'] if single and '<s>' in single else [])])
    if single is not None:
        inner.post_processor = template(single, f'{single} $B', inner)
    return text.Tokenizer(inner)


T5 = letters('$A </s>')
BART = letters('<s> $A </s>')
BARE = letters(None)


def task(tokenizer=T5, source: int = 6, target: int = 4, **keywords):
    return tasks.text_to_text(tokenizer=tokenizer, max_source_length=source, max_target_length=target, **keywords)


def rows(made, records=PAIRS) -> dict[str, np.ndarray]:
    features = made.features(sources.in_memory(records=records))
    return {name: np.stack([features[index][name] for index in range(len(features))]) for name in features[0]}


def test_pairs_that_share_rows_have_the_losses_of_each_alone():
    made, apart = (task(source=6, target=6, row_length=length) for length in (13, None))
    shared, alone = rows(made), rows(apart)
    assert (len(shared['source']), len(alone['source'])) == (1, 3)
    assert shared['segments'][0].max() == shared['source_segments'][0].max() == 3
    for model in (
        models.transformer(vocab_size=8, dim=16, num_layers=2, num_heads=2, mlp_dim=32, dropout_rate=0.0),
        models.t5(vocab_size=8, dim=16, num_layers=2, num_heads=2, head_dim=8, mlp_dim=32, dropout_rate=0.0),
    ):
        params = jax.jit(lambda key, model=model: init_params(model, made.objective, shared, key))(jax.random.key(0))
        together, each = (jax.jit(made.objective, static_argnums=0)(bind(model, params), batch) for batch in (shared, alone))
        for name, mean in together.items():
            # Sums of 11 float32 losses in another order, of products over rows of another length.
            np.testing.assert_allclose(mean, each[name], rtol=1e-5)
    with pytest.raises(BadInput, match='row_length 5 is below'):
        task(row_length=5)


def test_features_by_hand():
    batch = rows(task())  # the third pair is too long by one token
    assert batch['source'].tolist() == [[4, 5, 1, 0, 0, 0], [4, 5, 6, 7, 1, 0]]
    assert batch['source_segments'].tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]]
    assert batch['inputs'].tolist() == [[0, 6, 0, 0], [0, 4, 5, 0]]
    assert batch['targets'].tolist() == [[6, 1, 0, 0], [4, 5, 1, 0]]
    assert batch['weights'].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert {array.dtype.name for array in batch.values()} == {'int32', 'float32'}


@pytest.mark.parametrize(
    ('tokenizer', 'start', 'inputs', 'targets'),
    [
        (BART, None, [2, 6, 0, 0], [6, 1, 0, 0]),  # <s> starts, and is not given twice
        (BART, 1, [1, 2, 6, 0], [2, 6, 1, 0]),  # as released BARTs have it
        (BARE, 3, [3, 6, 0, 0], [6, 1, 0, 0]),  # an end is added where the tokenizer has none
        (text.byte_level(), None, [256, ord('c'), 0, 0], [ord('c'), 256, 0, 0]),  # one special token is start and end
    ],
)
def test_start_and_end_tokens(tokenizer, start, inputs, targets):
    batch = rows(task(tokenizer, start_id=start))
    assert batch['inputs'][0].tolist() == inputs
    assert batch['targets'][0].tolist() == targets


def test_what_is_too_long_is_dropped_or_cut():
    assert len(rows(task(source=4))['source']) == 1
    cut = rows(task(source=4, too_long='cut'))
    assert cut['source'][1].tolist() == [4, 5, 6, 1]
    assert cut['targets'][2].tolist() == [4, 5, 6, 1]
    with pytest.raises(BadInput, match='5 tokens, the limit is max_source_length 4'):
        task(source=4).encode({'source': 'abcd'})
    made = task(source=4, too_long='cut')
    (features,) = made.encode({'source': 'abcd'})
    assert features['source'].tolist() == [4, 5, 6, 1]
    arrays = {'tokens': np.array([4, 5, 1]), 'lengths': np.array(2), 'logprobs': np.zeros(3)}
    assert made.decode({'source': 'abcd'}, [(features, arrays)])['tokens_cut'] == 1
    assert 'tokens_cut' not in made.decode({'source': 'abc'}, [(features, arrays)])
    with pytest.raises(BadInput, match='none of 3 pairs fits'):
        rows(task(source=2, target=2))


def test_prefix_is_read_before_the_source_alone():
    made = task(source=8, prefix='dd')
    assert rows(made)['source'][0].tolist() == [7, 7, 4, 5, 1, 0, 0, 0]
    assert rows(made)['targets'][0].tolist() == [6, 1, 0, 0]
    assert made.encode({'source': 'ab'})[0]['source'].tolist() == [7, 7, 4, 5, 1, 0, 0, 0]


def test_equal_data_has_one_fingerprint_and_other_settings_another():
    prints = [
        made.features(sources.in_memory(records=PAIRS)).lmx_fingerprint for made in (task(), task(), task(source=7), task(prefix='d'))
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


FAMILIES = {
    'transformer': partial(models.transformer, mlp_dim=24),
    't5': partial(models.t5, mlp_dim=24, head_dim=8, num_buckets=8),
    'bart': partial(models.bart, mlp_dim=24, max_length=32),
}


@functools.cache
def built(family: str = 'transformer'):
    """A model whose parameters are large enough that tokens depend on what was read."""
    model = FAMILIES[family](vocab_size=8, dim=16, num_layers=1, num_heads=2, dropout_rate=0.0)
    made = task(source=8, target=6)
    params = jax.jit(lambda key: init_params(model, made.objective, rows(made), key))(jax.random.key(0))
    return model, jax.tree.map(lambda leaf: 3 * leaf, params)


@functools.cache
def compiled(family: str):
    model, _ = built(family)
    return jax.jit(lambda params, batch, smoothing: objectives.seq2seq(bind(model, params), batch, label_smoothing=smoothing))


def summed(batch, family: str = 'transformer', smoothing: float = 0.0):
    return compiled(family)(built(family)[1], batch, smoothing)


@pytest.mark.parity
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_loss_equals_pytorch(smoothing):
    torch = pytest.importorskip('torch')
    (model, params), batch = built(), rows(task(source=8, target=6))
    logits = jax.jit(model.apply)({'params': params}, batch['source'], batch['inputs'], source_segments=batch['source_segments'])
    losses = torch.nn.functional.cross_entropy(
        torch.tensor(np.asarray(logits)).swapaxes(1, 2), torch.tensor(batch['targets']).long(), label_smoothing=smoothing, reduction='none'
    ).numpy()
    sums = summed(batch, smoothing=smoothing)
    # One float32 sum of a dozen terms: 1e-6.
    np.testing.assert_allclose(sums['loss/seq2seq'].total, (losses * batch['weights']).sum(), rtol=1e-6)
    assert sums['loss/seq2seq'].count == batch['weights'].sum()
    assert sums['accuracy'].total == ((logits.argmax(-1) == batch['targets']) * batch['weights']).sum()


@pytest.mark.parametrize('family', ['transformer', 't5'])
def test_padding_changes_nothing(family):
    tight, wide = (rows(task(source=source, target=target)) for source, target in ((6, 6), (11, 9)))
    sums = [summed(batch, family=family) for batch in (tight, wide)]
    # Sums over more zeros come in another order: float32 rounding.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-6), *sums)


def test_pairs_that_share_a_row_do_not_see_each_other():
    batch = rows(task(source=6, target=6))
    row = lambda name: np.concatenate([batch[name][0], batch[name][1]])[None]  # noqa: E731
    numbers = lambda real: np.concatenate([real[0] > 0, 2 * (real[1] > 0)])[None].astype(np.int32)  # noqa: E731
    packed = {name: row(name) for name in ('source', 'inputs', 'targets', 'weights')}
    packed |= {'source_segments': numbers(batch['source_segments']), 'segments': numbers(batch['weights'])}
    two = {name: array[:2] for name, array in batch.items()}
    sums = [summed(each) for each in (two, packed)]
    np.testing.assert_allclose(sums[0]['nll'].total, sums[1]['nll'].total, rtol=2e-6)  # float32 sums in another order


@pytest.mark.parametrize('family', ['t5', 'bart'])
def test_prediction_is_the_likeliest_token_at_each_place(family):
    """Against the whole target read afresh for every token."""
    model, params = built(family)
    made = task(source=8, target=6)
    batch = {name: np.stack([made.encode(record)[0][name] for record in PAIRS]) for name in ('source', 'source_segments')}
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = jax.jit(lambda params: made.predict(bind(model, params), batch, keys))(params)
    forward = jax.jit(partial(model.apply, {'params': params}))
    target, margin = np.zeros((3, 7), np.int32), np.inf
    for place in range(6):
        logits = forward(batch['source'], jnp.asarray(target[:, :6]), source_segments=batch['source_segments'])[:, place]
        top = np.sort(logits, axis=-1)
        margin = min(margin, (top[:, -1] - top[:, -2]).min())
        target[:, place + 1] = np.argmax(logits, axis=-1)
    assert margin > 1e-4  # no near-tie decides
    for want, row, length in zip(target[:, 1:].tolist(), arrays['tokens'].tolist(), arrays['lengths'].tolist()):
        end = want.index(1) if 1 in want else 6
        assert row[:length] == want[:end]
    record = {name: array[0] for name, array in arrays.items()}
    assert made.decode(PAIRS[0], [({}, record)])['text'] == T5.decode(record['tokens'][: record['lengths']])


@pytest.mark.parametrize('beam_size', [1, 3])
def test_predictions_keep_to_what_they_may_say(beam_size):
    model, params = built('t5')
    made = task(source=8, target=6, beam_size=beam_size, banned=('a', 'cb'), forced='d', min_tokens=3, no_repeat=1)
    batch = {name: np.stack([made.encode(record)[0][name] for record in PAIRS]) for name in ('source', 'source_segments')}
    arrays = jax.jit(lambda params: made.predict(bind(model, params), batch, jax.random.split(jax.random.key(0), 3)))(params)
    for row, length in zip(arrays['tokens'].tolist(), arrays['lengths'].tolist()):
        ids = row[:length]
        assert ids[0] == IDS['d']
        assert len(ids) >= 3
        assert len(set(ids)) == len(ids)
        assert IDS['a'] not in ids
        assert (IDS['c'], IDS['b']) not in set(itertools.pairwise(ids))


def reversals(count: int = 64):
    random = rng.numpy_rng(0, 'words')
    made = (''.join('abcd'[i] for i in random.integers(0, 4, random.integers(1, 5))) for _ in range(count))
    return [{'source': word, 'target': word[::-1]} for word in made]


def test_a_run_learns_to_reverse(tmp_path):
    c = base()
    c.steps, c.batch_size = 100, 64
    c.data = {split: spec(sources.in_memory, records=reversals()) for split in ('train', 'validation')}
    c.tokenizer = spec(text.characters, source=ref('data.train'), field='source', eos=True)
    c.task = spec(tasks.text_to_text, tokenizer=ref('tokenizer'), max_source_length=6, max_target_length=6, metric=metrics.chrf)
    sizes = {'dim': 32, 'num_layers': 1, 'num_heads': 2, 'mlp_dim': 64, 'dropout_rate': 0.0}
    c.model = spec(models.transformer, vocab_size=ref('tokenizer.vocab_size'), residual=pre_norm, **sizes)
    c.optim = spec(optim.optimizer, rule=spec(optim.adam), schedule=spec(schedules.linear, peak=1e-2, steps=100), clip_norm=1.0)
    values = run.train(c, tmp_path / 'run')['validation']
    assert values['accuracy'] > 0.99
    assert values['loss'] < 0.1
    made = run.predict(tmp_path / 'run', [pair['source'] for pair in reversals()[:12]], config=c, allow=('jax',))
    assert [each['text'] for each in made] == [pair['target'] for pair in reversals()[:12]]
    scored = run.evaluate(tmp_path / 'run', config=c, allow=('jax',))
    *lines, signature = run.table(scored).split('\n')
    assert 'chrf 100.0000 (100.0000 to 100.0000)' in lines[0]
    assert signature.startswith('chrf: nrefs:1|case:mixed')
    assert 'chrf: ' not in lines[0]


@pytest.mark.parametrize(
    ('make', 'says'),
    [
        (lambda: task(too_long='split'), "too_long 'split' is unknown"),
        (lambda: task(source=1), 'no room beside 1 special'),
        (lambda: task(text.characters(source=grain.MapDataset.source([{'text': 'abc'}]))), 'needs a tokenizer with an end token'),
    ],
)
def test_refusals(make, says):
    with pytest.raises(BadInput, match=says):
        make()


def test_a_draft_changes_no_translation():
    made = task(T5, source=6, target=6, max_tokens=6, draft_tokens=2)
    both = []
    for layers in (2, 1):
        model = models.t5(vocab_size=8, dim=16, num_layers=layers, num_heads=2, head_dim=8, mlp_dim=32)
        params = jax.jit(lambda key, model=model: init_params(model, made.objective, rows(made), key))(jax.random.key(layers))
        both.append(bind(model, jax.tree.map(lambda x: 4 * x, params)))
    features = [made.encode({'source': source})[0] for source in ('ab', 'abcd', 'b')]
    batch = {name: np.stack([each[name] for each in features]) for name in features[0]}
    keys = jax.random.split(jax.random.key(0), 3)
    alone = jax.jit(lambda: made.predict(both[0], batch, keys))()
    drafted = jax.jit(lambda: made.predict(both[0], batch, keys, draft=both[1]))()
    for name in ('tokens', 'lengths'):
        np.testing.assert_array_equal(drafted[name], alone[name])
    assert 'draft_accepted' in made.decode({'source': 'ab'}, [(features[0], {name: array[0] for name, array in drafted.items()})])
