"""SQuAD 1.1: answers as spans of Wikipedia's paragraphs (Rajpurkar et al. 2016, arXiv:1606.05250), by BERT.

    lmx import --from=DIR --workdir=runs/bert
    lmx train --config=configs/answer_squad.py:init=runs/bert --workdir=runs/squad
    lmx evaluate --workdir=runs/squad --checkpoint=best --split=validation

Published for BERT-base, 3 epochs: exact match 80.8, F1 88.5 on validation (Devlin et al. 2018, table 2). Not run here. From the TFDS catalogue
(35 MB); `lmx data --config=configs/answer_squad.py --prepare` for machines without a network.
"""

from ml_collections import ConfigDict

from lmx import metrics, models, optim, tasks, text
from lmx.data import sources, transforms
from lmx.nn import heads
from lmx.optim import schedules
from lmx.run.config import base, shrink, start_from
from lmx.spec import parse_arg, ref, spec

FIELDS = {name: name for name in ('context', 'question', 'answers')}


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False, init='')
    c = base()
    c.steps, c.batch_size = 8300, 32
    c.data = {split: spec(sources.tfds, name='squad', split=split, fields=FIELDS) for split in ('train', 'validation')}
    both = spec(transforms.apply, source=ref('data.train'), steps=(spec(transforms.texts, fields=('context', 'question')),))
    c.tokenizer = spec(text.wordpiece, source=both, vocab_size=16_000)
    c.task = spec(tasks.question_answering, tokenizer=ref('tokenizer'), max_length=384, overlap=128, metric=metrics.squad)
    size = {'dim': 768, 'num_layers': 12, 'num_heads': 12, 'max_length': ref('task.max_length')}
    c.model = spec(models.bert, vocab_size=ref('tokenizer.vocab_size'), head=spec(heads.span), **size)
    if a.init:
        start_from(c, a.init, head=spec(heads.span))
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam),
        schedule=spec(schedules.linear, peak=5e-5, steps=ref('steps'), warmup_steps=830),
        weight_decay=0.01,
        clip_norm=1.0,
    )
    c.every = {'log': 50, 'evaluate': 1000, 'checkpoint': 1000}
    c.keep.best = 'validation/loss'
    c.baselines = spec(metrics.baselines.trivial, source=ref('data.validation'))
    return shrink(c) if a.debug else c
