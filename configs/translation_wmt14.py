"""English to German on WMT 2014 by the base Transformer (Vaswani et al. 2017, arXiv:1706.03762, table 2: 27.3 BLEU on newstest2014).

    lmx train --config=configs/translation_wmt14.py --workdir=runs/wmt14
    lmx evaluate --workdir=runs/wmt14 --checkpoint=average:5 --split=test

The paper's sizes, schedule, batches of about 25,000 target tokens and 100,000 steps, for 8 accelerators. Not run here. Preparing the data needs
`lmx[tf]`; what another machine has prepared does not.
"""

from ml_collections import ConfigDict

from lmx import models, optim, tasks, text
from lmx.data import sources, transforms
from lmx.optim import schedules
from lmx.run.config import base, shrink
from lmx.spec import parse_arg, ref, spec


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False)
    c = base()
    c.steps, c.batch_size = 100_000, 96
    fields = {'source': 'en', 'target': 'de'}
    splits = ('train', 'validation', 'test')
    c.data = {split: spec(sources.tfds, name='wmt14_translate/de-en', split=split, fields=fields) for split in splits}
    both = spec(transforms.apply, source=ref('data.train'), steps=(spec(transforms.texts, fields=('source', 'target')),))
    c.tokenizer = spec(text.bpe, source=both, vocab_size=37_000)
    c.task = spec(
        tasks.translation,
        tokenizer=ref('tokenizer'),
        max_source_length=256,
        max_target_length=256,
        row_length=256,
        label_smoothing=0.1,
        beam_size=4,
        length_penalty=0.6,
    )
    c.model = spec(
        models.transformer,
        vocab_size=ref('tokenizer.vocab_size'),
        dim=512,
        num_layers=6,
        num_heads=8,
        mlp_dim=2048,
        dropout_rate=0.1,
    )
    c.optim = spec(
        optim.optimizer, rule=spec(optim.adam, b2=0.98, eps=1e-9), schedule=spec(schedules.noam, dim=ref('model.dim'), warmup_steps=4000)
    )
    c.every = {'log': 100, 'evaluate': 5000, 'checkpoint': 1000}
    c.keep.last, c.keep.best = 5, 'validation/nll'
    return shrink(c) if a.debug else c
