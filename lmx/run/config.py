"""The run-level keys of every config, loading a config file, and shrinking one for a quick look."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import traceback
from typing import Any

from ml_collections import ConfigDict

from lmx import spec
from lmx.data import sources
from lmx.train import layouts
from lmx.types import BadInput


def base() -> ConfigDict:
    """What every run has, with defaults; a config file adds data, tokenizer, task, model and optim, and sets what it likes."""
    c = ConfigDict()
    c.seed = 0
    c.data_seed = None  # of the order of the training data; None = seed
    c.steps = 1000
    c.batch_size = 32  # examples per step, over all devices and microbatches
    c.accumulate = 1  # microbatches per step
    # axis -> devices; -1 takes what is left. See lmx.train.layouts
    c.mesh = {'data': -1, 'fsdp': 1, 'tensor': 1, 'context': 1, 'expert': 1, 'stage': 1}
    c.pipeline = {'microbatches': None, 'rounds': 1}  # over mesh.stage; None = as many as stages; 1 = GPipe, more = circular
    c.rules = layouts.standard()  # (regex over parameter paths, mesh axes from the right); the first match wins
    c.parallel = 'mesh'  # or 'pmap': data parallelism alone, see lmx.train.pmap
    c.cpu_devices = 1  # simulated devices when there is nothing but a CPU
    c.every = {'log': 10, 'evaluate': 0, 'checkpoint': 0}  # in steps; 0 = at the end only
    c.keep = {'last': 2, 'best': None, 'mode': 'min'}  # best: an evaluation value, as in 'validation/loss'
    c.evaluate = ('validation',)  # names under data, evaluated during training
    c.eval_batches = None  # of each, at most, during training; None = all. `lmx evaluate` always takes all
    c.watchdog = 600.0  # seconds without a step until stacks and stragglers are shown; 0 = never
    c.early_stopping = {'patience': 0, 'metric': 'validation/loss', 'mode': 'min'}  # evaluations without improvement; 0 = never
    c.nonfinite = 'stop'  # or 'skip': what to do when a loss or gradient is not finite
    c.init = None  # spec(lmx.train.init.run, workdir=...): parameters to start from
    c.adapter = None  # spec(lmx.train.lora.lora, rank=8, targets=...): trains a small addition to c.init, which stays as it is
    c.samples = ()  # prompts to continue when training ends
    c.baselines = None  # a call that returns {name: value}, printed beside the evaluation
    c.wandb = None  # project name; needs lmx[wandb]
    return c


def start_from(c: ConfigDict, workdir: str | os.PathLike[str], head: ConfigDict | None = None) -> None:
    """Takes another run's model and tokenizer into a config, and its parameters to begin with; `lmx import` makes such runs of others' models.

    The tokenizer is the one that the run keeps: learnt again from this config's data, it would give the parameters other words.

    Args:
      head: what the model is to end in instead of its own head; its parameters begin fresh.

    Raises:
      BadInput: no run there.
    """
    from lmx.train.workdir import read_config

    theirs, place = read_config(workdir), pathlib.Path(workdir).absolute()
    c.tokenizer, c.model = spec.spec('lmx.text.ids:load', path=str(place / 'tokenizer.json')), theirs.model
    c.init = spec.spec('lmx.train.init:run', workdir=str(place))
    if head is not None:
        c.model.head = head


LIMITS = {
    'dim': 64,
    'num_layers': 2,
    'num_heads': 2,
    'num_kv_heads': 2,
    'head_dim': 32,
    'mlp_dim': 128,
    'vocab_size': 512,
    'max_length': 64,
    'max_question_length': 24,
    'overlap': 16,
    'beam_size': 2,
    'max_tokens': 16,
}
EXAMPLES = 100
"""Of each split of the data."""


def shrink(c: ConfigDict) -> ConfigDict:
    """The config as two steps of a tiny model on a few examples and one CPU: every `:debug`.

    Hyperparameters keep their names everywhere, so this knows them.
    """
    c.steps, c.batch_size, c.accumulate, c.cpu_devices = 2, 2, 1, 1
    c.every = {'log': 1, 'evaluate': 2, 'checkpoint': 2}
    c.eval_batches = 8

    def walk(node: Any, inside: bool) -> None:
        for key, value in list(node.items()):
            if isinstance(value, ConfigDict):
                walk(value, inside or key in ('model', 'task', 'tokenizer'))
            elif inside and key in LIMITS and isinstance(value, int):
                node[key] = min(value, LIMITS[key])

    def fewer(node: Any) -> None:
        if node.get(spec.CALL) == spec.name_of(sources.tfds):
            node.limit = EXAMPLES
        elif isinstance(node.get('source'), ConfigDict):
            fewer(node.source)

    walk(c, False)
    for split in c.get('data', {}).values():
        fewer(split)
    return c


def load(path: str | os.PathLike[str]) -> ConfigDict:
    """The config of 'FILE.py', 'FILE.py:ARG' or 'RUN/config.json', unlocked values settable: `config.model.dim = 128`.

    Raises:
      BadInput: the file does not exist, fails, or has no get_config.
    """
    name, _, arg = str(path).partition(':')
    file = pathlib.Path(name)
    if not file.exists():
        near = spec.nearest(str(file), [str(p) for p in file.parent.glob('*.py')]) if file.parent.is_dir() else ''
        raise BadInput(f'there is no config file {name!r}{near}')
    if file.suffix == '.json':
        return spec.from_json(file.read_text())
    return spec.finish(_get_config(file, arg))


def _get_config(file: pathlib.Path, arg: str) -> ConfigDict:
    found = importlib.util.spec_from_file_location(f'lmx_config_{file.stem}', file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
        if not hasattr(module, 'get_config'):
            raise BadInput(f'{file} defines no get_config(arg)')
        return module.get_config(arg)
    except BadInput as error:
        raise BadInput(f'{file}: {error}') from None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise BadInput(f'{file} fails: {type(error).__name__}: {error} ({last.filename}:{last.lineno})') from error
