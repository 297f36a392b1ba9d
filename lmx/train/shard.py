"""Meshes and layouts: which device holds what. Models carry no sharding; the config's mesh and rules say it all."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lmx import trees
from lmx.nn.partition import DATA_AXES
from lmx.train import layouts as ready
from lmx.types import BadInput

AXES = ('trial', 'stage', 'data', 'fsdp', 'expert', 'context', 'tensor')
"""Outermost first: what sends least may cross hosts, and what sends most stays between neighbours."""


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of named axes over all devices; one size may be -1, what is left. Axes of size 1 are left out.

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
        raise BadInput(f'mesh {dict(sizes)} does not multiply to {len(devices)} devices; {_nearest(sizes, len(devices))}')
    shape = {name: len(devices) // fixed if sizes[name] == -1 else sizes[name] for name in AXES if name in sizes}
    shape = {name: size for name, size in shape.items() if size > 1} or {'data': 1}
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape), devices=devices)


def _nearest(sizes: Mapping[str, int], count: int) -> str:
    """The change of one axis that makes a mesh fit."""
    named = {name: size for name, size in sizes.items() if size > 0}
    tries = []
    for name, size in named.items():
        rest = math.prod(other for axis, other in named.items() if axis != name)
        if count % rest == 0:
            tries.append((abs(math.log(count // rest / size)), f'take {name}={count // rest}'))
    return min(tries)[1] if tries else 'give one axis -1, as in data=-1, and the others sizes whose product divides the devices'


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis of every batch array, over the data axes."""
    axes = tuple(axis for axis in DATA_AXES if axis in mesh.shape)
    return NamedSharding(mesh, PartitionSpec(axes or None))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch_size: int, accumulate: int, mesh: Mesh, pipelined: int = 1) -> None:
    """Refuses a batch size that does not divide over data shards, microbatches and each one's `pipelined` ones; names the nearest that do."""
    shards = math.prod(mesh.shape[axis] for axis in DATA_AXES if axis in mesh.shape)
    unit = accumulate * shards * pipelined
    if batch_size % unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        what = f'{shards} devices' + (f' x {accumulate} microbatches' if accumulate > 1 else '')
        what += f' x {pipelined} microbatches of the pipeline' if pipelined > 1 else ''
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
      rules: ((regex over parameter paths, axes), ...); the first match wins; axes count from the right of the shape, so that
        stacked layers need no rule of their own, and those before '...' from the left; () replicates.

    Raises:
      BadInput: no rule matches a parameter, a rule of one's own matches none, an axis is unknown, or does not divide the dimension. One
        that the mesh lacks splits nothing.
    """
    for regex in {regex for regex, _ in rules} - {regex for regex, _ in ready.standard()}:
        if not any(re.search(regex, name) for name, _ in _named(state.params)):
            some = ', '.join(name for name, _ in _named(state.params)[:4])
            raise BadInput(f'sharding rule {regex!r} in config.rules matches no parameter; there are {some}, ...')
    layouts = dict(_named(param_shardings(state.params, rules, mesh)))
    used = {part for layout in layouts.values() for parts in layout.spec for part in ([parts] if isinstance(parts, str) else parts or ())}
    for axis, size in mesh.shape.items():
        if size > 1 and axis not in used | {*DATA_AXES, 'context'}:
            raise BadInput(f'mesh axis {axis!r} of size {size} splits no parameter; take config.mesh.{axis}=1, or name it in config.rules')
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
    cut = axes.index('...') if '...' in axes else 0
    left, right = tuple(axes[:cut]), tuple(axes[cut + 1 :] if '...' in axes else axes)
    if len(left + right) > len(shape):
        raise BadInput(f'sharding rule {tuple(axes)} has more axes than parameter {name!r} of shape {shape}')
    between = (None,) * (len(shape) - len(left + right))
    full = tuple(_present(axis, mesh) for axis in left + between + right)
    for size, parts in zip(shape, full):
        count = math.prod(mesh.shape[part] for part in parts or ())
        if size % count:
            raise BadInput(
                f'parameter {name!r} of shape {shape}: {size} is not divisible by the {count} devices of mesh axis {" x ".join(parts)}; '
                f'give {-(-size // count) * count}, another mesh, or a rule for it before the others in config.rules'
            )
    return NamedSharding(mesh, PartitionSpec(*full))


def _present(axis: str | Sequence[str] | None, mesh: Mesh) -> tuple[str, ...] | None:
    """Of the axes that a rule names, those that the mesh has."""
    names = (axis,) if isinstance(axis, str) else tuple(axis or ())
    for name in names:
        if name not in AXES:
            raise BadInput(f'mesh axis {name!r} in config.rules is unknown; there are {", ".join(AXES)}')
    return tuple(name for name in names if name in mesh.shape) or None
