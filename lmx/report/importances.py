"""How much each hyperparameter matters to being among the best points: PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255), by Optuna."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from lmx.report.sweep_read import Hyper
from lmx.study import Study
from lmx.sweep.table import Line

FEWEST = 8
"""Points with a value, below which shares would be chance."""


def of(study: Study, lines: Sequence[Line], hypers: Sequence[Hyper]) -> tuple[dict[str, float], str]:
    """({path: share}, ''), largest first and 1 in all, or ({}, why there are none)."""
    finished = [line for line in lines if line.values]
    if len(hypers) < 2:
        return {}, 'Importances compare hyperparameters, and fewer than two vary.'
    if len(finished) < FEWEST:
        return {}, f'Importances need {FEWEST} finished points; there are {len(finished)}.'
    if len({line.mean for line in finished}) == 1:
        return {}, 'All finished points have the same value, so nothing is important.'
    try:
        import optuna
    except ImportError:
        return {}, 'Importances need Optuna: pip install optuna'
    with _quietly(optuna):
        told = optuna.importance.get_param_importances(
            optuna_study(study, finished, hypers), evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    if not all(math.isfinite(share) for share in told.values()) or not any(told.values()):
        return {}, 'The best points do not differ from the others in any hyperparameter.'
    return dict(told), ''


def optuna_study(study: Study, lines: Sequence[Line], hypers: Sequence[Hyper]) -> Any:
    """An Optuna study in memory that holds the means of the points."""
    import optuna

    space = {hyper.path: _distribution(hyper) for hyper in hypers}
    made = optuna.create_study(direction='maximize' if study.mode == 'max' else 'minimize')
    for line in lines:
        params = {hyper.path: hyper.values[line.number] if hyper.numeric else hyper.level(line) for hyper in hypers}
        made.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=line.mean))
    return made


def _distribution(hyper: Hyper) -> Any:
    from optuna import distributions

    if not hyper.numeric:
        return distributions.CategoricalDistribution(tuple(range(len(hyper.levels))))
    low, high = hyper.levels[0], hyper.levels[-1]
    if all(isinstance(level, int) for level in hyper.levels):
        return distributions.IntDistribution(low, high, log=hyper.log)
    return distributions.FloatDistribution(low, high, log=hyper.log)


@contextlib.contextmanager
def _quietly(optuna: Any) -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
