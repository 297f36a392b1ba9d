"""Questions about made-up people, answered by a span of the text: a small BERT that learns to read from nothing. Needs no download."""

from ml_collections import ConfigDict

from lmx import metrics, models, optim, tasks, text
from lmx.data import sources, transforms
from lmx.nn import heads
from lmx.optim import schedules
from lmx.run.config import base, shrink
from lmx.spec import parse_arg, ref, spec

FIELDS = {name: name for name in ('context', 'question', 'answers')}


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False)
    c = base()
    c.steps, c.batch_size = 1200, 64
    c.data = {split: spec(sources.tfds, name='lmx:facts', split=split, fields=FIELDS) for split in ('train', 'validation', 'test')}
    both = spec(transforms.apply, source=ref('data.train'), steps=(spec(transforms.texts, fields=('context', 'question')),))
    c.tokenizer = spec(text.wordpiece, source=both, vocab_size=400)
    c.task = spec(
        tasks.question_answering,
        tokenizer=ref('tokenizer'),
        max_length=80,
        overlap=8,
        max_question_length=12,
        max_answer_length=5,
        metric=metrics.squad,
    )
    c.model = spec(
        models.bert,
        vocab_size=ref('tokenizer.vocab_size'),
        dim=96,
        num_layers=3,
        num_heads=4,
        max_length=ref('task.max_length'),
        dropout_rate=0.0,
        head=spec(heads.span),
    )
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam),
        schedule=spec(schedules.linear, peak=1e-3, steps=ref('steps'), warmup_steps=200),
        weight_decay=0.01,
        clip_norm=1.0,
    )
    c.every = {'log': 20, 'evaluate': 200, 'checkpoint': 200}
    return shrink(c) if a.debug else c
