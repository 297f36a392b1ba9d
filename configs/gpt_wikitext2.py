"""A small GPT on WikiText-2, reported as word-level perplexity (every line end counts as one word, as in the field's figures).

Put train.txt, valid.txt and test.txt (or their .xz) in $LMX_DATA/wikitext2. Published on the test split: plain LSTM 2 x 650 tied 86.9,
AWD-LSTM 65.8 (word vocabulary; ours is an open byte-level vocabulary). Measured here: 222 after 1,200 steps, which is less than one epoch.
"""

import os

from ml_collections import ConfigDict

from lmx import models, optim, tasks, text
from lmx.data import sources
from lmx.nn import positions
from lmx.optim import schedules
from lmx.run.config import base, shrink
from lmx.spec import parse_arg, ref, spec


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False)
    c = base()
    c.steps, c.batch_size = 1200, 16
    folder = os.path.join(os.environ.get('LMX_DATA', '../shared/data'), 'wikitext2')
    c.data = {split: spec(sources.tfds, name='lmx:wikitext2', split=split, manual_dir=folder) for split in ('train', 'validation', 'test')}
    c.tokenizer = spec(text.bpe, vocab_size=4096, source=ref('data.train'))
    c.task = spec(tasks.language_modelling, tokenizer=ref('tokenizer'), max_length=128, newline_is_word=True)
    c.model = spec(
        models.gpt,
        vocab_size=ref('tokenizer.vocab_size'),
        dim=192,
        num_layers=4,
        num_heads=6,
        max_length=ref('task.max_length'),
        positions=spec(positions.Rotary),
        use_bias=False,
    )
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.muon, b2=0.99),
        schedule=spec(schedules.linear, peak=6e-3, steps=ref('steps'), warmup_steps=50, end=0.02),
        scale=((r'blocks/.*kernel$', 5.0),),
        weight_decay=0.1,
        clip_norm=1.0,
    )
    c.every = {'log': 20, 'evaluate': 600, 'checkpoint': 600}
    c.keep.best = 'validation/loss'
    c.evaluate = ('validation', 'test')
    c.samples = (' The ',)
    return shrink(c) if a.debug else c
