"""IMDb: whether a film review is positive (Maas et al. 2011). `:model=text_cnn`, `bilstm` or `bert`; `:init=RUN` fine-tunes an imported encoder.

    lmx data --config=configs/classify_imdb.py --prepare        84 MB from the TFDS catalogue, for machines without a network
    lmx import --from=DIR --workdir=runs/bert && lmx train --config=configs/classify_imdb.py:init=runs/bert --workdir=runs/imdb

Published: BERT-base fine-tuned, 94.6 % of the test reviews (Sun et al. 2019, arXiv:1905.05583). Not run here.
"""

from ml_collections import ConfigDict

from lmx import metrics, models, optim, tasks, text
from lmx.data import sources
from lmx.nn import heads
from lmx.optim import schedules
from lmx.run.config import base, shrink, start_from
from lmx.spec import parse_arg, pick, ref, spec

LABELS = ('negative', 'positive')
SPLITS = {'train': 'train[:92%]', 'validation': 'train[92%:]', 'test': 'test'}
VOCAB = {'vocab_size': ref('tokenizer.vocab_size')}
HEAD = spec(heads.classifier, num_classes=len(LABELS), dropout_rate=0.1)
MODELS = {
    'text_cnn': spec(models.text_cnn, **VOCAB, num_classes=len(LABELS)),
    'bilstm': spec(models.bilstm, **VOCAB, num_classes=len(LABELS)),
    'bert': spec(models.bert, **VOCAB, dim=256, num_layers=4, num_heads=4, max_length=ref('task.max_length'), head=HEAD),
}


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False, model='text_cnn', init='')
    c = base()
    c.steps, c.batch_size = 2000, 32
    fields = {'text': 'text', 'label': 'label'}
    c.data = {name: spec(sources.tfds, name='imdb_reviews', split=split, fields=fields) for name, split in SPLITS.items()}
    c.tokenizer = spec(text.wordpiece, source=ref('data.train'), vocab_size=16_000)
    c.task = spec(tasks.text_classification, tokenizer=ref('tokenizer'), max_length=384, labels=LABELS, metric=metrics.classification)
    c.model, rate = pick(MODELS, a.model), 1e-3
    if a.init:
        start_from(c, a.init, head=HEAD)
        rate = 2e-5
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam),
        schedule=spec(schedules.linear, peak=rate, steps=ref('steps'), warmup_steps=200),
        weight_decay=0.01,
        clip_norm=1.0,
    )
    c.every = {'log': 50, 'evaluate': 500, 'checkpoint': 500}
    c.keep.best, c.keep.mode = 'validation/accuracy', 'max'
    return shrink(c) if a.debug else c
