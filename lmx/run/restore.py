"""A trained run opened for use: its parts and the parameters to evaluate."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from lmx import text
from lmx.run.parts import Parts
from lmx.train import init, shard, weights
from lmx.train.checkpoint import Checkpoints
from lmx.train.workdir import read_config

OURS = ('lmx', 'jax.numpy', 'jax.nn')
"""What a config found in a workdir may call; `allow` adds the user's own modules."""


def restore(
    workdir: str | os.PathLike[str], checkpoint: str = 'last', config: Mapping[str, Any] | None = None, allow: Sequence[str] = ()
) -> tuple[Parts, Any, int]:
    """(parts, parameters, step) of a run. Neither its training data nor the source of its tokenizer is needed.

    Args:
      workdir: the run's folder.
      checkpoint: 'last', 'best', a step or 'average:K'. The parameters are the averaged ones (EMA) where the run kept them.
      config: the run's config with some values changed (a sampling temperature, another split); None = as it was trained.
      allow: modules of the user's own that the config may call beside lmx's.

    Raises:
      BadInput: no such run or checkpoint, a damaged one, or a config that calls what is not allowed.
    """
    config = read_config(workdir) if config is None else config
    tokenizer = pathlib.Path(workdir) / 'tokenizer.json'
    given = {'tokenizer': text.load(path=str(tokenizer))} if tokenizer.exists() and config.get('tokenizer') is not None else {}
    parts = Parts(config, allow=(*OURS, *allow), given=given)
    params = init.read_params(workdir, checkpoint, config=config, allow=parts.allow)
    step = 0 if (pathlib.Path(workdir) / weights.FILE).exists() else _step(workdir, checkpoint, config)
    return parts, jax.device_put(params, shard.param_shardings(params, config.rules, parts.mesh)), step


def _step(workdir: str | os.PathLike[str], checkpoint: str, config: Any) -> int:
    checkpoints = Checkpoints(pathlib.Path(workdir) / 'checkpoints', best=config.keep.best, mode=config.keep.mode, read_only=True)
    try:
        return checkpoints.choose(checkpoint)[-1]
    finally:
        checkpoints.close()
