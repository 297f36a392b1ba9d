"""T5.1.1 small, pre-trained on C4 by lost spans (Raffel et al. 2020, arXiv:1910.10683).

    lmx train --config=configs/t5_c4.py --workdir=runs/t5

Sources of 512 tokens, 128 to a batch, 2^19 steps, inverse square root of the step for a learning rate. Not run here. C4 is 300 GB, which TFDS
prepares with Apache Beam; what another machine has prepared is read as it is. Learning the vocabulary needs `lmx[sentencepiece]`.
"""

from ml_collections import ConfigDict

from lmx import models, optim, tasks, text
from lmx.data import sources
from lmx.optim import schedules
from lmx.run.config import base, shrink
from lmx.spec import parse_arg, ref, spec


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False)
    c = base()
    c.steps, c.batch_size = 524_288, 128
    c.data = {split: spec(sources.tfds, name='c4/en', split=split, fields={'text': 'text'}) for split in ('train', 'validation')}
    c.tokenizer = spec(text.unigram, source=ref('data.validation'), vocab_size=32_100, sentinels=100)  # 365,000 texts are enough
    c.task = spec(tasks.span_corruption, tokenizer=ref('tokenizer'), max_length=512)
    size = {'dim': 512, 'num_layers': 8, 'num_heads': 6, 'head_dim': 64, 'mlp_dim': 1024, 'dropout_rate': 0.0}
    c.model = spec(models.t5_1_1, vocab_size=ref('tokenizer.vocab_size'), **size)
    c.optim = spec(optim.optimizer, rule=spec(optim.adafactor), schedule=spec(schedules.inverse_sqrt, peak=0.01, warmup_steps=10_000))
    c.every = {'log': 100, 'evaluate': 10_000, 'checkpoint': 5000}
    return shrink(c) if a.debug else c
