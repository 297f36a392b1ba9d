"""Trainings that Optuna chooses (Akiba et al. 2019, arXiv:1907.10902), from a journal file that any number of processes share."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import pathlib
import uuid
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lmx import spec
from lmx.study import Choice, Integer, LogUniform, Search, Study, Trial, Uniform
from lmx.sweep import journal
from lmx.sweep.folder import ENDED, Folder
from lmx.types import BadInput

if TYPE_CHECKING:
    import optuna  # pyright: ignore[reportMissingImports]

JOURNAL = 'optuna.journal'


class Searched:
    """The trainings of a search, a Source.

    All processes that have one of the same folder make as many trainings together as the search says. A training is told apart by Optuna's
    number. One that is asked of Optuna and marked by nobody, because the process died in between, is given up and does not count. One that
    has a folder and has not ended is begun again where it was: by the process that has the part in which it was begun, or by one that has
    the whole. One that failed is among those; it is not tried twice by one `Searched`.

    Args:
      folder: of the sweep; `folder.mark` what a training came to before `end`.
      part: (index, count), as the executor's.

    Raises:
      BadInput: Optuna is not installed, the journal is another study's, or is not there and trainings are; a sampler or pruner that cannot be.
    """

    def __init__(self, folder: Folder, part: tuple[int, int] = (0, 1)):
        self.folder, self.study, self.part = folder, folder.study, part
        search = folder.study.points
        assert isinstance(search, Search)
        self.search: Search = search
        self.optuna = _optuna()
        _check_sampler(search)
        self.pruner = _pruner(self.optuna, self.study, search)
        folder.path.mkdir(parents=True, exist_ok=True)
        self.owner = uuid.uuid4().hex[:12]
        self._alive = journal.hold(self._lock_of(self.owner))
        try:
            with self._alone():
                self.storage, self.trials = journal.opened(self.optuna, folder.path / JOURNAL, self.study, self.pruner)
                self.left = self._claimed()
        except BaseException:
            self.close()
            raise

    def next(self) -> Trial | None:
        if self.left:
            return self.left.pop(0)
        with self._alone():
            made = self.trials.get_trials(deepcopy=False)
            if sum(not one.user_attrs.get('given up') for one in made) >= self.search.trials:
                return None
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # that this or that is experimental
                # Seeded by the number, so that no two processes or starts draw the same, and one process draws what it drew before.
                self.trials.sampler = _sampler(self.optuna, self.search, len(made))
                asked = self.trials.ask()
                shares = {path: _suggested(asked, path, where) for path, where in self.search.space.items()}
            self._own(asked.number, self.owner)
        return self._trial(asked.number, shares)

    def report(self, trial: Trial, step: int, value: float) -> bool:
        """What `step` reported before stays; the answer at the last step is no."""
        frozen = self._frozen(trial.number)
        if frozen.state.is_finished():  # before a crash took it back: it ends as it did
            return frozen.state.name == 'PRUNED' and step >= max(frozen.intermediate_values)
        if not math.isfinite(value):
            return False
        if frozen.user_attrs.get('pruned'):
            return True
        if step in frozen.intermediate_values:
            return False
        self.storage.set_trial_intermediate_value(frozen._trial_id, step, value)
        pruned = self.pruner.prune(self.trials, self._frozen(trial.number))
        if pruned := pruned and step < trial.point.get('steps', self.study.base.steps):
            self.storage.set_trial_user_attr(frozen._trial_id, 'pruned', True)
        return pruned

    def end(self, trial: Trial, state: str, value: float | None) -> None:
        """One that failed stays open, to be tried again by the next `Searched`; what has ended before stays as it is."""
        frozen = self._frozen(trial.number)
        states = self.optuna.trial.TrialState
        if frozen.state.is_finished():
            return
        if state == 'failed':
            self._own(trial.number, '')
        elif state == 'pruned':
            self.trials.tell(trial.number, state=states.PRUNED)
        elif state == 'done' and value is not None and not math.isnan(value):
            self.trials.tell(trial.number, value)
        else:
            self.trials.tell(trial.number, state=states.FAIL)

    def close(self) -> None:
        """Gives up what was handed out and has not ended; whoever comes next may go on with it."""
        self._lock_of(self.owner).unlink(missing_ok=True)
        os.close(self._alive)

    # -- whose is what

    def _claimed(self) -> list[Trial]:
        """The trainings of nobody alive that have not ended, now ours; what a process that died left half said is put right."""
        there = {trial.number: trial for trial in self.folder.trials()}
        made = self.trials.get_trials(deepcopy=False)
        if lost := sorted(set(there) - {one.number for one in made}):
            raise BadInput(
                f'{self.folder.path} holds training {lost[0]}, which its {JOURNAL} does not; restore that file, or give a new --workdir'
            )
        out = []
        for one in made:
            trial = there.get(one.number)
            state = self.folder.row(trial).state if trial is not None else ''
            if one.state.is_finished():
                if trial is not None and state not in ENDED:
                    self.folder.mark(trial, {'COMPLETE': 'done', 'PRUNED': 'pruned'}.get(one.state.name, 'diverged'))
            elif self._is_held(one):
                continue
            elif trial is None:
                self.storage.set_trial_user_attr(one._trial_id, 'given up', True)
                self.trials.tell(one.number, state=self.optuna.trial.TrialState.FAIL)
            elif state in ENDED or one.user_attrs.get('pruned'):
                state = state if state in ENDED else 'pruned'
                self.folder.mark(trial, state)
                self.end(trial, state, self.folder.row(trial).values.get(self.study.metric))
            elif self.part in ((0, 1), tuple(one.user_attrs.get('part', ()))):
                self._own(one.number, self.owner)
                out.append(self._trial(one.number, one.params))
        return out

    def _is_held(self, one: optuna.trial.FrozenTrial) -> bool:
        """Whether a process that lives has the training."""
        path = self._lock_of(one.user_attrs.get('owner', ''))
        if not one.user_attrs.get('owner') or not path.exists():
            return False
        handle = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(handle)
        path.unlink(missing_ok=True)
        return False

    def _own(self, number: int, owner: str) -> None:
        trial_id = self._frozen(number)._trial_id
        self.storage.set_trial_user_attr(trial_id, 'part', list(self.part))
        self.storage.set_trial_user_attr(trial_id, 'owner', owner)

    def _lock_of(self, owner: str) -> pathlib.Path:
        return self.folder.path / f'.lock-search-{owner}'

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time counts the trainings and asks for another."""
        handle = journal.hold(self.folder.path / '.lock-search')
        try:
            yield
        finally:
            os.close(handle)

    def _frozen(self, number: int) -> optuna.trial.FrozenTrial:
        known = self.storage.get_study_id_from_name(self.trials.study_name)
        return self.storage.get_trial(self.storage.get_trial_id_from_study_id_trial_number(known, number))

    def _trial(self, number: int, params: Mapping[str, Any]) -> Trial:
        space = self.search.space
        values = {path: where.options[params[path]] if isinstance(where, Choice) else params[path] for path, where in space.items()}
        return Trial(number, json.loads(json.dumps(spec.to_plain(values))), self.study.seeds[0])


