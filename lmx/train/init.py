"""Warm starts: parameters of another run, or a part of them, in place of fresh ones; and a report of what came from where."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from lmx import spec, trees
from lmx.text import ids
from lmx.text.vectors import initializer
from lmx.train import weights
from lmx.train.checkpoint import Checkpoints, Damaged, average
from lmx.train.workdir import read_config
from lmx.types import BadInput


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a warm start did, by parameter path."""

    params: Any
    loaded: list[str]
    fresh: list[str]
    unused: list[str]

    def __str__(self) -> str:
        def some(names: list[str]) -> str:
            return f'{len(names)}' + (f' ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})' if names else '')

        return f'warm start: {some(self.loaded)} loaded, {some(self.fresh)} fresh, {some(self.unused)} of the source unused'


def run(
    *, workdir: str, checkpoint: str = 'last', take: str = '.*', rename: Sequence[tuple[str, str]] = (), which: str = 'eval'
) -> Callable[[Any], Loaded]:
    """Parameters of another run.

    Args:
      workdir: that run's folder.
      checkpoint: 'last', 'best', 'average:K' or a step.
      take: only parameters whose path (in the other run) contains this regular expression.
      rename: ((regex, replacement), ...), applied in order to the other run's paths.
      which: 'eval' takes the averaged parameters (EMA) where that run kept them, 'ema' insists on them, 'raw' never takes them.

    Returns:
      fresh parameters -> Loaded. Raises BadInput when nothing fits, or a shape differs (name, expected, found).
    """

    def load(fresh: Any) -> Loaded:
        source = {name: leaf for name, leaf in flat(read_params(workdir, checkpoint, which)).items() if re.search(take, name)}
        for pattern, replacement in rename:
            source = {re.sub(pattern, replacement, name): leaf for name, leaf in source.items()}
        return graft(fresh, source)

    return load


def vectors(*, path: str, tokenizer: Any, table: str = r'(^|/)embed/embedding$') -> Callable[[Any], Loaded]:
    """Word vectors of a file (word2vec's or GloVe's format) in an embedding table of any model; words that the file has not stay fresh.

    Args:
      path, tokenizer: see `lmx.text.vectors.initializer`.
      table: regular expression over parameter paths; one table has to match.

    Raises:
      BadInput: as `initializer`; no table matches, or several.
    """
    start = initializer(path=path, tokenizer=tokenizer)

    def load(fresh: Any) -> Loaded:
        names = trees.names(fresh)
        found = [name for name in names if re.search(table, name)]
        if len(found) != 1:
            raise BadInput(f'table {table!r} matches {", ".join(found) or "no parameter"}; there are {", ".join(names[:4])}, ...')

        def pick(name: str, leaf: Any) -> Any:
            if name != found[0]:
                return leaf
            known = jnp.flatnonzero(jnp.asarray(start.known_V))
            return jax.device_put(leaf.at[known].set(start(jax.random.key(0), leaf.shape, leaf.dtype)[known]), leaf.sharding)

        return Loaded(trees.map_named(pick, fresh), loaded=found, fresh=[name for name in names if name not in found], unused=[])

    return load


def same_tokens(loaded: Loaded, workdir: str | os.PathLike[str], tokenizer: Any) -> None:
    """Embeddings of another run are of the tokens of that run's tokenizer; ours may have more.

    Args:
      loaded: what a warm start did with that run's parameters.

    Raises:
      BadInput: an embedding table was loaded, and an id of it stands for another token here (which one, and how to mend it).
    """
    theirs = pathlib.Path(workdir) / 'tokenizer.json'
    if not theirs.exists() or not any(name.endswith('embed/embedding') for name in loaded.loaded):
        return
    ours = tokenizer.inner.get_vocab()
    for token, index in ids.load(path=str(theirs)).inner.get_vocab().items():
        if ours.get(token) != index:
            here = 'is no token' if token not in ours else f'has id {ours[token]}'
            raise BadInput(
                f'token {token!r} has id {index} in {workdir} and {here} here, so its embedding would stand for another token; '
                f'use that tokenizer: c.tokenizer = spec(text.load, path={str(theirs)!r}), or leave the embeddings out with take'
            )


