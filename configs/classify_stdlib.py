"""Which package of the Python standard library a function comes from, by its code. Needs no download.

    lmx train --config=configs/classify_stdlib.py --workdir=runs/modules && lmx evaluate --workdir=runs/modules --checkpoint=best --split=test

Functions, not files, are split into training, validation and test, as a package is often one file. `:model=bert`, `distilbert`, `text_cnn` or
`bilstm`; `:init=RUN` goes on from a run of `bert_stdlib.py`, or from an encoder that `lmx import` made a run of. Of 114 test functions, a quarter of
them from tkinter, BERT knows 94.7 % (90.4 to 98.2), TextCNN 93.9 % (88.6 to 97.4) and BiLSTM 90.4 % (84.2 to 95.6), after about a minute each on 2 cores.
"""

from ml_collections import ConfigDict

from lmx import metrics, models, optim, tasks, text
from lmx.data import sources, transforms
from lmx.nn import heads
from lmx.optim import schedules
from lmx.run.config import base, shrink, start_from
from lmx.spec import parse_arg, pick, ref, spec

PACKAGES = ('asyncio', 'email', 'importlib', 'logging', 'mailbox', 'multiprocessing', 'tkinter', 'unittest')
SPLITS = {'train': 'train[:80%]', 'validation': 'train[80%:90%]', 'test': 'train[90%:]'}
HEAD = spec(heads.classifier, num_classes=len(PACKAGES), dropout_rate=0.1, pool=heads.mean)
VOCAB = {'vocab_size': ref('tokenizer.vocab_size')}
SIZES = {**VOCAB, 'dim': 128, 'num_layers': 2, 'num_heads': 4, 'max_length': ref('task.max_length'), 'head': HEAD}
MODELS = {
    'text_cnn': spec(models.text_cnn, **VOCAB, num_classes=len(PACKAGES)),
    'bilstm': spec(models.bilstm, **VOCAB, num_classes=len(PACKAGES)),
    'bert': spec(models.bert, **SIZES),
    'distilbert': spec(models.distilbert, **SIZES),
}
RATES = {'bilstm': 4e-3}


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False, model='bert', init='')
    c = base()
    c.steps, c.batch_size = 300, 32
    fields = {'text': 'code', 'module': 'module'}
    c.data = {
        split: spec(
            transforms.apply,
            source=spec(sources.tfds, name='lmx:python_stdlib/functions', split=part, fields=fields),
            steps=(spec(transforms.labelled, field='module', pattern=r'\w+', labels=PACKAGES),),
        )
        for split, part in SPLITS.items()
    }
    c.tokenizer = spec(text.wordpiece, source=ref('data.train'), vocab_size=2048)
    c.task = spec(tasks.text_classification, tokenizer=ref('tokenizer'), max_length=128, labels=PACKAGES, metric=metrics.classification)
    c.model = pick(MODELS, a.model)
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam),
        schedule=spec(schedules.linear, peak=RATES.get(a.model, 1e-3), steps=ref('steps'), warmup_steps=30),
        weight_decay=0.01,
        clip_norm=1.0,
    )
    if a.init:
        start_from(c, a.init, head=HEAD)
    c.every = {'log': 20, 'evaluate': 100, 'checkpoint': 100}
    c.keep.best = 'validation/accuracy'
    c.keep.mode = 'max'
    return shrink(c) if a.debug else c
