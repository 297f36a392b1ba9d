"""nanoGPT's Shakespeare by characters: its CPU setting, or with `:full` its GPU setting (6 layers x 384, context 256).

Put input.txt of karpathy/char-rnn's tinyshakespeare (or input.txt.xz) in $LMX_DATA/tinyshakespeare.
nanoGPT's own results: loss 1.8935 over the whole validation split (CPU setting), 1.4697 published (GPU setting). Measured here on 2 CPU cores:
1.820 with a schedule of our own (linear from 2e-3 to 0), 1.906 with nanoGPT's (`:nanogpt`, cosine from 1e-3).
`:full`: 1.457 at its best, on an H200 in 3 minutes beside other work, and 1.696 at its end.
"""

import os

from ml_collections import ConfigDict

from lmx import models, optim, tasks, text
from lmx.data import sources
from lmx.optim import schedules
from lmx.run.config import base, shrink
from lmx.spec import parse_arg, ref, spec


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False, full=False, nanogpt=False)
    c = base()
    c.steps, c.batch_size = (5000, 64) if a.full else (2000, 12)
    folder = os.path.join(os.environ.get('LMX_DATA', '../shared/data'), 'tinyshakespeare')
    c.data = {split: spec(sources.tfds, name='lmx:tiny_shakespeare', split=split, manual_dir=folder) for split in ('train', 'validation')}
    c.tokenizer = spec(text.characters, source=ref('data.train'))
    c.task = spec(tasks.language_modelling, tokenizer=ref('tokenizer'), max_length=256 if a.full else 64, max_tokens=300)
    c.model = spec(
        models.gpt,
        vocab_size=ref('tokenizer.vocab_size'),
        dim=384 if a.full else 128,
        num_layers=6 if a.full else 4,
        num_heads=6 if a.full else 4,
        max_length=ref('task.max_length'),
        dropout_rate=0.2 if a.full else 0.0,
        use_bias=False,
        dtype='bfloat16' if a.full else 'float32',
    )
    if a.full or a.nanogpt:
        schedule = spec(schedules.cosine, peak=1e-3, steps=ref('steps'), warmup_steps=100, end=0.1)
    else:
        schedule = spec(schedules.linear, peak=2e-3, steps=ref('steps'), warmup_steps=100)
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam, b2=0.99),
        schedule=schedule,
        weight_decay=0.1,
        clip_norm=1.0,
    )
    c.every = {'log': 20, 'evaluate': 250, 'checkpoint': 500}
    c.keep.best = 'validation/loss'
    c.samples = ('\nROMEO:\n',)
    return shrink(c) if a.debug else c
