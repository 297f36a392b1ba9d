"""T5 pre-trained on the standard library's source by lost spans (Raffel et al. 2020). Needs no download, but `lmx[sentencepiece]`.

    lmx train --config=configs/t5_stdlib.py --workdir=runs/t5
    lmx predict --workdir=runs/t5 --input='for i in <extra_id_0>(len(x)): <extra_id_1>'

After its 400 steps, 2 min 12 s on 2 cores, it knows 29.8 % of the tokens of lost spans in validation files (perplexity 90, where guessing has 2,400).
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
    c.steps, c.batch_size = 400, 32
    c.data = {
        split: spec(sources.tfds, name='lmx:python_stdlib/text', split=split, fields={'text': 'text'}) for split in ('train', 'validation')
    }
    part = spec(sources.tfds, name='lmx:python_stdlib/text', split='train', fields={'text': 'text'}, limit=80)  # Unigram learns slowly
    c.tokenizer = spec(text.unigram, source=part, vocab_size=2400, sentinels=32)
    c.task = spec(tasks.span_corruption, tokenizer=ref('tokenizer'), max_length=128)
    c.model = spec(
        models.t5,
        vocab_size=ref('tokenizer.vocab_size'),
        dim=128,
        num_layers=2,
        num_heads=4,
        head_dim=32,
        mlp_dim=512,
        dropout_rate=0.0,
    )
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam, b2=0.98),
        schedule=spec(schedules.linear, peak=2e-3, steps=ref('steps'), warmup_steps=100),
        weight_decay=0.01,
        clip_norm=1.0,
    )
    c.every = {'log': 20, 'evaluate': 200, 'checkpoint': 200}
    return shrink(c) if a.debug else c
