"""Instruction tuning: rows of whole conversations, losses on answers alone, and a run that learns to answer."""

import functools

import jax
import numpy as np
import pytest

from lmx import models, optim, run, tasks, text
from lmx.data import sources
from lmx.optim import schedules
from lmx.run.config import base
from lmx.spec import ref, spec
from lmx.train.state import bind, init_params
from lmx.types import BadInput

RECORDS = [
    {'prompt': 'one?', 'completion': 'uno'},
    {'prompt': 'two and three?', 'completion': 'dos, tres'},
    {'messages': [{'role': r, 'content': c} for r, c in (('user', 'four?'), ('assistant', '4'), ('user', 'five?'), ('assistant', '5'))]},
]


@functools.cache
def tokenizer():
    return text.byte_level()


def rows(max_length: int, records=RECORDS):
    features = tasks.instruction_tuning(tokenizer=tokenizer(), max_length=max_length).features(sources.in_memory(records=records))
    return {name: np.stack([features[index][name] for index in range(len(features))]) for name in features[0]}


def test_rows_hold_whole_conversations_and_weigh_answers():
    batch = rows(40)
    assert len(batch['inputs']) == 2  # targets: 24 + 15, and 8
    found = []
    for inputs, targets, weights, segments, positions in zip(
        *(batch[n] for n in ('inputs', 'targets', 'weights', 'segments', 'positions'))
    ):
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            np.testing.assert_array_equal(positions[here], np.arange(here.sum()))
            np.testing.assert_array_equal(inputs[here][1:], targets[here][:-1])
            said = ''.join(tokenizer().decode([i]) if i != tokenizer().eos_id else '|' for i in targets[here & (weights > 0)])
            found.append((tokenizer().decode(np.append(inputs[here][:1], targets[here])), said))
        assert not weights[segments == 0].any()
    assert sorted(found) == sorted([('one?\nuno', 'uno|'), ('two and three?\ndos, tres', 'dos, tres|'), ('four?\n4five?\n5', '4|5|')])


def test_loss_of_shared_rows_equals_that_of_each_alone():
    task = tasks.instruction_tuning(tokenizer=tokenizer(), max_length=48)
    model = models.gpt(vocab_size=tokenizer().vocab_size, dim=16, num_layers=2, num_heads=2, max_length=48, dropout_rate=0.0)
    shared, alone = rows(48), [rows(48, [record]) for record in RECORDS]
    params = jax.jit(lambda key: init_params(model, task.objective, shared, key))(jax.random.key(0))
    params = jax.tree.map(lambda leaf: 5 * leaf, params)
    loss = jax.jit(lambda batch: task.objective(bind(model, params), batch)['loss/next_token'])
    together, apart = loss(shared), [loss(batch) for batch in alone]
    assert float(together.count) == sum(float(each.count) for each in apart) == 4 + 10 + 4
    # Sums of 18 float32 losses in another order.
    np.testing.assert_allclose(together.total, sum(float(each.total) for each in apart), rtol=1e-5)


def exact(predictions, references):
    return {'exact': float(np.mean([a == b for a, b in zip(predictions, references, strict=True)]))}


def test_a_run_learns_to_answer(tmp_path):
    c = base()
    c.steps, c.batch_size = 80, 8
    c.data = {split: spec(sources.in_memory, records=RECORDS * 8) for split in ('train', 'validation')}
    c.tokenizer = spec(text.byte_level)
    c.task = spec(tasks.instruction_tuning, tokenizer=ref('tokenizer'), max_length=48, max_tokens=12, metric=exact)
    c.model = spec(models.gpt, vocab_size=ref('tokenizer.vocab_size'), dim=32, num_layers=1, num_heads=2, max_length=48, dropout_rate=0.0)
    c.optim = spec(optim.optimizer, rule=spec(optim.adam), schedule=spec(schedules.linear, peak=1e-2, steps=80, warmup_steps=10))
    run.train(c, tmp_path / 'run')
    again = {'config': c, 'allow': ('tests', 'instruction_tuning_test')}
    made = run.predict(tmp_path / 'run', [{'prompt': 'one?'}, 'two and three?', {'prompt': RECORDS[2]['messages'][:3]}], **again)
    assert [each['answer'] for each in made] == ['uno', 'dos, tres', '5']
    assert run.evaluate(tmp_path / 'run', **again)['validation']['exact'] == 1.0


def test_refusals():
    with pytest.raises(BadInput, match='none of 3 conversations fits max_length 4; the shortest has 9'):
        rows(4)
    task = tasks.instruction_tuning(tokenizer=tokenizer(), max_length=8)
    with pytest.raises(BadInput, match='has 15 tokens, the model reads at most 7'):
        task.encode({'prompt': 'two and three?'})
