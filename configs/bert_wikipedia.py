"""BERT-base, pre-trained on English Wikipedia by masked whole words (Devlin et al. 2018, arXiv:1810.04805).

    lmx train --config=configs/bert_wikipedia.py --workdir=runs/bert

A million steps of 256 windows of 512 tokens, without the paper's second half of the data (BookCorpus) and without its next-sentence task, as RoBERTa
(Liu et al. 2019, arXiv:1907.11692). Not run here. TFDS prepares Wikipedia with Apache Beam; what another machine has prepared is read as it is.
"""

from ml_collections import ConfigDict

from lmx import models, optim, tasks, text
from lmx.data import sources
from lmx.nn import heads
from lmx.optim import schedules
from lmx.run.config import base, shrink
from lmx.spec import parse_arg, ref, spec

SPLITS = {'train': 'train[:99%]', 'validation': 'train[99%:]'}


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False)
    c = base()
    c.steps, c.batch_size = 1_000_000, 256
    c.data = {
        name: spec(sources.tfds, name='wikipedia/20230601.en', split=split, fields={'text': 'text'}) for name, split in SPLITS.items()
    }
    c.tokenizer = spec(text.wordpiece, source=ref('data.validation'), vocab_size=30_000)  # 66,000 articles are enough
    c.task = spec(tasks.masked_language_modelling, tokenizer=ref('tokenizer'), max_length=512, unit='word')
    size = {'dim': 768, 'num_layers': 12, 'num_heads': 12, 'max_length': ref('task.max_length')}
    c.model = spec(models.bert, vocab_size=ref('tokenizer.vocab_size'), head=spec(heads.masked_lm), **size)
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam),
        schedule=spec(schedules.linear, peak=1e-4, steps=ref('steps'), warmup_steps=10_000),
        weight_decay=0.01,
        clip_norm=1.0,
    )
    c.every = {'log': 100, 'evaluate': 20_000, 'checkpoint': 5000}
    return shrink(c) if a.debug else c
