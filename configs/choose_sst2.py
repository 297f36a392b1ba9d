"""SST-2's sentiment by the likelihood of a word behind the sentence: zero- and few-shot evaluation of decoders (Brown et al. 2020).

    lmx import --from=HF_DIR --workdir=runs/gpt2 --config=configs/choose_sst2.py:shots=4
    lmx evaluate --workdir=runs/gpt2 --split=test

The same config trains a small GPT from random parameters to make the right word likely, `lmx train --config=configs/choose_sst2.py`: test accuracy
78.5 % (76.6 to 80.3), after 2 minutes on 2 cores.
`:shots=K` puts K answered sentences of the training split before each. Put train.tsv, dev.tsv and test.tsv (or their .xz) in $LMX_DATA/sst2.
"""

import os

from ml_collections import ConfigDict

from lmx import models, optim, tasks, text
from lmx.data import sources
from lmx.optim import schedules
from lmx.run.config import base, shrink
from lmx.spec import parse_arg, ref, spec

LABELS = ('negative', 'positive')


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False, shots=0)
    c = base()
    c.steps, c.batch_size = 600, 32
    fields = {'text': 'text', 'label': 'label'}
    folder = os.path.join(os.environ.get('LMX_DATA', '../shared/data'), 'sst2')
    splits = ('train', 'validation', 'test')
    c.data = {split: spec(sources.tfds, name='lmx:sst2', split=split, fields=fields, manual_dir=folder) for split in splits}
    c.tokenizer = spec(text.bpe, source=ref('data.train'), vocab_size=4000)
    c.task = spec(
        tasks.multiple_choice,
        tokenizer=ref('tokenizer'),
        max_length=64 * (1 + a.shots),
        prompt='Review: {text}\nSentiment:',
        choices=LABELS,
        answer='label',
        shots=a.shots,
        examples=ref('data.train') if a.shots else None,
    )
    c.model = spec(
        models.gpt,
        vocab_size=ref('tokenizer.vocab_size'),
        dim=128,
        num_layers=2,
        num_heads=4,
        max_length=ref('task.max_length'),
        dropout_rate=0.3,
    )
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam),
        schedule=spec(schedules.linear, peak=1e-3, steps=ref('steps'), warmup_steps=50),
        weight_decay=0.01,
        clip_norm=1.0,
    )
    c.every = {'log': 20, 'evaluate': 100, 'checkpoint': 100}
    c.keep.best = 'validation/nll'
    return shrink(c) if a.debug else c
