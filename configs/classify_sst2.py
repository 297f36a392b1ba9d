"""SST-2: the sentiment of sentences from film reviews (Socher et al. 2013). `:model=text_cnn`, `bilstm` or `bert`, from random parameters.

    lmx train --config=configs/classify_sst2.py --workdir=runs/sst2 && lmx evaluate --workdir=runs/sst2 --checkpoint=best --split=test

Test accuracy 82.1 % (published CNN-rand 82.7, Kim 2014) in 2 minutes and 82.8 % in 3 on 2 cores. `:init=RUN` fine-tunes an encoder that
`lmx import` made a run of: all-MiniLM-L6-v2 comes to 89.5 % (88.0 to 90.9) in 19 minutes. Put train.tsv, dev.tsv and test.tsv (or their .xz) in $LMX_DATA/sst2.
"""

import os

from ml_collections import ConfigDict

from lmx import metrics, models, optim, tasks, text
from lmx.data import sources
from lmx.nn import heads
from lmx.optim import schedules
from lmx.run.config import base, shrink, start_from
from lmx.spec import parse_arg, pick, ref, spec

LABELS = ('negative', 'positive')
CLASSES = {'num_classes': len(LABELS)}
MODELS = {
    'text_cnn': spec(models.text_cnn, vocab_size=ref('tokenizer.vocab_size'), **CLASSES),
    'bilstm': spec(models.bilstm, vocab_size=ref('tokenizer.vocab_size'), **CLASSES),
    'bert': spec(
        models.bert,
        vocab_size=ref('tokenizer.vocab_size'),
        dim=128,
        num_layers=2,
        num_heads=4,
        max_length=ref('task.max_length'),
        head=spec(heads.classifier, **CLASSES, dropout_rate=0.3, pool=heads.mean),
    ),
}


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False, model='text_cnn', init='')
    c = base()
    c.steps, c.batch_size = 1000, 50
    fields = {'text': 'text', 'label': 'label'}
    folder = os.path.join(os.environ.get('LMX_DATA', '../shared/data'), 'sst2')
    splits = ('train', 'validation', 'test')
    c.data = {split: spec(sources.tfds, name='lmx:sst2', split=split, fields=fields, manual_dir=folder) for split in splits}
    c.tokenizer = spec(text.words, source=ref('data.train'), min_count=2)
    c.task = spec(tasks.text_classification, tokenizer=ref('tokenizer'), max_length=56, labels=LABELS, metric=metrics.classification)
    c.model, rate = pick(MODELS, a.model), 1e-3
    if a.init:
        start_from(c, a.init, head=spec(heads.classifier, **CLASSES, dropout_rate=0.1, pool=heads.mean))
        c.batch_size, rate, c.task.max_length = 32, 5e-5, 64
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam),
        schedule=spec(schedules.linear, peak=rate, steps=ref('steps'), warmup_steps=100),
        weight_decay=0.01,
        clip_norm=1.0,
    )
    c.every = {'log': 20, 'evaluate': 100, 'checkpoint': 100}
    c.keep.best, c.keep.mode = 'validation/accuracy', 'max'
    return shrink(c) if a.debug else c
