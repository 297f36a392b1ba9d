"""Retrieval on the Cranfield collection (Cleverdon 1967): every abstract ranked for every query by an imported sentence encoder.

Given all-MiniLM-L6-v2: nDCG@10 0.3955 and MAP 0.3231, equal to sentence-transformers' own ranking, in 2 minutes on 2 cores.

    lmx import --from=DIR --workdir=runs/minilm --config=configs/search_cranfield.py && lmx evaluate --workdir=runs/minilm --split=test

Put cran.all.1400.xml, cran.qry.xml and cranqrel.trec.txt (or their .xz) in $LMX_DATA/cranfield.
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
    c.steps, c.batch_size, c.evaluate = 200, 32, ('test',)
    folder = os.path.join(os.environ.get('LMX_DATA', '../shared/data'), 'cranfield')
    asked = {'id': 'id', 'text': 'query', 'relevant': 'relevant', 'grades': 'grades'}
    documents = spec(sources.tfds, name='lmx:cranfield/corpus', split='train', fields={'id': 'id', 'text': 'text'}, manual_dir=folder)
    queries = spec(sources.tfds, name='lmx:cranfield', split='test', fields=asked, manual_dir=folder)
    collection = spec(sources.concatenated, sources=(documents, queries))
    c.data = {'train': collection, 'test': collection}
    c.tokenizer = spec(text.wordpiece, source=ref('data.train'), vocab_size=4000)
    c.task = spec(tasks.retrieval, tokenizer=ref('tokenizer'), max_length=256, too_long='cut')
    c.model = spec(
        models.bert,
        vocab_size=ref('tokenizer.vocab_size'),
        dim=128,
        num_layers=2,
        num_heads=4,
        max_length=ref('task.max_length'),
        head=spec(heads.embedding),
    )
    c.optim = spec(optim.optimizer, rule=spec(optim.adam), schedule=spec(schedules.linear, peak=5e-4, steps=ref('steps'), warmup_steps=20))
    c.every = {'log': 10, 'evaluate': 100, 'checkpoint': 100}
    return shrink(c) if a.debug else c
