"""GLUE (Wang et al. 2018, arXiv:1804.07461): `:task=cola`, `sst2`, `mrpc`, `qqp`, `stsb`, `mnli`, `qnli`, `rte` or `wnli`.

    lmx import --from=DIR --workdir=runs/bert
    lmx train --config=configs/classify_glue.py:task=mrpc,init=runs/bert --workdir=runs/mrpc
    lmx evaluate --workdir=runs/mrpc --checkpoint=best --split=validation

Preparing the data needs `lmx[tf]`; what another machine has prepared does not. The test labels are secret, so validation is what is reported.
Published for BERT-base on test: CoLA 52.1, SST-2 93.5, MRPC 88.9, STS-B 85.8, QQP 71.2, MNLI 84.6, QNLI 90.5, RTE 66.4 (Devlin et al. 2018,
table 1). Not run here.
"""

from ml_collections import ConfigDict

from lmx import metrics, models, optim, tasks, text
from lmx.data import sources, transforms
from lmx.nn import heads
from lmx.optim import schedules
from lmx.run.config import base, shrink, start_from
from lmx.spec import parse_arg, pick, ref, spec

YES = ('no', 'yes')
PAIR = ('sentence1', 'sentence2')
TASKS = {  # (first text, second text), labels, split to evaluate
    'cola': (('sentence', None), ('unacceptable', 'acceptable'), 'validation'),
    'sst2': (('sentence', None), ('negative', 'positive'), 'validation'),
    'mrpc': (PAIR, YES, 'validation'),
    'qqp': (('question1', 'question2'), YES, 'validation'),
    'stsb': (PAIR, None, 'validation'),
    'mnli': (('premise', 'hypothesis'), ('entailment', 'neutral', 'contradiction'), 'validation_matched'),
    'qnli': (('question', 'sentence'), ('entailment', 'not_entailment'), 'validation'),
    'rte': (PAIR, ('entailment', 'not_entailment'), 'validation'),
    'wnli': (PAIR, YES, 'validation'),
}


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False, task='mrpc', init='')
    c = base()
    c.steps, c.batch_size = 1500, 32
    (first, second), labels, validation = pick(TASKS, a.task, 'task')
    fields = {'text': first, 'label': 'label'} | ({'other': second} if second else {})
    source = {'name': f'glue/{a.task}', 'fields': fields}
    c.data = {name: spec(sources.tfds, split=split, **source) for name, split in {'train': 'train', 'validation': validation}.items()}
    texts = spec(transforms.texts, fields=('text', 'other') if second else ('text',))
    c.tokenizer = spec(text.wordpiece, source=spec(transforms.apply, source=ref('data.train'), steps=(texts,)), vocab_size=8000)
    c.task = spec(
        tasks.text_classification,
        tokenizer=ref('tokenizer'),
        max_length=128,
        labels=labels,
        other='other' if second else None,
        metric=metrics.classification if labels else metrics.correlation,
    )
    head = spec(heads.classifier, num_classes=len(labels) if labels else 1, dropout_rate=0.1)
    size = {'dim': 256, 'num_layers': 4, 'num_heads': 4, 'max_length': ref('task.max_length')}
    c.model, rate = spec(models.bert, vocab_size=ref('tokenizer.vocab_size'), head=head, **size), 1e-4
    if a.init:
        start_from(c, a.init, head=head)
        rate = 3e-5
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam),
        schedule=spec(schedules.linear, peak=rate, steps=ref('steps'), warmup_steps=150),
        weight_decay=0.01,
        clip_norm=1.0,
    )
    c.every = {'log': 50, 'evaluate': 250, 'checkpoint': 250}
    c.keep.best = 'validation/loss'
    return shrink(c) if a.debug else c
