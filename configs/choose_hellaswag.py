"""HellaSwag: which of four endings goes on with a text (Zellers et al. 2019, arXiv:1905.07830), by a decoder's log-likelihood.

    lmx import --from=HF_DIR --workdir=runs/gpt2 --config=configs/choose_hellaswag.py
    lmx evaluate --workdir=runs/gpt2 --split=validation

`:shots=K` puts K answered texts of the training split before each. Published without any: GPT-3 of 175 billion parameters 78.9 % (Brown et al. 2020,
arXiv:2005.14165, table 3.2). Not run here. From the TFDS catalogue; preparing it needs `lmx[tf]`, what another machine has prepared does not.
"""

from ml_collections import ConfigDict

from lmx import models, optim, tasks, text
from lmx.data import sources, transforms
from lmx.optim import schedules
from lmx.run.config import base, shrink
from lmx.spec import parse_arg, ref, spec

FIELDS = {name: name for name in ('context', 'endings', 'label')}


def get_config(arg: str = '') -> ConfigDict:
    a = parse_arg(arg, debug=False, shots=0)
    c = base()
    c.steps, c.batch_size = 4000, 32
    c.data = {split: spec(sources.tfds, name='hellaswag', split=split, fields=FIELDS) for split in ('train', 'validation')}
    both = spec(transforms.apply, source=ref('data.train'), steps=(spec(transforms.texts, fields=('context',)),))
    c.tokenizer = spec(text.bpe, source=both, vocab_size=16_000)
    c.task = spec(
        tasks.multiple_choice,
        tokenizer=ref('tokenizer'),
        max_length=256 * (1 + a.shots),
        prompt='{context}',
        choices='endings',
        answer='label',
        normalise='characters',
        shots=a.shots,
        examples=ref('data.train') if a.shots else None,
    )
    size = {'dim': 512, 'num_layers': 8, 'num_heads': 8, 'max_length': ref('task.max_length')}
    c.model = spec(models.gpt, vocab_size=ref('tokenizer.vocab_size'), dropout_rate=0.1, **size)
    c.optim = spec(
        optim.optimizer,
        rule=spec(optim.adam),
        schedule=spec(schedules.cosine, peak=3e-4, steps=ref('steps'), warmup_steps=200),
        weight_decay=0.1,
        clip_norm=1.0,
    )
    c.every = {'log': 50, 'evaluate': 500, 'checkpoint': 500}
    c.keep.best = 'validation/nll'
    return shrink(c) if a.debug else c
