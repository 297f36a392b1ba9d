"""Many trainings in one compiled program: every array of a TrainState has a leading axis of slots, and hyperparameters are arguments.

As HFTA (Wang et al. 2021, arXiv:2102.02344) fuses models in PyTorch, but by `vmap`, with the slots shared out over the devices. A slot
holds one training with its own hyperparameters, seed, step and data; when that ends the next one takes its place and nothing is compiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lmx.types import Batch, Sums

AXIS = 'trial'


class Slots(struct.PyTreeNode):
    """What lies on the devices.

    Attributes:
      state: a TrainState, [S, ...].
      alive: bool [S]; a training whose loss or gradient was not finite is no longer, and stays as it was before that step.
    """

    state: Any
    alive: Any


@dataclasses.dataclass(frozen=True)
class Program:
    """What the trainings of a population share: the functions of one training.

    Attributes:
      init: (values, seed) -> TrainState.
      step: (state, batch, values) -> (state, sums), `lmx.train.step.train_step`.
      evaluate: (state, batch, values) -> sums.
      shared: numbers by config path that all have in common, traced as a run alone traces them.
      freeze: whether a training ends at a loss or gradient that is not finite; else that update alone is left out.
    """

    init: Callable[[Mapping[str, Any], Any], Any]
    step: Callable[[Any, Batch, Mapping[str, Any]], tuple[Any, Sums]]
    evaluate: Callable[[Any, Batch, Mapping[str, Any]], Sums]
    shared: Mapping[str, float]
    freeze: bool = True


class Population:
    """The compiled functions of a population of `size` slots, over all `devices`.

    `values` are arrays [S] by config path; batches have a leading axis [S], those of evaluations have none.
    """

    def __init__(self, program: Program, size: int, devices: Sequence[Any] | None = None):
        devices = list(devices if devices is not None else jax.devices())
        assert size % len(devices) == 0, (size, len(devices))
        self.program, self.size = program, size
        self.mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
        self.layout = NamedSharding(self.mesh, PartitionSpec(AXIS))
        self.step = jax.jit(self._over(self._step, 1, 1, 1), donate_argnums=0)
        self.evaluate = jax.jit(self._over(self._evaluate, 1, 0, 1))
        self._fresh = jax.jit(self._over(self._init, 1, 1))
        self._filled = jax.jit(self._over(self._fill, 1, 1, 1, 1), donate_argnums=0)

    def fill(self, slots: Slots | None, new: np.ndarray, values: Mapping[str, Any], seeds: np.ndarray) -> Slots:
        """The slots with a fresh training in those that are `new` (bool [S]); in all of them where there were none."""
        values, seeds = self.put(values), self.put(seeds.astype(np.int32))
        return self._fresh(values, seeds) if slots is None else self._filled(slots, self.put(new), values, seeds)

    def put(self, tree: Any) -> Any:
        """Arrays [S, ...] where their slots lie."""
        return jax.device_put(tree, self.layout)

    def abstract(self, values: Mapping[str, Any]) -> Slots:
        """The slots as shapes with their layout."""
        seeds = np.zeros(self.size, np.int32)
        shapes = jax.eval_shape(jax.vmap(self._init), dict(values), seeds)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.layout), shapes)

    def bytes_of_slot(self, batch: Batch, values: Mapping[str, Any]) -> int:
        """What one slot takes of a device's memory in a step, by the compiler; `batch` has a leading axis [S]."""
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.layout), (batch, dict(values)))
        memory = self.step.lower(self.abstract(values), *shapes).compile().memory_analysis()
        used = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes - memory.alias_size_in_bytes
        return used * self.mesh.size // self.size

    def _over(self, function: Callable[..., Any], *axes: int) -> Callable[..., Any]:
        """The function of one slot as one of all; `axes`: 1 for an argument with a slot axis, 0 for one that all share.

        Within `shard_map` a device cannot but keep to its own slots.
        """
        mapped = jax.vmap(function, in_axes=tuple(0 if axis else None for axis in axes))
        specs = tuple(PartitionSpec(AXIS) if axis else PartitionSpec() for axis in axes)
        return jax.shard_map(mapped, mesh=self.mesh, in_specs=specs, out_specs=PartitionSpec(AXIS), check_vma=False)

    # -- of one slot

    def _init(self, values: Mapping[str, Any], seed: Any) -> Slots:
        return Slots(self.program.init({**self.program.shared, **values}, seed), jnp.ones((), bool))

    def _fill(self, slots: Slots, new: Any, values: Mapping[str, Any], seed: Any) -> Slots:
        return _where(new, self._init(values, seed), slots)

    def _step(self, slots: Slots, batch: Batch, values: Mapping[str, Any]) -> tuple[Slots, Sums]:
        state, sums = self.program.step(slots.state, batch, {**self.program.shared, **values})
        alive = slots.alive & (sums['skipped'].total == 0) if self.program.freeze else slots.alive
        return Slots(_where(alive, state, slots.state), alive), sums

    def _evaluate(self, slots: Slots, batch: Batch, values: Mapping[str, Any]) -> Sums:
        return self.program.evaluate(slots.state, batch, {**self.program.shared, **values})


def take(slots: Slots, index: int) -> Any:
    """The TrainState of one slot, on one device."""
    device = jax.devices()[0]
    return jax.tree.map(lambda leaf: jax.device_put(leaf[index], device), slots.state)


def _where(condition: Any, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), a, b)
