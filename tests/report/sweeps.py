"""Folders of sweeps with known answers, made by the classes that real ones are made by."""

import functools
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmx import spec
from lmx.study import Choice, Integer, LogUniform, Search, Study, Trial, Uniform, config_of, grid
from lmx.sweep.folder import Folder
from tests import tiny

LR, DIM = 'optim.schedule.peak', 'model.dim'
STEPS = 200


@functools.cache
def base(steps: int = STEPS) -> Any:
    c = tiny.get_config(f'steps={steps}')
    c.data = {**c.data, 'test': spec.spec('tests.tiny:records', split='validation')}
    c.evaluate = ('validation', 'test')
    return spec.finish(c)


def loss(point: Mapping[str, Any], seed: int, end: int = STEPS, at: int | None = None) -> float:
    """A bowl over learning rate and width, the wider the better and the lower its best rate; noise by seed; falling over the steps."""
    rate, dim = point.get(LR, 3e-3), point.get(DIM, 64)
    best = 4e-3 * (64 / dim) ** 0.5
    noise = 0.01 * np.random.default_rng([seed, round(rate * 1e6), dim]).standard_normal()
    final = 1.5 + 0.15 * math.log2(rate / best) ** 2 / 4 + 0.1 * math.log2(256 / dim) + noise + 0.3 * point.get('optim.weight_decay', 0.0)
    step = end if at is None else at
    return final + 2.5 * math.exp(-6 * step / end) - 2.5 * math.exp(-6.0)


def grid_study(**changes: Any) -> Study:
    points = grid({LR: (1e-3, 2e-3, 4e-3, 8e-3), DIM: (32, 64, 128)})
    return Study(base(), **{'points': points, 'seeds': (0, 1, 2), **changes})


def search_study(trials: int = 60) -> Study:
    space = {
        LR: LogUniform(1e-4, 3e-2),
        DIM: Integer(16, 256),
        'optim.weight_decay': Uniform(0.0, 0.5),
        'model.dtype': Choice(('float32', 'bfloat16')),
    }
    return Study(base(), Search(space, trials, pruner='halving', seed=3), fresh_seeds=(10, 11))


def trained(
    folder: Folder,
    trial: Trial,
    state: str = 'done',
    *,
    until: int = STEPS,
    of: Callable[..., float] = loss,
    why: str = '',
    evaluate: int = 20,
) -> None:
    """Leaves what a training leaves that came to `until`."""
    folder.mark(trial, state, **({'why': why} if why else {}))
    path = folder.folder(trial)
    (path / 'config.json').write_text(spec.to_json(config_of(folder.study, trial)))
    metrics, evaluations = [], []
    for step in range(1, until + 1):
        value = of(trial.point, trial.seed, at=step)
        lost = state == 'diverged' and step > until - 10
        value = None if state == 'diverged' and step == until else value * (1 + (step - until + 10) ** 2 / 10 if lost else 1)
        if step % 4 == 0 or step == until:
            noise = 0.1 * np.random.default_rng([step, trial.seed]).standard_normal()
            line = {'loss': None if value is None else value + noise, 'learning_rate': trial.point.get(LR, 3e-3), 'grad_norm': 1.0}
            metrics.append({'step': step, 'split': 'train', **line, 'tokens_per_second': 1e5, 'step_seconds': 0.01, 'batch_hash': 'ab'})
        if step % evaluate == 0:
            evaluations += [{'step': step, 'split': split, 'loss': value} for split in ('validation', 'test')]
    for name, lines in (('metrics', metrics), ('eval', evaluations)):
        (path / f'{name}.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def finished_grid(path: pathlib.Path, fresh: Sequence[int] = (), **changes: Any) -> Folder:
    """12 points x 3 seeds: one diverged, one failed before its first step, one runs; `fresh`: seeds of the winner that are trained."""
    folder = Folder(path, grid_study(**changes))
    folder.record()
    for trial in folder.trials():
        if trial.name == '0011-s1':
            trained(folder, trial, 'diverged', until=70, why='loss nan at step 70; last finite loss 12.9')
        elif trial.name == '0001-s2':
            folder.mark(trial, 'failed', why='RESOURCE_EXHAUSTED: out of memory <b>while</b> allocating 1.2 GiB & more')
        elif trial.name == '0010-s2':
            trained(folder, trial, 'running', until=110)
        else:
            trained(folder, trial)
    for seed in fresh:
        trained(folder, Trial(5, folder.points[5], seed, fresh=True))
    return folder


def search(path: pathlib.Path, begun: int = 60) -> Folder:
    """A search whose later trials lie nearer to the best; a third of them pruned, one diverged."""
    folder = Folder(path, search_study())
    folder.record()
    rng = np.random.default_rng(1)
    space = folder.study.points.space
    for number in range(begun):
        near = number / 60
        shares = (1 - near) * rng.random(4) + near * np.array([0.62, 0.9, 0.1, 0.3])
        point = {key: where.at(float(share)) for (key, where), share in zip(space.items(), shares)}
        trial = Trial(number, point, 0)
        if number == 7:
            trained(folder, trial, 'diverged', until=33, why='loss nan at step 33')
        elif number % 3 == 1:
            trained(folder, trial, 'pruned', until=60 if number % 2 else 20)
        else:
            trained(folder, trial)
    return folder


def waiting(path: pathlib.Path) -> Folder:
    """Only just begun: one training marked, none with a line."""
    folder = Folder(path, grid_study())
    folder.record()
    folder.mark(folder.trials()[0], 'running')
    return folder
