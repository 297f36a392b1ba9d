"""Inputs of predictions: what cannot be read is named, and left out on request alone."""

import pytest

from lmx import models, optim, run, tasks, text
from lmx.data import sources
from lmx.run.config import base
from lmx.run.predict import _record, predict, read_inputs
from lmx.spec import ref, spec
from lmx.types import BadInput


def test_broken_lines_are_named(tmp_path, capsys):
    path = tmp_path / 'in.jsonl'
    path.write_text('"one"\n{"text": \n{"text": "a\u2028b"}\n3\n')
    with pytest.raises(BadInput, match=r'in\.jsonl:2 is neither'):
        read_inputs(path)
    assert read_inputs(path, skip_bad=True) == ['one', {'text': 'a\u2028b'}]
    assert [line.partition('.jsonl')[2][:3] for line in capsys.readouterr().err.splitlines()] == [':2 ', ':4 ']
    path.write_text('')
    with pytest.raises(BadInput, match='is empty'):
        read_inputs(path)


def test_an_input_that_cannot_be_read_stops_all_or_gets_its_error(tmp_path):
    c = base()
    c.steps, c.batch_size = 1, 8
    c.data = {split: spec(sources.in_memory, records=[{'text': 'abc' * 30}]) for split in ('train', 'validation')}
    c.tokenizer = spec(text.characters, source=ref('data.train'))
    c.task = spec(tasks.language_modelling, tokenizer=ref('tokenizer'), max_length=8, max_tokens=2)
    c.model = spec(models.gpt, vocab_size=ref('tokenizer.vocab_size'), dim=8, num_layers=1, num_heads=2, max_length=8)
    c.optim = spec(optim.optimizer, rule=spec(optim.adam), schedule=1e-3)
    run.train(c, tmp_path / 'run')
    inputs = ['ab', '', {'prompt': 'a'}, 'xyz', 'abcabcabcabc', 'c']
    with pytest.raises(BadInput, match='input 2: the prompt is empty'):
        predict(tmp_path / 'run', inputs)
    made = predict(tmp_path / 'run', inputs, skip_bad=True)
    assert ['continuation' in each for each in made] == [True, False, False, False, False, True]
    assert [each['error'][:8] for each in made if 'error' in each] == ['input 2:', 'input 3 ', 'input 4:', 'input 5:']
    assert made[0] == predict(tmp_path / 'run', inputs[:1])[0]


def test_a_text_may_be_the_record_that_a_task_asks_for():
    task = tasks.generative_question_answering(tokenizer=text.byte_level(), max_source_length=64, max_target_length=8)
    assert _record(task, '{"question": "who?", "context": "{a}"}', 0) == {'question': 'who?', 'context': '{a}'}
    for given, says in (
        ('who?', '"question": ..., "context": ...'),
        ('["who?"]', 'bare text'),
        ('{"question": "who?"}', "no field 'context'"),
    ):
        with pytest.raises(BadInput, match=says):
            _record(task, given, 0)
    alone = tasks.text_to_text(tokenizer=text.byte_level(), max_source_length=64, max_target_length=8)
    assert _record(alone, '{"question": 1}', 0) == {'source': '{"question": 1}'}
