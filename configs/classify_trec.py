"""TREC-6: what kind of answer a question asks for (Li and Roth 2002). `:model=text_cnn`, `bilstm` or `bert`, from random parameters.

    lmx train --config=configs/classify_trec.py --workdir=runs/trec && lmx evaluate --workdir=runs/trec --checkpoint=best --split=test

Test accuracy 89.8 % (published CNN-rand 91.2, Kim 2014), 88.2 % and 89.2 % in 45, 80 and 197 seconds on 2 cores. Put
TREC.train and TREC.test (or their .xz) in $LMX_DATA/trec.
"""

import os

from ml_collections import ConfigDict

from lmx import metrics, models, optim, tasks, text
from lmx.data import sources, transforms
from lmx.nn import heads
from lmx.optim import schedules
from lmx.run.config import base, shrink
from lmx.spec import parse_arg, pick, ref, spec

LABELS = ('ABBR', 'DESC', 'ENTY', 'HUM', 'LOC', 'NUM')
SPLITS = {'train': 'train[:95%]', 'validation': 'train[95%:]', 'test': 'test'}
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
    a = parse_arg(arg, debug=False, model='text_cnn')
    c = base()
    c.steps, c.batch_size = 800, 50
    fields = {'text': 'text', 'label': 'label'}
    folder = os.path.join(os.environ.get('LMX_DATA', '../shared/data'), 'trec')
    c.data = {
        name: spec(
            transforms.apply,
            source=spec(sources.tfds, name='lmx:trec', split=split, fields=fields, manual_dir=folder),
            steps=(spec(transforms.lowercase),),
        )
        for name, split in SPLITS.items()
    }
    c.tokenizer = spec(text.words, source=ref('data.train'))
    c.task = spec(tasks.text_classification, tokenizer=ref('tokenizer'), max_length=40, labels=LABELS, metric=metrics.classification)
    c.model = pick(MODELS, a.model)
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam),
        schedule=spec(schedules.linear, peak=1e-3, steps=ref('steps'), warmup_steps=50),
        weight_decay=0.01,
        clip_norm=1.0,
    )
    c.every = {'log': 20, 'evaluate': 100, 'checkpoint': 100}
    c.keep.best, c.keep.mode = 'validation/accuracy', 'max'
    return shrink(c) if a.debug else c
