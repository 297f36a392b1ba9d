"""Meshes and layouts: which device holds what. Models carry no sharding; the config's mesh and rules say it all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lmx import trees
from lmx.types import BadInput

AXES = ('trial', 'data', 'fsdp', 'tensor', 'context', 'expert', 'stage')
DATA_AXES = ('data', 'fsdp')


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of named axes over all devices; one size may be -1, what is left.

    Raises:
      BadInput: an unknown axis, or sizes that do not multiply to the number of devices.
    """
    devices = list(devices if devices is not None else jax.devices())
    for name in sizes:
        if name not in AXES:
            raise BadInput(f'mesh axis {name!r} is unknown; there are {", ".join(AXES)}')
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or (free and len(devices) % fixed) or (not free and fixed != len(devices)):
        raise BadInput(f'mesh {dict(sizes)} does not multiply to {len(devices)} devices; give one axis -1, as in data=-1')
    shape = {name: len(devices) // fixed if size == -1 else size for name, size in sizes.items()}
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis of every batch array, over the data axes."""
    axes = tuple(axis for axis in DATA_AXES if axis in mesh.shape)
    return NamedSharding(mesh, PartitionSpec(axes or None))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Refuses a batch size that does not divide over microbatches and data shards; names the nearest ones that do."""
    shards = math.prod(mesh.shape[axis] for axis in DATA_AXES if axis in mesh.shape)
    unit = accumulate * shards
    if batch_size % unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        what = f'{shards} devices' + (f' x {accumulate} microbatches' if accumulate > 1 else '')
        tries = f'{below} or {above}' if below else f'{above}'
        raise BadInput(f'batch_size {batch_size} is not divisible by {what}; try {tries}')


def rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The global batch rows that this process's devices hold, in the order in which it must supply them."""
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in held]))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as global arrays."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, np.asarray(array)) for name, array in batch.items()}


def param_shardings(params: Any, rules: Sequence[tuple[str, Sequence[Any]]], mesh: Mesh) -> Any:
    """The layout of parameters alone; see `state_shardings`."""
    return trees.map_named(lambda name, leaf: _layout(name, leaf.shape, trees.match(rules, name, 'sharding rule'), mesh), params)


def state_shardings(state: Any, rules: Sequence[tuple[str, Sequence[Any]]], mesh: Mesh) -> Any:
    """The layout of a TrainState (shapes suffice): parameters by the rules, optimizer state like the parameter it belongs to.

    Args:
      rules: ((regex over parameter paths, axes), ...); the first match wins; axes count from the right of the shape, so that stacked
        layers need no rule of their own; () replicates.

    Raises:
      BadInput: no rule matches a parameter, an axis is not in the mesh, or does not divide the dimension.
    """
    layouts = dict(_named(param_shardings(state.params, rules, mesh)))
    shapes = {name: leaf.shape for name, leaf in _named(state.params)}

    def of(name: str, leaf: Any) -> NamedSharding:
        if name.startswith('carry/'):  # a row's state lies where the row lies
            return batch_sharding(mesh)
        inside = name.split('/')
        for start in range(len(inside)):  # the longest suffix of the path that is a parameter's own path
            owner = '/'.join(inside[start:])
            if owner in shapes and shapes[owner] == leaf.shape:
                return layouts[owner]
        return replicated(mesh)

    return trees.map_named(of, state)


def _named(tree: Any) -> list[tuple[str, Any]]:
    return [(trees.path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _layout(name: str, shape: tuple[int, ...], axes: Sequence[Any], mesh: Mesh) -> NamedSharding:
    if len(axes) > len(shape):
        raise BadInput(f'sharding rule {tuple(axes)} has more axes than parameter {name!r} of shape {shape}')
    full = (None,) * (len(shape) - len(axes)) + tuple(axes)
    for size, axis in zip(shape, full):
        for part in (axis,) if isinstance(axis, str) else axis or ():
            if part not in mesh.shape:
                raise BadInput(f'parameter {name!r}: the mesh has no axis {part!r}, only {", ".join(mesh.shape)}')
        parts = math.prod(mesh.shape[part] for part in ((axis,) if isinstance(axis, str) else axis or ()))
        if size % parts:
            raise BadInput(f'parameter {name!r} of shape {shape}: dimension {size} is not divisible by axis {axis!r} of size {parts}')
    return NamedSharding(mesh, PartitionSpec(*full))
