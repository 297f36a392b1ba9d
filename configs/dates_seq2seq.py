"""Dates as people write them into dates as machines do ('the 3rd of March, 2015' -> '2015-03-03'). Needs no download.

`:model=transformer`, `t5` or `bart`.
"""

from ml_collections import ConfigDict

from lmx import models, optim, tasks, text
from lmx.data import sources
from lmx.nn.block import pre_norm
from lmx.optim import schedules
from lmx.run.config import base, shrink
from lmx.spec import parse_arg, ref, spec
from lmx.types import BadInput


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False, model='transformer')
    c = base()
    c.steps, c.batch_size = 600, 64
    fields = {'source': 'source', 'target': 'target'}
    c.data = {split: spec(sources.tfds, name='lmx:dates', split=split, fields=fields) for split in ('train', 'validation')}
    c.tokenizer = spec(text.byte_level)
    c.task = spec(tasks.text_to_text, tokenizer=ref('tokenizer'), max_source_length=32, max_target_length=16)
    sizes = {'vocab_size': ref('tokenizer.vocab_size'), 'dim': 96, 'num_layers': 2, 'num_heads': 4, 'mlp_dim': 256, 'dropout_rate': 0.0}
    rate = 3e-3
    if a.model == 'transformer':
        c.model = spec(models.transformer, **sizes, residual=pre_norm)
    elif a.model == 't5':
        c.model = spec(models.t5, **sizes, head_dim=24, max_distance=32)
    elif a.model == 'bart':
        c.model = spec(models.bart, **sizes, max_length=32)
        rate = 1e-3  # post-norm: larger ones end it at the mean of all dates
    else:
        raise BadInput(f'model {a.model!r} is unknown; there are transformer, t5, bart')
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam, b2=0.98),
        schedule=spec(schedules.cosine, peak=rate, steps=ref('steps'), warmup_steps=100),
        weight_decay=0.01,
        clip_norm=1.0,
    )
    c.every = {'log': 20, 'evaluate': 200, 'checkpoint': 300}
    return shrink(c) if a.debug else c
