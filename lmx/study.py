"""The one Study type: one config trained many times, as data. Sweeps, searches and benchmarks are studies; `lmx sweep` runs them.

def get_study():
    base = load('configs/gpt_shakespeare_char.py')
    return Study(base, points=grid({'optim.schedule.peak': (1e-3, 2e-3, 4e-3), 'model.dim': (64, 128)}), seeds=(0, 1, 2))
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import itertools
import json
import math
import pathlib
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmx import spec
from lmx.types import BadInput

Point = Mapping[str, Any]
"""Config path -> value."""


@dataclasses.dataclass(frozen=True)
class Uniform:
    """A number between two others, every one as likely."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise BadInput(f'a space from {self.low} to {self.high} is empty; give the lower end first')

    def at(self, share: float) -> Any:
        """The value below which lies `share` (in [0, 1)) of the probability."""
        return self.low + share * (self.high - self.low)


@dataclasses.dataclass(frozen=True)
class LogUniform(Uniform):
    """A positive number whose logarithm is uniform, as for learning rates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            raise BadInput(f'a logarithmic space begins at {self.low}; it must begin above 0')

    def at(self, share: float) -> Any:
        return self.low * (self.high / self.low) ** share


@dataclasses.dataclass(frozen=True)
class Integer(Uniform):
    """A whole number, both ends included."""

    low: int
    high: int

    def at(self, share: float) -> Any:
        return self.low + math.floor(share * (self.high - self.low + 1))


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some values of any kind."""

    options: Sequence[Any]

    def __post_init__(self) -> None:
        if not self.options:
            raise BadInput('a choice among no options is empty; give at least one')

    def at(self, share: float) -> Any:
        return self.options[math.floor(share * len(self.options))]


Space = Mapping[str, Uniform | Choice]
SAMPLERS = ('tpe', 'cmaes', 'random')
PRUNERS = ('halving', 'hyperband')


@dataclasses.dataclass(frozen=True)
class Search:
    """Points that Optuna (Akiba et al. 2019, arXiv:1907.10902) chooses by the values of those before.

    Attributes:
      space: config path -> where its value may lie.
      trials: how many points in all.
      sampler: 'tpe' (Bergstra et al. 2011), 'cmaes' (Hansen 2016; numbers alone) or 'random'.
      pruner: None trains all to their end; 'halving' (Li et al. 2018, arXiv:1810.05934) or 'hyperband' (Li et al. 2016, arXiv:1603.06560)
        stop those that fall behind, at evaluations.
      first: updates that every trial has before it may be pruned; None = one evaluation's.
      factor: of those that come to a rung, one in `factor` goes on.
      seed: of the sampler.
    """

    space: Space
    trials: int
    sampler: str = 'tpe'
    pruner: str | None = None
    first: int | None = None
    factor: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        _check_space(self.space)
        if self.trials < 1:
            raise BadInput(f'a search of {self.trials} trials must have at least 1')
        if self.sampler not in SAMPLERS:
            raise BadInput(f'sampler {self.sampler!r} is unknown; there are {", ".join(SAMPLERS)}{spec.nearest(self.sampler, SAMPLERS)}')
        if self.pruner is not None and self.pruner not in PRUNERS:
            raise BadInput(f'pruner {self.pruner!r} is unknown; there are None, {", ".join(PRUNERS)}{spec.nearest(self.pruner, PRUNERS)}')
        if self.factor < 2:
            raise BadInput(f'factor {self.factor} of a pruner must be at least 2')


