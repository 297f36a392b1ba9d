"""Passages that answer questions: MS MARCO (Bajaj et al. 2016, arXiv:1611.09268), as BEIR has it (Thakur et al. 2021, arXiv:2104.08663).

    lmx import --from=DIR --workdir=runs/bert
    lmx train --config=configs/search_msmarco.py:init=runs/bert --workdir=runs/msmarco

In-batch negatives among 256 pairs. Validation reports the mean reciprocal rank within a batch. Published for the 8.8 million passages: nDCG@10 0.228 by
BM25, 0.408 by TAS-B (BEIR's table 2). Not run here. TFDS prepares BEIR with Apache Beam; what another machine has prepared is read as it is.
"""

from ml_collections import ConfigDict

from lmx import models, optim, tasks, text
from lmx.data import sources, transforms
from lmx.nn import heads
from lmx.optim import schedules
from lmx.run.config import base, shrink, start_from
from lmx.spec import parse_arg, ref, spec

FIELDS = {'query': 'query', 'document': 'passage'}


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False, init='')
    c = base()
    c.steps, c.batch_size = 20_000, 256
    c.data = {split: spec(sources.tfds, name='beir/msmarco', split=split, fields=FIELDS) for split in ('train', 'validation', 'test')}
    both = spec(transforms.apply, source=ref('data.train'), steps=(spec(transforms.texts, fields=('query', 'document')),))
    c.tokenizer = spec(text.wordpiece, source=both, vocab_size=30_000)
    c.task = spec(tasks.semantic_search, tokenizer=ref('tokenizer'), max_length=128)
    size = {'dim': 384, 'num_layers': 6, 'num_heads': 12, 'max_length': ref('task.max_length')}
    c.model, rate = spec(models.bert, vocab_size=ref('tokenizer.vocab_size'), head=spec(heads.embedding), **size), 2e-4
    if a.init:
        start_from(c, a.init, head=spec(heads.embedding))
        rate = 2e-5
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam),
        schedule=spec(schedules.linear, peak=rate, steps=ref('steps'), warmup_steps=1000),
        weight_decay=0.01,
        clip_norm=1.0,
    )
    c.every = {'log': 50, 'evaluate': 2000, 'checkpoint': 2000}
    c.keep.best, c.keep.mode = 'validation/reciprocal_rank', 'max'
    return shrink(c) if a.debug else c
