"""What a trained model attends to: the weights of every layer and head for one example, kept beside the run for its report."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lmx import trees
from lmx.data import sources
from lmx.run.restore import restore
from lmx.train.state import sown
from lmx.types import BadInput, Sums

FILE = 'attention.npz'
LONGEST = 48
"""Tokens that a picture has room for."""


def attention(
    workdir: str | os.PathLike[str],
    example: str | Mapping[str, Any],
    *,
    checkpoint: str = 'last',
    config: Mapping[str, Any] | None = None,
    allow: Sequence[str] = (),
) -> pathlib.Path:
    """Writes `WORKDIR/attention.npz`, which `lmx report` draws.

    Args:
      example: a record as the task trains on it ({'source': ..., 'target': ...}), or a text for the task's first input.
      checkpoint, config, allow: see `lmx.run.restore`.

    Raises:
      BadInput: a model without attention, or an example that the task refuses.
    """
    parts, params, _ = restore(workdir, checkpoint, config, allow)
    record = {parts.task.inputs[0]: example} if isinstance(example, str) else dict(example)
    features = parts.task.features(sources.in_memory(records=[record]))
    if not len(features):
        raise BadInput('the example is too short for the task to make anything of it; give a longer one')
    batch = {name: np.asarray(value)[None] for name, value in features[0].items()}
    maps = return_weights(parts.make(parts.values)[0], params, parts.task.objective, batch)
    if not maps:
        raise BadInput(f'{parts.config.model.call} has no attention to look at')
    tokenizer = parts.builder('tokenizer')
    arrays, labels = {}, {}
    for name, (weights, queries, keys) in maps.items():
        arrays[name] = weights[:, 0, :, :LONGEST, :LONGEST].astype(np.float16)
        labels[name] = [[_shown(tokenizer, token) for token in ids[0][:LONGEST].tolist()] for ids in (queries, keys)]
    target = pathlib.Path(workdir) / FILE
    part = target.with_name(f'{target.stem}.part.npz')
    np.savez_compressed(part, labels=np.array(json.dumps(labels)), **{name.replace('/', '|'): array for name, array in arrays.items()})
    part.replace(target)
    return target


def return_weights(
    model: Any, params: Any, objective: Any, batch: Mapping[str, Any]
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """{path: (weights [L, B, H, T, S], token ids of the queries [B, T], and of the keys [B, S])} of every attention in an objective's calls."""
    out: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    source: list[np.ndarray] = []

    def apply(*args: Any, method: str | None = None, stream: str = '', **kwargs: Any) -> tuple[Any, Sums]:
        output, found = model.apply({'params': params}, *args, method=method, mutable=['intermediates', 'losses'], **kwargs)
        tokens = np.asarray(args[0]) if np.ndim(args[0]) == 2 else None
        if tokens is not None:
            real = kwargs.get('segments')
            real = batch.get('weights') if real is None else real
            if np.shape(real) == tokens.shape:
                tokens = tokens[:, : int(np.flatnonzero(np.asarray(real).any(0)).max(initial=-1)) + 1]
        if method == 'encode' and tokens is not None:
            source.append(tokens)
        for path, leaf in jax.tree_util.tree_leaves_with_path(found.get('intermediates', {})):
            name = trees.path_name(path)
            if tokens is not None and '/weights/' in f'{name}/':
                weights = np.asarray(leaf if leaf.ndim == 5 else leaf[None])
                keys = source[-1] if source and 'encoder' not in name and ('cross' in name or name.count('attention') == 0) else tokens
                out[name.rpartition('/weights')[0]] = (weights[..., : tokens.shape[1], : keys.shape[1]], tokens, keys)
        return output, sown(found)

    objective(apply, batch)
    return out


def _shown(tokenizer: Any, token: int) -> str:
    text = tokenizer.decode([token]) or str(tokenizer.inner.id_to_token(token))
    return text.replace('\n', '\u21b5').replace(' ', '\u00b7') or '\u00b7'