@dataclasses.dataclass(frozen=True)
class Study:
    """One config, trained at several points, each with several seeds.

    Attributes:
      base: the config (`lmx.run.load(...)`, or what a config file's get_config returns).
      points: what each changes of it; made by `grid`, `random`, `sobol`, listed as dicts, or a `Search`.
      metric: 'SPLIT/NAME', the value of the last evaluation by which points are compared.
      mode: 'min' or 'max', what is better.
      seeds: of every point; a search trains each of its points once, with the first.
      reported: 'SPLIT/NAME', the value that is reported of the winner; None reports `metric`.
      fresh_seeds: the winner is trained again with these, and the number that is reported is theirs alone.
      budget: most updates in all; a study that would take more is refused.

    Raises:
      BadInput: a path that the config has not (the nearest is named), a value of another type, no point, a point or seed given twice.
    """

    base: Any
    points: Sequence[Point] | Search
    metric: str = 'validation/loss'
    mode: str = 'min'
    seeds: Sequence[int] = (0,)
    reported: str | None = None
    fresh_seeds: Sequence[int] = ()
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in ('min', 'max'):
            raise BadInput(f'mode {self.mode!r} must be min or max')
        if self.metric.partition('/')[0] not in self.base.evaluate:
            raise BadInput(
                f'metric {self.metric!r} is of no split that is evaluated in training; there are {", ".join(self.base.evaluate)}'
            )
        if not self.seeds or len(set(self.seeds) | set(self.fresh_seeds)) < len(self.seeds) + len(self.fresh_seeds):
            raise BadInput(f'seeds {tuple(self.seeds)} and fresh_seeds {tuple(self.fresh_seeds)} must be at least one seed, and none twice')
        split = (self.reported or self.metric).partition('/')[0]
        if split not in self.base.data:
            raise BadInput(f'reported {self.reported!r} is of no split of the data; there are {", ".join(self.base.data)}')
        if isinstance(self.points, Search):
            for path, where in self.points.space.items():
                _check_value(self.base, path, where.at(0.0))
            if len(self.seeds) > 1:
                raise BadInput(f'a search trains each point once, and there are seeds {tuple(self.seeds)}; give one, and fresh_seeds')
            return
        if not self.points:
            raise BadInput('the study has no points; give at least one, {} for the config as it is')
        seen = [json.dumps(spec.to_plain(point), sort_keys=True) for point in self.points]
        twice = next((one for one in seen if seen.count(one) > 1), None)
        if twice is not None:
            raise BadInput(f'point {twice} is given twice')
        for point in self.points:
            for path, value in point.items():
                _check_value(self.base, path, value)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training of a study: a point, by its number, and a seed. `fresh`: of the winner, with a seed that had no part in the choice."""

    number: int
    point: Point
    seed: int
    fresh: bool = False

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f'{self.number:04d}-s{self.seed}'


def trials(study: Study, points: Sequence[Point] | None = None) -> list[Trial]:
    """All trainings of a study with listed points; `points` in the order of their numbers, None = as the study lists them."""
    assert not isinstance(study.points, Search)
    points = study.points if points is None else points
    return [Trial(number, point, seed) for number, point in enumerate(points) for seed in study.seeds]


def config_of(study: Study, trial: Trial) -> Any:
    """The complete config of one training.

    Raises:
      BadInput: the values of the point do not go together.
    """
    plain = copy.deepcopy(spec.to_plain(study.base))
    for path, value in trial.point.items():
        parent, _, last = path.rpartition('.')
        node = spec.get(plain, parent) if parent else plain
        node[last] = spec.to_plain(value)
    plain['seed'] = trial.seed
    split = (study.reported or study.metric).partition('/')[0]
    if trial.fresh and split not in plain['evaluate']:
        plain['evaluate'] = (*plain['evaluate'], split)
    return spec.finish(plain)


def grid(axes: Mapping[str, Sequence[Any]]) -> tuple[Point, ...]:
    """Every combination of the values of all axes; the last axis changes fastest.

    Raises:
      BadInput: an axis without values, or no axis.
    """
    empty = [path for path, values in axes.items() if not len(values)]
    if empty or not axes:
        raise BadInput(f'the grid is empty: {empty[0]!r} has no values' if empty else 'the grid is empty: it has no axes')
    return tuple(dict(zip(axes, values)) for values in itertools.product(*axes.values()))


def random(space: Space, count: int, *, seed: int = 0) -> tuple[Point, ...]:
    """`count` points drawn alone (Bergstra and Bengio 2012). More of them begin with the same ones."""
    _check_space(space)
    shares = np.random.default_rng(seed).random((count, len(space)))
    return tuple(_at(space, row) for row in shares)


def sobol(space: Space, count: int, *, seed: int = 0) -> tuple[Point, ...]:
    """`count` points of a scrambled Sobol sequence, which leave no part of the space out. More of them begin with the same ones."""
    from scipy.stats import qmc

    _check_space(space)
    drawn = qmc.Sobol(len(space), seed=seed).random_base2(max(math.ceil(math.log2(max(count, 1))), 0))
    return tuple(_at(space, row) for row in drawn[:count])


def load(path: str) -> Study:
    """The study of 'FILE.py'.

    Raises:
      BadInput: the file does not exist, fails, or has no get_study.
    """
    file = pathlib.Path(path)
    if not file.exists():
        near = spec.nearest(str(file), [str(p) for p in file.parent.glob('*.py')]) if file.parent.is_dir() else ''
        raise BadInput(f'there is no study file {path!r}{near}')
    found = importlib.util.spec_from_file_location(f'lmx_study_{file.stem}', file)
    if found is None or found.loader is None:
        raise BadInput(f'{path!r} is no Python file; give --study=FILE.py')
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
        if not hasattr(module, 'get_study'):
            raise BadInput('it defines no get_study()')
        return module.get_study()
    except BadInput as error:
        raise BadInput(f'{file}: {error}') from None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise BadInput(f'{file} fails: {type(error).__name__}: {error} ({last.filename}:{last.lineno})') from error


def to_plain(study: Study) -> dict[str, Any]:
    """The study as JSON would hold it."""
    points: Any = study.points
    if isinstance(points, Search):
        space = {path: {'kind': type(where).__name__, **dataclasses.asdict(where)} for path, where in points.space.items()}
        points = {**{field.name: getattr(points, field.name) for field in dataclasses.fields(points)}, 'space': space}
    rest = {field.name: getattr(study, field.name) for field in dataclasses.fields(study)}
    return json.loads(json.dumps(spec.to_plain({**rest, 'points': points})))


def _at(space: Space, shares: Sequence[float]) -> Point:
    return {path: where.at(float(share)) for (path, where), share in zip(space.items(), shares)}


def _check_space(space: Space) -> None:
    if not space:
        raise BadInput('the space is empty; name at least one config path, as in {"optim.schedule.peak": LogUniform(1e-4, 1e-2)}')


def _check_value(base: Any, path: str, value: Any) -> None:
    """A value has the type of the one that it replaces, where the type says anything."""
    if path == 'seed':
        raise BadInput('a point changes seed; give seeds=(0, 1, 2) to the study instead')
    old = spec.get(base, path)
    number = isinstance(old, (int, float)) and not isinstance(old, bool)
    if number and (isinstance(value, bool) or not isinstance(value, (int, float, type(None)))):
        raise BadInput(f'{path}={value!r} is no number, and the config has {old!r} there')
    if isinstance(old, int) and not isinstance(old, bool) and isinstance(value, float):
        raise BadInput(f'{path}={value!r} must be a whole number, like the {old!r} of the config')
