"""Questions about paragraphs of Wikipedia, answered by a span: the English XQuAD (Artetxe et al. 2020), split by paragraph.

    lmx import --from=DIR --workdir=runs/minilm
    lmx train --config=configs/answer_xquad.py:init=runs/minilm --workdir=runs/xquad
    lmx evaluate --workdir=runs/xquad --checkpoint=best --split=test

`:init=RUN` fine-tunes an encoder that `lmx import` made a run of: all-MiniLM-L6-v2 has test F1 51.7 and exact match 41.0 (20 minutes on 2
cores), where the context's first sentence has F1 7.4 and the one with most of the question's words 14.9. Without it a small BERT begins from
nothing, which 950 questions do not teach to read. Put xquad.en.json (or its .xz) in $LMX_DATA/xquad.
"""

import os

from ml_collections import ConfigDict

from lmx import metrics, models, optim, tasks, text
from lmx.data import sources, transforms
from lmx.nn import heads
from lmx.optim import schedules
from lmx.run.config import base, shrink, start_from
from lmx.spec import parse_arg, ref, spec

FIELDS = {name: name for name in ('context', 'question', 'answers')}


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False, init='')
    c = base()
    c.steps, c.batch_size = 480, 16
    folder = os.path.join(os.environ.get('LMX_DATA', '../shared/data'), 'xquad')
    splits = ('train', 'validation', 'test')
    c.data = {split: spec(sources.tfds, name='lmx:xquad', split=split, fields=FIELDS, manual_dir=folder) for split in splits}
    both = spec(transforms.apply, source=ref('data.train'), steps=(spec(transforms.texts, fields=('context', 'question')),))
    c.tokenizer = spec(text.wordpiece, source=both, vocab_size=4000)
    c.task = spec(
        tasks.question_answering,
        tokenizer=ref('tokenizer'),
        max_length=256,
        overlap=64,
        max_question_length=40,
        max_answer_length=20,
        metric=metrics.squad,
    )
    c.model = spec(
        models.bert,
        vocab_size=ref('tokenizer.vocab_size'),
        dim=128,
        num_layers=2,
        num_heads=4,
        max_length=ref('task.max_length'),
        head=spec(heads.span),
    )
    if a.init:
        start_from(c, a.init, head=spec(heads.span))
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam),
        schedule=spec(schedules.linear, peak=1e-4, steps=ref('steps'), warmup_steps=20),
        weight_decay=0.01,
        clip_norm=1.0,
    )
    c.every = {'log': 10, 'evaluate': 60, 'checkpoint': 60}
    c.keep.best = 'validation/loss'
    c.baselines = spec(metrics.baselines.trivial, source=ref('data.validation'))
    return shrink(c) if a.debug else c
