"""The loop's order, early stopping, non-finite losses, evaluation in float64."""

import json

import numpy as np
import pytest

from lmx import run
from lmx.run import parts
from lmx.run.config import load
from lmx.train import loop
from lmx.train.evaluate import evaluate, report
from lmx.types import BadInput, Mean

pytestmark = pytest.mark.usefixtures('one_device')


def trace(steps, every, start=0, stop=lambda step: None):
    events = []
    hooks = loop.Hooks(
        log=lambda line: events.append(('log', line['step'])),
        evaluate=lambda step, state: events.append(('evaluate', step)),
        save=lambda step, state: events.append(('save', step)),
        stop=stop,
        identify=lambda batch: str(batch),
    )

    def step(state, batch):
        events.append(('step', batch))
        return state + 1, {'loss/x': Mean(2.0, 1.0), 'grad_norm': Mean(1.0, 1.0), 'skipped': Mean(0.0, 1.0)}

    out = loop.fit(start, step, iter([(i, i) for i in range(start, 99)]), hooks, start=start, steps=steps, every=every)
    return events, out


def test_order_is_evaluate_checkpoint_step_log():
    events, out = trace(4, {'log': 1, 'evaluate': 2, 'checkpoint': 2})
    assert out == (4, None)
    assert events == [
        *[('step', 0), ('step', 1), ('log', 1)],  # step 1 is logged when step 2 has been queued
        *[('log', 2), ('evaluate', 2), ('save', 2)],
        *[('step', 2), ('step', 3), ('log', 3), ('log', 4), ('evaluate', 4), ('save', 4)],
    ]


def test_a_resumed_loop_neither_evaluates_nor_saves_its_first_step_again():
    events, _ = trace(4, {'log': 1, 'evaluate': 2, 'checkpoint': 2}, start=2)
    assert events[0] == ('step', 2)


def test_a_request_to_stop_saves_at_once():
    events, out = trace(9, {'log': 1, 'evaluate': 0, 'checkpoint': 0}, stop=lambda step: 'preempted' if step == 3 else None)
    assert out == (3, 'preempted')
    assert events[-2:] == [('log', 3), ('save', 3)]


def test_evaluation_adds_up_in_float64():
    batches = [np.float32(1e-3)] * 3000 + [np.float32(1e4)]
    out = evaluate(lambda params, x: {'loss/x': Mean(x, np.float32(1))}, None, batches)
    assert out['loss'] == pytest.approx((3000 * float(np.float32(1e-3)) + 1e4) / 3001, rel=1e-12)


def test_report_names():
    out = report({'loss/a': Mean(2.0, 2.0), 'loss/b': Mean(1.0, 2.0), 'nll': Mean(0.0, 1.0)})
    assert out == {'loss': 1.5, 'loss/a': 1.0, 'loss/b': 0.5, 'nll': 0.0, 'perplexity': 1.0}


def test_early_stopping_survives_a_restart(tmp_path):
    config = load('tests/tiny.py:steps=100')
    with config.unlocked(), config.ignore_type():
        config.early_stopping.patience = 2
        config.optim.schedule = 0.0  # nothing improves
    run.train(config, tmp_path / 'run')
    lines = [json.loads(line) for line in (tmp_path / 'run' / 'eval.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines] == [10, 20, 30]
    run.train(config, tmp_path / 'run')
    assert len((tmp_path / 'run' / 'eval.jsonl').read_text().splitlines()) == 3


def test_a_run_traces_each_function_once(tmp_path, monkeypatch):
    """What is checked before a run is what is compiled."""
    traced = []
    for name in ('init_state', 'train_step', 'eval_step'):
        real = getattr(parts, name)
        monkeypatch.setattr(parts, name, lambda *args, name=name, real=real, **keywords: traced.append(name) or real(*args, **keywords))
    run.train(load('tests/tiny.py:steps=2'), tmp_path / 'run')
    assert sorted(traced) == ['eval_step', 'init_state', 'train_step']


def explode(config):
    with config.unlocked(), config.ignore_type():
        config.optim.schedule = 1e38
        config.optim.clip_norm = None
        config.optim.weight_decay = 0.0
        config.optim.ema_decay = None
    return config


def test_a_non_finite_loss_stops_and_says_so(tmp_path):
    with pytest.raises(BadInput, match='not finite at step'):
        run.train(explode(load('tests/tiny.py:steps=30,dropout=0')), tmp_path / 'run')


def test_or_is_skipped_and_counted(tmp_path):
    config = explode(load('tests/tiny.py:steps=30,dropout=0'))
    config.nonfinite = 'skip'
    run.train(config, tmp_path / 'run')
    lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert any(line.get('skipped') for line in lines)
    assert lines[-1]['step'] == 30
