"""Sentence similarity on the STS benchmark: data and task for an imported sentence-transformers model, or a small BERT from nothing.

    lmx import --from=DIR --workdir=runs/minilm --config=configs/search_stsb.py && lmx evaluate --workdir=runs/minilm --split=test

Put sts-train.csv, sts-dev.csv and sts-test.csv (or their .xz) in $LMX_DATA/stsb. Published for all-MiniLM-L6-v2: Spearman 82.0 on the
test split.
"""

import os

from ml_collections import ConfigDict

from lmx import models, optim, tasks, text
from lmx.data import sources
from lmx.nn import heads
from lmx.optim import schedules
from lmx.run.config import base, shrink
from lmx.spec import parse_arg, ref, spec


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False)
    c = base()
    c.steps, c.batch_size = 1000, 32
    fields = {name: name for name in ('text', 'other', 'score')}
    folder = os.path.join(os.environ.get('LMX_DATA', '../shared/data'), 'stsb')
    source = {'name': 'lmx:stsb', 'fields': fields, 'manual_dir': folder}
    c.data = {split: spec(sources.tfds, split=split, **source) for split in ('train', 'validation', 'test')}
    c.tokenizer = spec(text.wordpiece, source=ref('data.train'), vocab_size=4000)
    c.task = spec(tasks.semantic_search, tokenizer=ref('tokenizer'), max_length=128, text='text', other='other', similarity='score')
    c.model = spec(
        models.bert,
        vocab_size=ref('tokenizer.vocab_size'),
        dim=128,
        num_layers=2,
        num_heads=4,
        max_length=ref('task.max_length'),
        head=spec(heads.embedding),
    )
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam),
        schedule=spec(schedules.linear, peak=5e-4, steps=ref('steps'), warmup_steps=100),
        weight_decay=0.01,
        clip_norm=1.0,
    )
    c.every = {'log': 20, 'evaluate': 500, 'checkpoint': 500}
    return shrink(c) if a.debug else c
