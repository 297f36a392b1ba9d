"""A config small enough to train in a second: a GPT on sums as text. Tests run it in-process and as `lmx train --config=tests/tiny.py`."""

from ml_collections import ConfigDict

from lmx import models, optim, rng, tasks, text
from lmx.data import sources
from lmx.optim import schedules
from lmx.run.config import base
from lmx.spec import parse_arg, ref, spec


def records(*, split: str, count: int = 200):
    numbers = rng.numpy_rng(0, split).integers(0, 100, (count, 2)).tolist()
    return sources.in_memory(records=[{'text': f'{a}+{b}={a + b}\n'} for a, b in numbers])


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, steps=40, dropout=0.1, ema=0.9)
    c = base()
    c.steps, c.batch_size = a.steps, 8
    c.data = {split: spec('tests.tiny:records', split=split) for split in ('train', 'validation')}
    c.tokenizer = spec(text.characters, source=ref('data.train'))
    c.task = spec(tasks.language_modelling, tokenizer=ref('tokenizer'), max_length=24, max_tokens=12)
    c.model = spec(
        models.gpt,
        vocab_size=ref('tokenizer.vocab_size'),
        dim=16,
        num_layers=2,
        num_heads=2,
        max_length=ref('task.max_length'),
        dropout_rate=a.dropout,
    )
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam),
        schedule=spec(schedules.cosine, peak=3e-3, steps=400, warmup_steps=5),  # whatever the run's steps, so that all are one program
        weight_decay=0.1,
        clip_norm=1.0,
        ema_decay=a.ema,
    )
    c.every = {'log': 1, 'evaluate': 10, 'checkpoint': 5}
    c.keep = {'last': 3, 'best': 'validation/loss', 'mode': 'min'}
    return c
