"""Text classification: what the model is given, losses against PyTorch's, padding that changes nothing, and a run that learns."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from lmx import metrics, models, objectives, optim, rng, run, tasks, text
from lmx.data import sources, transforms
from lmx.data.transforms import labelled
from lmx.nn import heads
from lmx.optim import schedules
from lmx.run.config import base
from lmx.spec import ref, spec
from lmx.train.state import bind, init_params
from lmx.types import BadInput

LABELS = ('few', 'some', 'many')
RECORDS = [
    {'text': 'one two', 'other': 'two two three', 'label': 'some', 'value': 2.5},
    {'text': 'two', 'other': 'one', 'label': 0, 'value': -1},
    {'text': 'three one two three two one', 'other': 'three', 'label': 'many', 'value': 0.5},
]


@functools.cache
def tokenizer():
    return text.wordpiece(source=sources.in_memory(records=[{'text': 'one two three four'}]), vocab_size=60)


def task(max_length: int = 8, **keywords):
    return tasks.text_classification(tokenizer=tokenizer(), max_length=max_length, **{'labels': LABELS, **keywords})


def rows(made, records=RECORDS):
    features = made.features(sources.in_memory(records=records))
    return {name: np.stack([features[index][name] for index in range(len(features))]) for name in features[0]}


def words(ids) -> str:
    return tokenizer().inner.decode([int(i) for i in ids], skip_special_tokens=False)


def test_features_by_hand():
    batch = rows(task(max_length=6))
    assert [words(row) for row in batch['tokens']] == [
        '[CLS] one two [SEP] [PAD] [PAD]',
        '[CLS] two [SEP] [PAD] [PAD] [PAD]',
        '[CLS] three one two three [SEP]',
    ]
    assert batch['segments'].tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0], [1] * 6]
    assert batch['label'].tolist() == [1, 0, 2]
    assert batch['weights'].tolist() == [1, 1, 1]
    assert 'types' not in batch


def test_pairs_have_types_where_the_model_has():
    batch = rows(task(max_length=9, other='other'))
    assert words(batch['tokens'][0]) == '[CLS] one two [SEP] two two three [SEP] [PAD]'
    assert batch['types'].tolist()[0] == [0, 0, 0, 0, 1, 1, 1, 1, 0]
    assert words(batch['tokens'][2]) == '[CLS] three one two three two [SEP] three [SEP]'  # the longer is cut
    assert 'types' not in rows(task(max_length=9, other='other', num_types=1))
    assert task(other='other').inputs == ('text', 'other')


def test_numbers_have_no_labels():
    batch = rows(task(labels=None, label='value'))
    assert batch['label'].tolist() == [2.5, -1, 0.5]
    assert batch['label'].dtype == np.float32


@pytest.mark.parity
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_losses_equal_pytorch(smoothing):
    torch = pytest.importorskip('torch')
    scores = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32) * 3
    labels, weights = np.array([0, 2, 1, 1, 0], np.int32), np.array([1, 1, 0, 1, 1], np.float32)
    batch = {'tokens': np.zeros((5, 2), np.int32), 'label': labels, 'weights': weights}
    sums = objectives.classify(lambda tokens: (scores, {}), batch, label_smoothing=smoothing)
    losses = torch.nn.functional.cross_entropy(
        torch.tensor(scores), torch.tensor(labels).long(), label_smoothing=smoothing, reduction='none'
    ).numpy()
    # One float32 sum of five terms: 1e-6.
    np.testing.assert_allclose(sums['loss/classify'].total, (losses * weights).sum(), rtol=1e-6)
    assert sums['loss/classify'].count == sums['accuracy'].count == 4
    assert sums['accuracy'].total == ((scores.argmax(-1) == labels) * weights).sum()
    values = {**batch, 'label': scores[:, 1]}
    error = torch.nn.functional.mse_loss(torch.tensor(scores[:, 0]), torch.tensor(scores[:, 1]), reduction='none').numpy()
    found = objectives.regress(lambda tokens: (scores[:, :1], {}), values)['loss/regress']
    np.testing.assert_allclose(found.total, (error * weights).sum(), rtol=1e-6)


def test_padding_changes_nothing():
    made, wide = task(max_length=8, other='other'), task(max_length=13, other='other')
    sizes = {'vocab_size': 60, 'dim': 16, 'num_layers': 1, 'num_heads': 2, 'dropout_rate': 0.0}
    model = models.bert(**sizes, head=heads.classifier(num_classes=3, pool=heads.mean))
    records = RECORDS[:2]
    params = jax.jit(lambda key: init_params(model, made.objective, rows(made, records), key))(jax.random.key(0))
    params = jax.tree.map(lambda leaf: 5 * leaf, params)
    sums = [jax.jit(lambda params, batch: made.objective(bind(model, params), batch))(params, rows(each, records)) for each in (made, wide)]
    # Means over more zeros come in another order: float32 rounding.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *sums)


def test_predictions_name_what_was_cut():
    made = task(max_length=5)
    (features,) = made.encode(RECORDS[2])
    apply = lambda tokens, segments: (np.array([[0.0, np.log(2.0), 0.0]], np.float32), {})  # noqa: E731
    arrays = made.predict(apply, {name: np.array(value)[None] for name, value in features.items()}, None)
    found = made.decode(RECORDS[2], [(features, {name: array[0] for name, array in arrays.items()})])
    assert found['label'] == 'some'
    assert found['tokens_cut'] == 3
    np.testing.assert_allclose(list(found['probabilities'].values()), [0.25, 0.5, 0.25], rtol=1e-6)
    assert 'tokens_cut' not in made.decode(RECORDS[1], [(made.encode(RECORDS[1])[0], {'probabilities': np.ones(3) / 3})])


def counting(count: int):
    """The label is how many of 'two' and 'three' occur."""
    random = rng.numpy_rng(0, 'texts')
    texts = [' '.join(random.choice(['one', 'two', 'three'], random.integers(1, 7))) for _ in range(count)]
    return [{'text': text, 'label': LABELS[('two' in text) + ('three' in text)]} for text in texts]


def test_a_run_learns_to_count(tmp_path):
    c = base()
    c.steps, c.batch_size = 200, 64
    c.data = {split: spec(sources.in_memory, records=counting(64)) for split in ('train', 'validation')}
    c.tokenizer = spec(text.wordpiece, source=ref('data.train'), vocab_size=60)
    c.task = spec(tasks.text_classification, tokenizer=ref('tokenizer'), max_length=8, labels=LABELS, metric=metrics.classification)
    sizes = {'dim': 32, 'num_layers': 1, 'num_heads': 2, 'max_length': 8, 'dropout_rate': 0.0}
    c.model = spec(
        models.bert, vocab_size=ref('tokenizer.vocab_size'), head=spec(heads.classifier, num_classes=3, pool=heads.mean), **sizes
    )
    c.every.checkpoint = 20
    c.keep.last = 10
    c.optim = spec(optim.optimizer, rule=spec(optim.adam), schedule=spec(schedules.linear, peak=5e-3, steps=200, warmup_steps=20))
    assert run.train(c, tmp_path / 'run')['validation']['accuracy'] > 0.95
    made = run.predict(tmp_path / 'run', ['one one', 'two one two', 'two one three two'], config=c, allow=('jax',))
    assert [each['label'] for each in made] == list(LABELS)
    check_scores(c, tmp_path)


def check_scores(c, tmp_path):
    """An evaluation has intervals and keeps what was predicted; a report says whether two of them differ."""
    shutil.copytree(tmp_path / 'run', tmp_path / 'early')
    late, early = (
        run.evaluate(tmp_path / name, checkpoint=step, config=c, allow=('jax',))['validation']
        for name, step in (('run', '200'), ('early', '20'))
    )
    assert early['accuracy/low'] < early['accuracy'] < late['accuracy/low'] <= late['accuracy']
    shown = [f'{late["accuracy" + end]:.4f}' for end in ('', '/low', '/high')]
    assert 'accuracy {} ({} to {})'.format(*shown) in run.table({'validation': late})
    lines = [json.loads(line) for line in (tmp_path / 'run' / 'scores' / 'validation-200.jsonl').read_text().splitlines()]
    assert np.mean([line['label'] == record['label'] for line, record in zip(lines, counting(64), strict=True)]) == late['accuracy']
    page = run.report(tmp_path / 'run', tmp_path / 'early').read_text()
    assert 'Whether they differ' in page
    assert 'below 0.001' in page


def test_labels_from_another_field():
    records = [{'text': str(index), 'module': name} for index, name in enumerate(['a.b', 'c', 'a', 'ab.c'])]
    step = labelled(field='module', pattern=r'\w+', labels=('a', 'ab'))
    found = transforms.apply(source=sources.in_memory(records=records), steps=(step,))
    assert [(found[i]['text'], found[i]['label']) for i in range(len(found))] == [('0', 'a'), ('2', 'a'), ('3', 'ab')]
    with pytest.raises(BadInput, match='begins with one of x'):
        labelled(field='module', labels=('x',))(sources.in_memory(records=records))


@pytest.mark.parametrize(
    ('make', 'says'),
    [
        (lambda: task(labels=('one',)), '1 labels are no choice'),
        (lambda: rows(task(max_length=2)), 'no room beside 2'),
        (lambda: rows(task(), [{'text': 'one', 'label': 'none'}]), "label 'none' is not among the 3 labels few, some, many"),
        (lambda: rows(task(), [{'text': 'one', 'label': -1}]), 'label -1 is not among'),
        (lambda: task().encode({'text': ''}), 'text is empty'),
    ],
)
def test_refusals(make, says):
    with pytest.raises(BadInput, match=says):
        make()


def test_a_label_that_is_none_is_named_with_its_file_and_line_before_training(tmp_path):
    path = tmp_path / 'train.jsonl'
    path.write_text('{"text": "one", "label": "few"}\n\n{"text": "two", "label": "lots"}\n')
    records = sources.jsonl(pattern=str(path))
    with pytest.raises(BadInput, match=r"train\.jsonl:3: label 'lots' is not among the 3 labels few, some, many"):
        task().features(records)
    with pytest.raises(BadInput, match=r"train\.jsonl:1: label 'few' is no finite number"):
        task(labels=None).features(records)
    with pytest.raises(BadInput, match=r"record 2: label 'lots'"):
        task().features(transforms.apply(source=records, steps=(transforms.lowercase(),)))
    with pytest.raises(BadInput, match=r"train\.jsonl:1: records have no field 'kind', only text, label"):
        task(label='kind').features(records)
    path.write_text('{"text": "one", "label": "few"}\n')
    assert task().features(sources.jsonl(pattern=str(path)))[0]['label'] == 0
