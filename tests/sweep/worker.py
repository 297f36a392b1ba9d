"""Trains the points of a search by a formula instead of a model; run as `python -m tests.sweep.worker SWEEP`, in a process of its own."""

import contextlib
import math
import sys

from lmx.study import Trial
from lmx.sweep.folder import Folder
from lmx.sweep.search import Searched

PEAK, DROPOUT = 'optim.schedule.peak', 'model.dropout_rate'


def loss(point) -> float:
    """What a training would come to: best at a peak of 1e-2 and no dropout."""
    return (math.log10(point[PEAK]) + 2) ** 2 + point.get(DROPOUT, 0.0)


def exhaust(folder: Folder, source: Searched) -> list[Trial]:
    """Trains all that the source has, one after another; every evaluation says how good the point is."""
    out = []
    while (trial := source.next()) is not None:
        folder.mark(trial, 'running')
        state = 'pruned' if any(source.report(trial, step, loss(trial.point)) for step in (10, 20, 30, 40)) else 'done'
        folder.mark(trial, state)
        source.end(trial, state, loss(trial.point))
        out.append(trial)
    return out


if __name__ == '__main__':
    folder = Folder(sys.argv[1])
    with contextlib.closing(Searched(folder)) as source:
        print('ready', flush=True)
        sys.stdin.readline()
        print(*(trial.number for trial in exhaust(folder, source)))
