"""Stacked layers over the mesh axis `stage`: microbatches pass from stage to stage, each of which holds some of the layers.

With one round this is GPipe (Huang et al. 2019, arXiv:1811.06965). With more, the stages are passed several times, each time through fewer
layers ("circular", GSPMD, arXiv:2105.04663, section 3.3; the interleaved stages of Narayanan et al. 2021, arXiv:2104.04473): the bubble
stays stages - 1 ticks, and a tick is that much shorter.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lmx.types import Array, BadInput

AXIS = 'stage'

_asked: contextvars.ContextVar[tuple[int | None, int]] = contextvars.ContextVar('pipeline', default=(None, 1))


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which microbatch is where at which tick. An item is a microbatch in a round; items follow each other at one tick's distance.

    Attributes:
      stages: S.
      microbatches: M >= S, so that a microbatch has left the last stage when it is to enter the first one again.
      rounds: R, how often each microbatch passes the stages.
    """

    stages: int
    microbatches: int
    rounds: int = 1

    @property
    def ticks(self) -> int:
        """Of all; each stage idles in S - 1 of them."""
        return self.rounds * self.microbatches + self.stages - 1

    def item(self, tick: Any, stage: Any) -> tuple[Any, Any, Any]:
        """(round, microbatch, whether there is one) of a stage at a tick; without one, the nearest. Of integers or of arrays."""
        last = self.rounds * self.microbatches - 1
        number = jnp.clip(tick - stage, 0, last)
        return number // self.microbatches, number % self.microbatches, number == tick - stage

    def group(self, round: Any, stage: Any) -> Any:
        """Which of the R S groups of successive layers a stage computes in a round."""
        return round * self.stages + stage


@contextlib.contextmanager
def asking(microbatches: int | None = None, rounds: int = 1) -> Iterator[None]:
    """For models that are traced within: how batches pass the stages; None = as many microbatches as stages."""
    token = _asked.set((microbatches, rounds))
    try:
        yield
    finally:
        _asked.reset(token)


def scheduled(stages: int, microbatches: int | None = None, rounds: int = 1) -> Schedule:
    """The schedule, defaults filled in.

    Raises:
      BadInput: fewer microbatches than stages, or no round.
    """
    if rounds < 1:
        raise BadInput(f'pipeline.rounds {rounds} is below 1; 1 is GPipe, more is circular')
    if microbatches is not None and microbatches < stages:
        raise BadInput(f'pipeline.microbatches {microbatches} are fewer than the {stages} stages of the mesh; take {stages} or more')
    return Schedule(stages, stages if microbatches is None else microbatches, rounds)


def current() -> Schedule | None:
    """The schedule that the mesh in scope asks for; None without stages."""
    stages = dict(jax.sharding.get_abstract_mesh().shape).get(AXIS, 1)
    return scheduled(stages, *_asked.get()) if stages > 1 else None


Layer = Callable[[Any, Array, Any, Any, Array], tuple[Array, Any]]
"""(the layer's own arrays, x, shared arrays, memory, microbatch) -> (x, what it sows: arrays to be added up over layers and rows)."""


