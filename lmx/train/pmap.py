"""Data parallelism by `jax.pmap`: the same train step once per device under an axis name, with its sums and gradients added up by `psum`.

`config.parallel = 'pmap'`. It gives what the mesh `data=-1` gives, to rounding. Every device holds the whole state and sees only its own
rows, so parameters cannot be sharded, and losses that couple the rows of a batch would not be those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from lmx.types import BadInput, Task

AXIS = 'devices'


def check(mesh: Mesh, task: Task, carries: bool) -> None:
    """Refuses what only the mesh can do.

    Raises:
      BadInput: a mesh of more than data, several processes, a task that couples rows, recurrent state that goes on from batch to batch.
    """
    instead = "use config.parallel='mesh'"
    others = [f'{name}={size}' for name, size in mesh.shape.items() if name != 'data' and size > 1]
    if others:
        raise BadInput(f'pmap holds every parameter on every device, and the mesh has {", ".join(others)}; {instead}')
    if jax.process_count() > 1:
        raise BadInput(f'pmap serves the devices of one process, and there are {jax.process_count()}; {instead}')
    if not task.additive:
        raise BadInput(f'pmap shows each device its own rows, and this task couples the rows of a batch; {instead}')
    if carries:
        raise BadInput(f'pmap keeps no recurrent state of rows from batch to batch; {instead}, or windows that carry none')


def pmapped(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """(state, batch, values, base) -> (state, sums), all global, from a step with the keyword `axis_name`; the state's buffers are reused."""
    count = mesh.size

    def one(state: Any, batch: Any, values: Any, base: Any) -> Any:
        return step(state, batch, values, base, axis_name=AXIS)

    devices = list(mesh.devices.flat)
    mapped = jax.pmap(one, AXIS, in_axes=(None, 0, None, None), out_axes=None, devices=devices, donate_argnums=0)

    def call(state: Any, batch: Any, values: Any, base: Any) -> Any:
        return mapped(state, jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), batch), values, base)

    return call
