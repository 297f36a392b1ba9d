"""Which trainings of a study may share a program: points as groups of one shape, and each group as functions of traced numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lmx import spec, study
from lmx.data import pipeline
from lmx.optim import eval_params
from lmx.run.parts import Parts
from lmx.study import Search, Study, Trial
from lmx.sweep.packed import Group
from lmx.sweep.population import Program
from lmx.train.evaluate import report
from lmx.train.state import init_state
from lmx.train.step import eval_step, train_step
from lmx.types import BadInput, Mean

TRACED = ('model', 'optim', 'task')
"""Numbers below these may be arguments of the program."""

APART = (
    *('mesh', 'pipeline', 'rules', 'parallel', 'cpu_devices', 'every', 'keep', 'evaluate', 'eval_batches', 'early_stopping', 'nonfinite'),
    *('init', 'adapter', 'samples', 'baselines', 'wandb', 'watchdog'),
)
"""What all trainings of a population have in common, as it says how they are run."""


def varied(of: Study, trials: Sequence[Trial]) -> list[str]:
    """The config paths that a study changes.

    Raises:
      BadInput: something that trainings in one program cannot do, or do differently; the executor that can is named.
    """
    base = of.base
    refused = [
        (base.parallel != 'mesh', f'parallel {base.parallel!r}'),
        (base.init is not None, 'init'),
        (base.get('adapter') is not None, 'adapter'),
        (base.early_stopping.patience, f'early_stopping.patience {base.early_stopping.patience}'),
        *((base.mesh[axis] > 1, f'mesh.{axis} {base.mesh[axis]}') for axis in base.mesh),
    ]
    for wrong, what in refused:
        if wrong:
            raise BadInput(f'config.{what} cannot be had by many trainings in one program; use --executor=local')
    searched = list(of.points.space) if isinstance(of.points, Search) else []
    paths = list(dict.fromkeys([*searched, *(path for trial in trials for path in trial.point)]))
    for path in paths:
        if path.split('.')[0] in APART:
            raise BadInput(f'{path} cannot vary among trainings in one program; use --executor=local')
    return paths


def own_paths(of: Study, trials: Sequence[Trial]) -> list[str]:
    """The config paths that the trainings change and that one program can take as arguments; for a search, all that it varies.

    Raises:
      BadInput: as `varied`; a search in a path that cannot be an argument.
    """
    found = [path for path in varied(of, trials) if path.split('.')[0] in TRACED and _traces(of, path, trials)]
    static = [path for path in of.points.space if path not in found] if isinstance(of.points, Search) else []
    if static:
        raise BadInput(f'{static[0]} cannot be an argument of one program, as a search in it needs; use --executor=local')
    return found


def grouped(of: Study, trials: Sequence[Trial], own: Sequence[str]) -> list[tuple[Any, list[str], list[Trial]]]:
    """(the config of the first, the paths that are its program's arguments, the trainings) of every group, in the order of the first."""
    groups: dict[str, tuple[Any, list[str], list[Trial]]] = {}
    for trial in trials:
        config = study.config_of(of, trial)
        mine = [path for path in own if _is_number(spec.get(config, path))]
        groups.setdefault(_key(config, mine), (config, mine, []))[2].append(trial)
    return list(groups.values())


def group(of: Study, config: Any, own: Sequence[str]) -> Group:
    """The trainings that share `config` but for the numbers at `own` and the seed, as one program.

    Raises:
      BadInput: what `lmx train` would refuse, or data that is read in streams.
    """
    parts = Parts(config, devices=jax.devices()[:1])
    parts.check()
    if parts.carries:
        raise BadInput(
            'recurrent state that goes on from batch to batch cannot be had by many trainings in one program; use --executor=local'
        )
    shapes = parts.batch_shapes
    shared = {path: value for path, value in parts.values.items() if path not in own}

    def prepare(folder: Any) -> None:
        if config.get('tokenizer') is not None and not (folder / 'tokenizer.json').exists():
            parts.builder('tokenizer').save(folder / 'tokenizer.json')

    return Group(
        name=hashlib.blake2b(_key(config, own).encode(), digest_size=5).hexdigest(),
        config=config,
        program=Program(
            init=lambda values, seed: init_state(parts.make, values, shapes, seed),
            step=lambda state, batch, values: train_step(state, batch, values, make=parts.make, accumulate=config.accumulate),
            evaluate=lambda state, batch, values: eval_step(eval_params(state.opt_state, state.params), batch, values, make=parts.make),
            shared=shared,
            freeze=config.nonfinite == 'stop',
        ),
        own=tuple(own),
        batches=lambda seed: pipeline.train_batches(parts.features('train'), batch_size=config.batch_size, seed=parts.order(seed)),
        evaluations=lambda split: pipeline.eval_batches(parts.features(split), batch_size=config.batch_size),
        config_of=lambda trial: study.config_of(of, trial),
        prepare=prepare,
    )


def middle(search: Search) -> dict[str, Any]:
    """A point in the midst of a search's space."""
    return {path: where.at(0.5) for path, where in search.space.items()}


def check_metric(of: Study) -> None:
    """Refuses a metric that the evaluation does not have, before anything is trained.

    Raises:
      BadInput: the nearest one is named.
    """
    point = middle(of.points) if isinstance(of.points, Search) else of.points[0]
    parts = Parts(study.config_of(of, Trial(0, point, of.seeds[0])), devices=jax.devices()[:1])
    if parts.carries:
        return  # known after the first evaluation
    params, batch = parts.abstract_params(), parts.batch_shapes
    sums = jax.eval_shape(lambda params, batch: eval_step(params, batch, parts.values, make=parts.make), params, batch)
    names = list(report({name: Mean(1.0, 1.0) for name in sums}))
    split, _, name = of.metric.partition('/')
    if name not in names:
        raise BadInput(f'metric {of.metric!r} is not evaluated{spec.nearest(name, names)}; {split} has {", ".join(names)}')


def _key(config: Any, own: Sequence[str]) -> str:
    """Equal for configs that one program can train."""
    plain = spec.to_plain(config)
    for path in own:
        parent, _, last = path.rpartition('.')
        spec.get(plain, parent)[last] = type(spec.get(plain, path)).__name__
    if not any(isinstance(value, str) and value == '${seed}' for _, value in spec.leaves(plain)):
        plain['seed'] = None
    return json.dumps(plain, sort_keys=True)


def _traces(of: Study, path: str, trials: Sequence[Trial]) -> bool:
    """Whether a step can be traced with an argument at `path`, and the data does not depend on it.

    Raises:
      BadInput: one of its values is refused, as by `lmx train`.
    """
    values = _values(of, path, trials)
    numbers = sorted({value for value in values if _is_number(value)})
    if not numbers or isinstance(spec.get(of.base, path), int) != isinstance(numbers[0], int):
        return False
    points = (
        [middle(of.points)] if isinstance(of.points, Search) else [trial.point for trial in trials if _at(of, trial, path) == numbers[0]]
    )
    first = Trial(0, points[0], of.seeds[0])
    parts = Parts(study.config_of(of, Trial(0, {**first.point, path: numbers[0]}, first.seed)), devices=jax.devices()[:1])
    parts.check()
    if path in parts.values:  # was an argument of what has just been traced
        return True
    if path.startswith('task.') and len({_data(of, first, path, value) for value in numbers}) > 1:
        return False

    def step(value: Any) -> Any:
        traced = {**parts.values, path: value}
        state = init_state(parts.make, traced, parts.batch_shapes, 0)
        return train_step(state, _zeros(parts.batch_shapes), traced, make=parts.make, accumulate=parts.config.accumulate)

    try:
        jax.eval_shape(step, jax.ShapeDtypeStruct((), jnp.int32 if isinstance(numbers[0], int) else jnp.float32))
    except (TypeError, ValueError, IndexError):  # JAX's own errors about tracers are among them
        return False
    if not path.startswith('optim.') and len(numbers) > 1:  # a traced number passes checks that a plain one does not
        Parts(study.config_of(of, Trial(0, {**first.point, path: numbers[-1]}, first.seed)), devices=jax.devices()[:1]).check()
    return True


def _values(of: Study, path: str, trials: Sequence[Trial]) -> list[Any]:
    if isinstance(of.points, Search) and path in of.points.space:
        where = of.points.space[path]
        return [where.at(0.0), where.at(1.0 - 1e-9)] if not hasattr(where, 'options') else list(where.options)
    return [_at(of, trial, path) for trial in trials]


def _at(of: Study, trial: Trial, path: str) -> Any:
    return trial.point[path] if path in trial.point else spec.get(of.base, path)


def _is_number(value: Any) -> bool:
    """One that may be an argument: None and 0 leave no trace in a program, which an argument of 0 would."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value != 0


def _data(of: Study, trial: Trial, path: str, value: Any) -> str:
    """What identifies the examples of all splits that a training reads."""
    config = study.config_of(of, Trial(0, {**trial.point, path: value}, trial.seed))
    parts = Parts(config, devices=jax.devices()[:1])
    return ' '.join(pipeline.identity(parts.features(split)) for split in ('train', *config.evaluate))


def _zeros(shapes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