def pipelined(layer: Layer, layers: Any, x: Array, shared: Any, memory: Any, schedule: Schedule) -> tuple[Array, Any]:
    """x through all layers, as a loop over them would do it row by row: -> (x, the sum of what was sown).

    Args:
      layers: each layer's own arrays, [L, ...]; L is a multiple of R S.
      x: [B, ...]; B is a multiple of M.
      shared: arrays for all layers, with a leading axis B where rows have their own.
      memory: arrays [L, B, ...] of each layer and row.

    Raises:
      BadInput: L or B does not divide.
    """
    groups, count, batch = schedule.rounds * schedule.stages, schedule.microbatches, x.shape[0]
    length = jax.tree.leaves(layers)[0].shape[0]
    if length % groups:
        raise BadInput(
            f'{length} layers are not divisible by {schedule.stages} stages x {schedule.rounds} rounds; '
            f'take {-(-length // groups) * groups} layers, or other mesh.stage or pipeline.rounds'
        )
    if batch % count:
        raise BadInput(f'{batch} rows are not divisible by {count} microbatches; take another pipeline.microbatches or batch_size')
    own = jax.tree.map(lambda leaf: leaf.ndim > 0 and leaf.shape[0] == batch, shared)
    shared = jax.tree.map(lambda leaf, own: _strided(leaf, count) if own else leaf, shared, own)
    memory = jax.tree.map(lambda leaf: jax.vmap(lambda rows: _strided(rows, count))(leaf), memory)
    layers, memory = jax.tree.map(lambda leaf: leaf.reshape(schedule.rounds, schedule.stages, -1, *leaf.shape[1:]), (layers, memory))

    def stage(layers: Any, memory: Any, shared: Any, inputs: Array, me: Array) -> tuple[Array, Any]:
        layers, memory = jax.tree.map(lambda leaf: leaf[:, 0], (layers, memory))

        def through(x: Array, tick: Any) -> tuple[Array, Any]:
            """The stage's work in one tick."""
            turn, number, real = schedule.item(tick, me[0])
            mine, seen = jax.tree.map(lambda leaf: leaf[turn] if schedule.rounds > 1 else leaf[0], (layers, memory))
            seen = jax.tree.map(lambda leaf: leaf[:, number], seen)
            told = jax.tree.map(lambda leaf, own: leaf[number] if own else leaf, shared, own)
            steps = lambda x, one: layer(one[0], x, told, one[1], number)  # noqa: E731
            x, sown = jax.lax.scan(steps, x, (mine, seen), unroll=length // groups if jax.default_backend() == 'cpu' else 1)
            return x, jax.tree.map(lambda leaf: jnp.where(real, jnp.sum(leaf, axis=0), 0), sown)

        return _ticks(through, inputs, schedule, me[0])

    apart, everywhere = PartitionSpec(None, AXIS), PartitionSpec()
    specs = (apart, apart, everywhere, everywhere, PartitionSpec(AXIS))
    mapped = jax.shard_map(stage, in_specs=specs, out_specs=PartitionSpec(AXIS), axis_names={AXIS}, check_vma=False)
    outputs, sown = mapped(layers, memory, shared, _strided(x, count), jnp.arange(schedule.stages, dtype=jnp.int32))
    return outputs[0].swapaxes(0, 1).reshape(x.shape), jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), sown)


def _ticks(through: Callable[[Array, Any], tuple[Array, Any]], inputs: Array, schedule: Schedule, me: Array) -> tuple[Array, Any]:
    """One stage's part of all ticks: -> ([1, M, ...] of what has left the last stage, at the first one; sums [1, ...] of what was sown).

    The first stage keeps a place for each microbatch, with what enters it next; at last, the outputs.
    """
    stages, count = schedule.stages, schedule.microbatches

    def arrive(left: Array, places: Array, tick: Any) -> tuple[Array, Array]:
        """What the stage before this one has finished; the first one keeps what comes from the last one."""
        arrived = jax.lax.ppermute(left, AXIS, [(source, (source + 1) % stages) for source in range(stages)])
        place = (tick - stages) % count
        kept = jnp.where(tick >= stages, arrived, places[place])
        return arrived, places.at[place].set(kept)

    def one(carry: Any, tick: Array) -> tuple[Any, None]:
        left, places, total = carry
        arrived, places = arrive(left, places, tick)
        x, sown = through(jnp.where(me == 0, places[schedule.item(tick, me)[1]], arrived), tick)
        return (x, places, jax.tree.map(jnp.add, total, sown)), None

    _, shapes = jax.eval_shape(through, inputs[0], jnp.zeros((), jnp.int32))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (left, places, total), _ = jax.lax.scan(one, (inputs[0], inputs, nothing), jnp.arange(schedule.ticks, dtype=jnp.int32))
    _, places = arrive(left, places, schedule.ticks)
    return jax.tree.map(lambda leaf: leaf[None], (places, total))


def _strided(x: Array, count: int) -> Array:
    """[B, ...] -> [M, B / M, ...], rows dealt out in turn, so that a batch that is split over devices stays where it is."""
    return x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
