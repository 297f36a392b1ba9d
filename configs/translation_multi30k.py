"""English to German on Multi30k (Elliott et al. 2016): `:model=transformer` (Vaswani 2017), `t5`, `rnn` (Bahdanau 2015) or `conv` (Gehring 2017).

    lmx train --config=configs/translation_multi30k.py --workdir=runs/de && lmx evaluate --workdir=runs/de --checkpoint=best --split=test

The Transformer has test BLEU 37.5 (2016), ConvS2S 35.3, after 2 minutes each on an H200. On 2 cores the Transformer has 36.9 after
`--config.steps=1800`, 24 minutes, the RNN 24.0 after 1,500 steps, 22 minutes beside other work, and ConvS2S 30.3 after `--config.steps=900
--config.optim.schedule.warmup_steps=150`, 13 minutes. 41 is published for a tiny Transformer.

Put train.en, train.de, val.en, val.de, test_2016_flickr.en and
test_2016_flickr.de (or their .gz) in $LMX_DATA/multi30k.
"""

import os

from ml_collections import ConfigDict

from lmx import models, optim, tasks, text
from lmx.data import sources, transforms
from lmx.nn.block import pre_norm
from lmx.optim import schedules
from lmx.run.config import base, shrink
from lmx.spec import parse_arg, pick, ref, spec

VOCAB = {'vocab_size': ref('tokenizer.vocab_size')}
MODELS = {
    'transformer': spec(models.transformer, **VOCAB, dim=192, num_layers=3, num_heads=4, mlp_dim=512, residual=pre_norm, dropout_rate=0.2),
    't5': spec(models.t5, **VOCAB, dim=192, num_layers=3, num_heads=4, head_dim=48, mlp_dim=512, dropout_rate=0.2),
    'conv': spec(models.conv_seq2seq, **VOCAB, dim=192, num_layers=4, dropout_rate=0.2, max_length=64, tied=True),
    'rnn': spec(models.rnn_seq2seq, **VOCAB, dim=256, dropout_rate=0.3, tied=True),
}
RATES = {'transformer': 2e-3, 't5': 2e-3, 'conv': 2e-3, 'rnn': 2e-3}


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False, model='transformer')
    c = base()
    c.steps, c.batch_size = 2200, 96
    folder = os.path.join(os.environ.get('LMX_DATA', '../shared/data'), 'multi30k')
    fields = {'source': 'en', 'target': 'de'}
    splits = ('train', 'validation', 'test')
    c.data = {split: spec(sources.tfds, name='lmx:multi30k', split=split, fields=fields, manual_dir=folder) for split in splits}
    both = spec(transforms.apply, source=ref('data.train'), steps=(spec(transforms.texts, fields=('source', 'target')),))
    c.tokenizer = spec(text.bpe, source=both, vocab_size=8000)
    c.task = spec(
        tasks.translation, tokenizer=ref('tokenizer'), max_source_length=40, max_target_length=40, label_smoothing=0.1, beam_size=5
    )
    if a.model in ('transformer', 't5'):  # several pairs share a row
        c.task.row_length, c.batch_size = 96, 32
    c.model = pick(MODELS, a.model)
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam, b2=0.98),
        schedule=spec(schedules.cosine, peak=RATES[a.model], steps=ref('steps'), warmup_steps=300),
        weight_decay=0.01,
        clip_norm=1.0,
    )
    c.every = {'log': 50, 'evaluate': 250, 'checkpoint': 250}
    c.keep.best = 'validation/nll'
    return shrink(c) if a.debug else c
