"""A trained run opened for use: its parts and the parameters to evaluate."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lmx.optim import eval_params
from lmx.run.parts import Parts
from lmx.train.checkpoint import Checkpoints, Damaged, average
from lmx.train.workdir import read_config
from lmx.types import BadInput

OURS = ('lmx',)
"""What a config found in a workdir may call; `allow` adds the user's own modules."""


def restore(
    workdir: str | os.PathLike[str], checkpoint: str = 'last', config: Mapping[str, Any] | None = None, allow: Sequence[str] = ()
) -> tuple[Parts, Any, int]:
    """(parts, parameters, step) of a run.

    Args:
      workdir: the run's folder.
      checkpoint: 'last', 'best', a step or 'average:K'. The parameters are the averaged ones (EMA) where the run kept them.
      config: the run's config with some values changed (a sampling temperature, another split); None = as it was trained.
      allow: modules of the user's own that the config may call beside lmx's.

    Raises:
      BadInput: no such run or checkpoint, a damaged one, or a config that calls what is not allowed.
    """
    config = read_config(workdir) if config is None else config
    parts = Parts(config, allow=(*OURS, *allow))
    checkpoints = Checkpoints(pathlib.Path(workdir) / 'checkpoints', best=config.keep.best, mode=config.keep.mode, read_only=True)
    try:
        steps = checkpoints.choose(checkpoint)
        like = parts.abstract_state()
        states = [checkpoints.restore(step, like)[0] for step in steps]
    except Damaged as error:
        raise BadInput(f'checkpoint {checkpoint} of {workdir} is damaged ({error}); choose another of {checkpoints.steps()}') from None
    finally:
        checkpoints.close()
    return parts, average([eval_params(state.opt_state, state.params) for state in states]), steps[-1]
