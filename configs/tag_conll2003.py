"""Named entities in newswire: CoNLL-2003, English (Tjong Kim Sang and De Meulder 2003, arXiv:cs/0306050), by BERT.

    lmx data --config=configs/tag_conll2003.py --prepare        from the TFDS catalogue, for machines without a network
    lmx import --from=DIR --workdir=runs/bert
    lmx train --config=configs/tag_conll2003.py:init=runs/bert --workdir=runs/conll && lmx evaluate --workdir=runs/conll --checkpoint=best --split=test

Published for BERT-base, cased: F1 92.4 on test, 96.4 on the development set (Devlin et al. 2018, table 7). Not run here.
"""

from ml_collections import ConfigDict

from lmx import metrics, models, optim, tasks, text
from lmx.data import sources, transforms
from lmx.nn import heads
from lmx.optim import schedules
from lmx.run.config import base, shrink, start_from
from lmx.spec import parse_arg, ref, spec

TAGS = ('O', 'B-PER', 'I-PER', 'B-ORG', 'I-ORG', 'B-LOC', 'I-LOC', 'B-MISC', 'I-MISC')  # in the order of the catalogue
SPLITS = {'train': 'train', 'validation': 'dev', 'test': 'test'}
HEAD = spec(heads.per_token, num_classes=len(TAGS), dropout_rate=0.1)


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False, init='')
    c = base()
    c.steps, c.batch_size = 1400, 32
    fields = {'words': 'tokens', 'tags': 'ner'}
    c.data = {name: spec(sources.tfds, name='conll2003', split=split, fields=fields) for name, split in SPLITS.items()}
    said = spec(transforms.apply, source=ref('data.train'), steps=(spec(transforms.joined, field='words'),))
    c.tokenizer = spec(text.wordpiece, source=said, vocab_size=8000, lowercase=False)
    c.task = spec(tasks.token_classification, tokenizer=ref('tokenizer'), max_length=192, labels=TAGS, metric=metrics.entities)
    size = {'dim': 256, 'num_layers': 4, 'num_heads': 4, 'max_length': ref('task.max_length')}
    c.model, rate = spec(models.bert, vocab_size=ref('tokenizer.vocab_size'), head=HEAD, **size), 5e-4
    if a.init:
        start_from(c, a.init, head=HEAD)
        rate = 5e-5
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam),
        schedule=spec(schedules.linear, peak=rate, steps=ref('steps'), warmup_steps=140),
        weight_decay=0.01,
        clip_norm=1.0,
    )
    c.every = {'log': 20, 'evaluate': 200, 'checkpoint': 200}
    c.keep.best = 'validation/loss'
    return shrink(c) if a.debug else c
