"""Summaries of news articles, CNN / Daily Mail (Hermann et al. 2015; See et al. 2017, arXiv:1704.04368), by BART.

    lmx import --from=DIR --workdir=runs/bart
    lmx train --config=configs/summarize_cnn_dailymail.py:init=runs/bart --workdir=runs/news
    lmx evaluate --workdir=runs/news --checkpoint=best --split=test

Published for BART-large: ROUGE-1 44.16, ROUGE-2 21.28, ROUGE-L 40.90; the first three sentences: 40.42, 17.62, 36.67 (Lewis et al. 2019,
arXiv:1910.13461, table 3). Not run here. Preparing the data needs `lmx[tf]`; what another machine has prepared does not.
"""

from ml_collections import ConfigDict

from lmx import metrics, models, optim, tasks, text
from lmx.data import sources, transforms
from lmx.optim import schedules
from lmx.run.config import base, shrink, start_from
from lmx.spec import parse_arg, ref, spec


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False, init='')
    c = base()
    c.steps, c.batch_size = 20_000, 64
    fields = {'text': 'article', 'summary': 'highlights'}
    splits = ('train', 'validation', 'test')
    c.data = {split: spec(sources.tfds, name='cnn_dailymail', split=split, fields=fields) for split in splits}
    both = spec(transforms.apply, source=ref('data.train'), steps=(spec(transforms.texts, fields=('text', 'summary')),))
    c.tokenizer = spec(text.bpe, source=both, vocab_size=32_000)
    c.task = spec(
        tasks.summarization,
        tokenizer=ref('tokenizer'),
        max_source_length=1024,
        max_target_length=142,
        too_long='cut',
        label_smoothing=0.1,
        beam_size=4,
        length_penalty=2.0,
        min_tokens=55,
        no_repeat=3,
    )
    size = {'dim': 512, 'num_layers': 6, 'num_heads': 8, 'mlp_dim': 2048, 'dropout_rate': 0.1}
    c.model = spec(models.transformer, vocab_size=ref('tokenizer.vocab_size'), **size)
    if a.init:
        start_from(c, a.init)
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam),
        schedule=spec(schedules.linear, peak=3e-5 if a.init else 5e-4, steps=ref('steps'), warmup_steps=500),
        weight_decay=0.01,
        clip_norm=0.1 if a.init else 1.0,
    )
    c.every = {'log': 100, 'evaluate': 2000, 'checkpoint': 2000}
    c.keep.best = 'validation/nll'
    c.baselines = spec(metrics.baselines.lead, source=ref('data.validation'), count=3)
    return shrink(c) if a.debug else c
