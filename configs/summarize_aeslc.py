"""Subject lines of emails (AESLC; Zhang and Tetreault 2019, arXiv:1906.03497). `:model=transformer`, `t5`, `conv` or `rnn`.

    lmx import --from=DIR --workdir=runs/minilm
    lmx train --config=configs/summarize_aeslc.py:init=runs/minilm --workdir=runs/aeslc
    lmx evaluate --workdir=runs/aeslc --checkpoint=best --split=test

`:init=RUN` begins with an encoder that `lmx import` made a run of and gives it a new decoder, which also copies words of the email: with
all-MiniLM-L6-v2 ROUGE-1 on test is 30.6 (29.1 to 32.2), where the email's first sentence has 15.3, after 4 minutes on an H200; with the encoder
frozen 22.0 (20.7 to 23.3). On 2 cores `--config.steps=500 --config.optim.schedule.warmup_steps=100` comes to 26.0 (24.7 to 27.3) in 34 minutes.
From nothing 14,000 emails teach a small Transformer with a pointer 8.0 (7.2 to 8.8), without one 2.9 (2.4 to 3.4). Put AESLC-master.tar (or
.tar.xz) in $LMX_DATA/aeslc.
"""

import os

from ml_collections import ConfigDict

from lmx import metrics, models, optim, tasks, text
from lmx.data import sources, transforms
from lmx.nn.block import pre_norm
from lmx.optim import schedules
from lmx.run.config import base, shrink, start_from
from lmx.spec import parse_arg, pick, ref, spec

VOCAB = {'vocab_size': ref('tokenizer.vocab_size')}
MODELS = {
    'transformer': spec(
        models.transformer, **VOCAB, dim=192, num_layers=2, num_heads=4, mlp_dim=512, residual=pre_norm, dropout_rate=0.2, pointer=True
    ),
    't5': spec(models.t5, **VOCAB, dim=192, num_layers=2, num_heads=4, head_dim=48, mlp_dim=512, dropout_rate=0.2),
    'conv': spec(
        models.conv_seq2seq, **VOCAB, dim=192, num_layers=4, dropout_rate=0.2, max_length=ref('task.max_source_length'), tied=True
    ),
    'rnn': spec(models.rnn_seq2seq, **VOCAB, dim=192, dropout_rate=0.3, tied=True),
}


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False, model='transformer', init='')
    c = base()
    c.steps, c.batch_size = 3000, 32
    folder = os.path.join(os.environ.get('LMX_DATA', '../shared/data'), 'aeslc')
    fields = {'text': 'text', 'summary': 'summary'}
    splits = ('train', 'validation', 'test')
    c.data = {split: spec(sources.tfds, name='lmx:aeslc', split=split, fields=fields, manual_dir=folder) for split in splits}
    both = spec(transforms.apply, source=ref('data.train'), steps=(spec(transforms.texts, fields=('text', 'summary')),))
    c.tokenizer = spec(text.bpe, source=both, vocab_size=8000)
    c.task = spec(
        tasks.summarization, tokenizer=ref('tokenizer'), max_source_length=160, max_target_length=24, label_smoothing=0.1, beam_size=4
    )
    c.model = pick(MODELS, a.model)
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam, b2=0.98),
        schedule=spec(schedules.cosine, peak=1e-3, steps=ref('steps'), warmup_steps=300),
        weight_decay=0.01,
        clip_norm=1.0,
    )
    if a.init:
        start_from(c, a.init)
        encoder = c.model
        encoder.head = None
        c.init.take = '^(embed|encoder)/'
        c.model = spec(
            models.bart,
            vocab_size=encoder.vocab_size,
            dim=encoder.dim,
            num_layers=2,
            num_heads=6,
            mlp_dim=1024,
            max_length=ref('task.max_target_length'),
            dropout_rate=0.1,
            pointer=True,
            encoder=encoder,
        )
        c.optim.scale = (('^(embed|encoder)/', 0.1),)
    c.every = {'log': 50, 'evaluate': 250, 'checkpoint': 250}
    c.keep.best = 'validation/nll'
    c.baselines = spec(metrics.baselines.lead, source=ref('data.validation'))
    return shrink(c) if a.debug else c
