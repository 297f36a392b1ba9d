"""Code generation: what is trained on, samples that differ, and programs that are run only where that was asked for."""

import functools

import jax
import numpy as np
import pytest

from lmx import metrics, models, rng, tasks, text
from lmx.data import sources
from lmx.metrics import sandbox
from lmx.tasks.code_generation import program
from lmx.train.state import bind
from lmx.types import BadInput

RECORD = {
    'prompt': 'def f(a):\n    """Return twice a."""\n',
    'completion': '    return 2 * a\n',
    'test': 'def check(candidate):\n    assert candidate(3) == 6',
    'entry_point': 'f',
}


@functools.cache
def tokenizer():
    return text.bpe(source=sources.in_memory(records=[{'text': RECORD['prompt'] + RECORD['completion']}] * 4), vocab_size=270)


def task(**keywords):
    return tasks.code_generation(tokenizer=tokenizer(), max_length=96, **{'max_tokens': 8, **keywords})


@functools.cache
def model():
    made = models.gpt(vocab_size=tokenizer().vocab_size, dim=16, num_layers=1, num_heads=2, max_length=96)
    noise = rng.numpy_rng(0, 'noise')
    params = made.init(jax.random.key(0), np.zeros((1, 8), np.int32))['params']
    return bind(made, jax.tree.map(lambda x: x + 0.1 * noise.normal(size=x.shape).astype(np.float32), params))


def test_the_completion_and_its_end_are_learnt():
    features = task().features(sources.in_memory(records=[RECORD]))[0]
    real = features['segments'] > 0
    whole = [*tokenizer().encode(RECORD['prompt']), *tokenizer().encode(RECORD['completion']), tokenizer().eos_id]
    assert features['inputs'][real].tolist() == whole[:-1]
    assert tokenizer().decode(features['targets'][features['weights'] > 0][:-1]) == RECORD['completion']
    assert features['targets'][features['weights'] > 0][-1] == tokenizer().eos_id


def test_samples_differ_and_come_in_order():
    made = task(samples=3, ks=(1, 3), temperature=1.0, stop=())
    rows = made.encode({'prompt': RECORD['prompt']})
    assert [int(row['sample']) for row in rows] == [0, 1, 2]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    arrays = jax.jit(lambda batch, keys: made.predict(model(), batch, keys))(
        batch, jax.random.split(jax.random.key(0), 1)[np.zeros(3, int)]
    )
    windows = [(row, {name: array[place] for name, array in arrays.items()}) for place, row in enumerate(rows)]
    found = made.decode(RECORD, windows[::-1])
    assert len(set(found['completions'])) == 3
    assert found == made.decode(RECORD, windows)
    assert found['completion'] == found['completions'][0]


def test_nothing_runs_unasked(tmp_path):
    made = task(metric=metrics.exact)
    attack = [{'completion': f'    open({str(tmp_path / "x")!r}, "w")\n'}]
    assert made.score(attack, [RECORD]).values() == {'exact_match': 0.0}
    assert task().score is None
    assert not (tmp_path / 'x').exists()


@pytest.mark.skipif(bool(sandbox.supported()), reason=sandbox.supported() or 'supported')
def test_what_passes_its_tests_scores():
    right, wrong = '    return a + a\n', '    return a\n'
    made = task(samples=2, ks=(1, 2), temperature=1.0, execute=True, metric=metrics.exact)
    predictions = [
        {'completion': wrong, 'completions': [wrong, right]},
        {'completion': RECORD['completion'], 'completions': [RECORD['completion']] * 2},
        {'completion': wrong, 'completions': [wrong, '    return (']},
    ]
    values = made.score(predictions, [RECORD] * 3).values()
    assert values == {'exact_match': pytest.approx(1 / 3), 'pass@1': 0.5, 'pass@2': pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ('keywords', 'said'), [({'ks': (1, 5)}, r'ks \(1, 5\) needs at least 5 samples'), ({'samples': 4}, 'samples 4 at temperature 0')]
)
def test_what_is_wrong_is_said(keywords, said):
    with pytest.raises(BadInput, match=said):
        task(**keywords)
    with pytest.raises(BadInput, match="has no 'test'"):
        program({'prompt': 'x'}, 'y')


@pytest.mark.real_data
def test_the_solutions_of_humaneval_pass(raw_data, tmp_path):
    from lmx.metrics import execution

    fields = {name: name for name in ('prompt', 'canonical_solution', 'test', 'entry_point')}
    records = sources.tfds(
        name='lmx:humaneval', split='test', fields=fields, data_dir=str(tmp_path), manual_dir=str(raw_data / 'humaneval')
    )
    records = [records[index] for index in range(len(records))]
    results = execution.run_all([program(each, each['canonical_solution']) for each in records], seconds=20.0)
    assert [each.reason for each in results] == [''] * 164
    empty = execution.run_all([program(each, '    pass\n') for each in records[:20]])
    assert not any(each.passed for each in empty)