def graft(fresh: Any, source: Mapping[str, Any]) -> Loaded:
    """Puts the leaves of `source` (by path) into the tree `fresh`, in its dtypes and layout."""
    names = trees.names(fresh)
    loaded = [name for name in names if name in source]
    if not loaded:
        raise BadInput(f'nothing to start from: no parameter is called as in the source ({next(iter(source), "empty")} ...); use rename')
    wrong = [name for name, leaf in flat(fresh).items() if name in source and source[name].shape != leaf.shape]
    if wrong:
        shapes = f'{wrong[0]}: expected {flat(fresh)[wrong[0]].shape}, found {source[wrong[0]].shape}'
        raise BadInput(
            f'{len(wrong)} parameters of the source have another shape ({shapes}); leave them out with take, or change the model'
        )

    def pick(name: str, leaf: Any) -> Any:
        return jax.device_put(jnp.asarray(source[name], leaf.dtype), leaf.sharding) if name in source else leaf

    return Loaded(
        params=trees.map_named(pick, fresh),
        loaded=loaded,
        fresh=[name for name in names if name not in source],
        unused=[name for name in source if name not in set(names)],
    )


def read_params(
    workdir: str,
    checkpoint: str = 'last',
    which: str = 'eval',
    *,
    config: Mapping[str, Any] | None = None,
    allow: Sequence[str] | None = ('lmx',),
) -> Any:
    """The parameters of a run as a nested dict of arrays, without building its model or data.

    A run that trained an adapter gives the sum of the adapter and its base, for which it calls `init` and `adapter` of `config` (None = as
    it was trained), modules outside `allow` excepted.
    """
    config = read_config(workdir) if config is None else config
    imported = pathlib.Path(workdir) / weights.FILE
    if imported.exists():
        weights.only(checkpoint)
        return weights.read(imported)
    checkpoints = Checkpoints(pathlib.Path(workdir) / 'checkpoints', best=config.keep.best, mode=config.keep.mode, read_only=True)
    try:
        found = [_read(checkpoints, step, which) for step in checkpoints.choose(checkpoint)]
    finally:
        checkpoints.close()
    if config.get('adapter') is not None:
        builder = spec.Builder(config, allow=allow)
        adapter = builder('adapter')
        base = adapter.recall(workdir, builder('init'))
        found = [jax.device_get(adapter.merge(base, trained)) for trained in found]
    return average(found)


def _read(checkpoints: Checkpoints, step: int, which: str) -> Any:
    try:
        checkpoints.verify(step)
    except Damaged as error:
        raise BadInput(f'checkpoint {step} of {checkpoints.directory.parent} is damaged ({error}); choose another') from None
    folder = checkpoints.directory / str(step) / 'state'
    with ocp.PyTreeCheckpointer() as reader:
        tree: Any = reader.metadata(folder).item_metadata.tree
        averaged = _find(tree.get('opt_state'), 'ema')
        if which == 'ema' and averaged is None:
            raise BadInput(f'{checkpoints.directory.parent} kept no EMA; use which="eval", or train with optim.ema_decay')
        path = ('opt_state', *averaged) if averaged and which != 'raw' else ('params',)
        wanted = trees.path_name([jax.tree_util.DictKey(part) for part in path]) + '/'

        def pick(name: str, leaf: Any) -> Any:  # a placeholder is not read
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if name.startswith(wanted) else ocp.PLACEHOLDER

        item = trees.map_named(pick, tree)
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        return _at(reader.restore(folder, args=ocp.args.PyTreeRestore(item=item, restore_args=kinds)), path)


def _find(tree: Any, key: str) -> tuple[Any, ...] | None:
    """The path of the first node called `key`."""
    for name, node in tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, (list, tuple)) else ():
        if name == key:
            return (name,)
        below = _find(node, key)
        if below is not None:
            return (name, *below)
    return None


def _at(tree: Any, path: Sequence[Any]) -> Any:
    for part in path:
        tree = tree[part]
    return tree


def flat(tree: Any) -> dict[str, Any]:
    """{path: leaf} of a nested tree."""
    return {trees.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
