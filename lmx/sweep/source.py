"""Where an executor gets its trainings from, and whom it tells what became of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

from lmx.study import Trial
from lmx.sweep.folder import ENDED, Folder


class Source(Protocol):
    """What is to be trained. An executor asks it whenever it has room."""

    def next(self) -> Trial | None:
        """The next training to begin or to go on with; None = there is none, at least until another one ends."""
        ...

    def report(self, trial: Trial, step: int, value: float) -> bool:
        """An evaluation of the study's metric after `step` updates -> whether the training should end here, pruned."""
        ...

    def end(self, trial: Trial, state: str, value: float | None) -> None:
        """A training has come to an end: 'done', 'diverged', 'pruned' or 'failed', with the last value of the metric."""
        ...

    def close(self) -> None:
        """The executor leaves; what has not ended is for whoever comes next."""
        ...


class Listed:
    """Trainings that are known beforehand, in order; nothing is pruned.

    Args:
      trials: of which those that have ended are left out.
      part: (index, count): every count-th of them alone, so that several processes share the work.
    """

    def __init__(self, folder: Folder, trials: Sequence[Trial], part: tuple[int, int] = (0, 1)):
        mine = itertools.islice(trials, part[0], None, part[1])
        self.left = [trial for trial in mine if folder.row(trial).state not in ENDED]

    def next(self) -> Trial | None:
        return self.left.pop(0) if self.left else None

    def report(self, trial: Trial, step: int, value: float) -> bool:
        return False

    def end(self, trial: Trial, state: str, value: float | None) -> None:
        pass

    def close(self) -> None:
        pass
