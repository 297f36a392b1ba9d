"""A decoder on the One Billion Word benchmark (Chelba et al. 2013, arXiv:1312.3005), sentence by sentence.

    lmx train --config=configs/gpt_lm1b.py --workdir=runs/lm1b && lmx evaluate --workdir=runs/lm1b --checkpoint=best --split=test

Compare word-level perplexity: published 30.0 for an LSTM of 2 x 8,192 (Jozefowicz et al. 2016, arXiv:1602.02410), 23.0 for an adaptive
Transformer (Baevski and Auli 2018, arXiv:1809.10853). Not run here. From the TFDS catalogue (1.7 GB).
"""

from ml_collections import ConfigDict

from lmx import models, optim, tasks, text
from lmx.data import packing, sources
from lmx.nn import positions
from lmx.optim import schedules
from lmx.run.config import base, shrink
from lmx.spec import parse_arg, ref, spec

SPLITS = {'train': 'train[:99%]', 'validation': 'train[99%:]', 'test': 'test'}


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False)
    c = base()
    c.steps, c.batch_size = 100_000, 256
    c.data = {name: spec(sources.tfds, name='lm1b', split=split, fields={'text': 'text'}) for name, split in SPLITS.items()}
    c.tokenizer = spec(text.bpe, source=ref('data.train'), vocab_size=32_000)
    c.task = spec(tasks.language_modelling, tokenizer=ref('tokenizer'), max_length=256, windows=packing.packed, newline_is_word=True)
    c.model = spec(
        models.gpt,
        vocab_size=ref('tokenizer.vocab_size'),
        dim=768,
        num_layers=12,
        num_heads=12,
        max_length=ref('task.max_length'),
        positions=spec(positions.Rotary),
        use_bias=False,
    )
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam, b2=0.95),
        schedule=spec(schedules.cosine, peak=6e-4, steps=ref('steps'), warmup_steps=2000),
        weight_decay=0.1,
        clip_norm=1.0,
    )
    c.every = {'log': 100, 'evaluate': 5000, 'checkpoint': 5000}
    c.keep.best = 'validation/loss'
    return shrink(c) if a.debug else c
