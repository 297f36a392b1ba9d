"""School mathematics in words, answered step by step: GSM8K (Cobbe et al. 2021, arXiv:2110.14168), scored by the last number.

    lmx import --from=DIR --workdir=runs/llama
    lmx train --config=configs/instruct_gsm8k.py:init=runs/llama --workdir=runs/gsm8k
    lmx evaluate --workdir=runs/gsm8k --split=test

Published for fine-tuned GPT-3: about 20 % at 6 billion parameters, 34 % at 175 (the paper's figure 2). A small decoder from nothing, as without
`:init=RUN`, learns the form of an answer and no arithmetic. Put train.jsonl and test.jsonl (or their .xz) in $LMX_DATA/gsm8k.
"""

import os

from ml_collections import ConfigDict

from lmx import metrics, models, optim, tasks, text
from lmx.data import sources, transforms
from lmx.optim import schedules
from lmx.run.config import base, shrink, start_from
from lmx.spec import parse_arg, ref, spec

FIELDS = {'prompt': 'question', 'completion': 'answer'}
SPLITS = {'train': 'train[:95%]', 'validation': 'train[95%:]', 'test': 'test'}


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False, init='')
    c = base()
    c.steps, c.batch_size = 1500, 16
    folder = os.path.join(os.environ.get('LMX_DATA', '../shared/data'), 'gsm8k')
    source = {'name': 'lmx:gsm8k', 'fields': FIELDS, 'manual_dir': folder}
    c.data = {name: spec(sources.tfds, split=split, **source) for name, split in SPLITS.items()}
    both = spec(transforms.apply, source=ref('data.train'), steps=(spec(transforms.texts, fields=('prompt', 'completion')),))
    c.tokenizer = spec(text.bpe, source=both, vocab_size=4000)
    c.task = spec(tasks.instruction_tuning, tokenizer=ref('tokenizer'), max_length=512, max_tokens=200, metric=metrics.final_number)
    size = {'dim': 192, 'num_layers': 4, 'num_heads': 4, 'mlp_dim': 512}
    c.model, rate = spec(models.llama, vocab_size=ref('tokenizer.vocab_size'), **size), 2e-3
    if a.init:
        start_from(c, a.init)
        rate = 1e-5
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam),
        schedule=spec(schedules.cosine, peak=rate, steps=ref('steps'), warmup_steps=50),
        weight_decay=0.01,
        clip_norm=1.0,
    )
    c.every = {'log': 20, 'evaluate': 300, 'checkpoint': 300}
    c.keep.best = 'validation/loss'
    if a.debug:
        shrink(c).task.max_length = 192  # hardly an example has fewer than 64 tokens of so small a vocabulary
    return c