def _suggested(asked: optuna.Trial, path: str, where: Uniform | Choice) -> Any:
    if isinstance(where, Choice):
        return asked.suggest_categorical(path, list(range(len(where.options))))
    if isinstance(where, Integer):
        return asked.suggest_int(path, where.low, where.high)
    return asked.suggest_float(path, where.low, where.high, log=isinstance(where, LogUniform))


# -- Optuna's parts


def _optuna() -> Any:
    try:
        import cmaes  # noqa: F401  # pyright: ignore[reportMissingImports]
        import optuna  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise BadInput("a search needs `pip install 'lmx[sweep]'`") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _check_sampler(search: Search) -> None:
    choices = [path for path, where in search.space.items() if isinstance(where, Choice)]
    if search.sampler == 'cmaes' and choices:
        raise BadInput(f"sampler 'cmaes' takes numbers alone, and {choices[0]} is a Choice; take 'tpe'")
    if search.sampler == 'cmaes' and len(search.space) < 2:
        raise BadInput(f"sampler 'cmaes' needs at least two numbers, and there is {', '.join(search.space)} alone; take 'tpe'")


def _sampler(optuna: Any, search: Search, number: int) -> Any:
    """For training `number`."""
    seed = int(np.random.SeedSequence([search.seed, number]).generate_state(1)[0])
    if search.sampler == 'random':
        return optuna.samplers.RandomSampler(seed=seed)
    if search.sampler == 'cmaes':
        return optuna.samplers.CmaEsSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)  # trainings are asked for while others run


def _pruner(optuna: Any, wanted: Study, search: Search) -> Any:
    if search.pruner is None:
        return optuna.pruners.NopPruner()
    steps = wanted.base.steps
    first = search.first or wanted.base.every.evaluate
    if not wanted.base.every.evaluate:
        raise BadInput(f'pruner {search.pruner!r} looks at evaluations, and every.evaluate is 0; set it to a part of the {steps} steps')
    if not 0 < first < steps:
        raise BadInput(f'pruner {search.pruner!r} would look first after {first} of {steps} steps; give first in 1..{steps - 1}')
    if search.pruner == 'halving':
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=search.factor)
    return optuna.pruners.HyperbandPruner(min_resource=first, max_resource=steps, reduction_factor=search.factor)
