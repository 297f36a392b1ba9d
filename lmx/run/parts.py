"""The built parts of one config: what every command needs before it does its own thing."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lmx import spec
from lmx.data import pipeline
from lmx.train import shard
from lmx.train.state import init_state
from lmx.train.step import eval_step, train_step
from lmx.types import BadInput, Sums, Task

REBUILT = ('model', 'task', 'optim')
"""The top-level keys that are built inside jit, from traced values; everything else is built once and shared."""


class Parts:
    """Lazily built parts of a config; `allow` limits which modules a config of somebody else may call."""

    def __init__(self, config: Mapping[str, Any], allow: Sequence[str] | None = None):
        set_up_jax(config)
        self.config = config
        self.allow = allow
        self.builder = spec.Builder(config, allow=allow)

    @functools.cached_property
    def task(self) -> Task:
        return self.builder('task')

    @functools.cached_property
    def mesh(self) -> Any:
        mesh = shard.make_mesh(dict(self.config.mesh))
        shard.check_batch(self.config.batch_size, self.config.accumulate, mesh)
        return mesh

    def records(self, split: str) -> Any:
        """The MapDataset of records under data.SPLIT."""
        return self.builder(f'data.{split}')

    @functools.cache  # noqa: B019 - one Parts lives as long as its command
    def features(self, split: str) -> Any:
        return self.task.features(self.records(split))

    def train_batches(self) -> pipeline.Batches:
        rows = shard.rows(self.mesh, self.config.batch_size)
        return pipeline.train_batches(self.features('train'), batch_size=self.config.batch_size, seed=self.config.seed, rows=rows)

    def eval_batches(self, split: str) -> Sequence[Any]:
        rows = shard.rows(self.mesh, self.config.batch_size)
        return pipeline.eval_batches(self.features(split), batch_size=self.config.batch_size, rows=rows)

    # -- functions to compile

    @functools.cached_property
    def values(self) -> dict[str, float]:
        """The numbers that a run traces: the optimizer's floats, so that another learning rate needs no other compilation."""
        return {path: v for path, v in spec.leaves(self.config) if path.startswith('optim.') and isinstance(v, float) and v != 0.0}

    def make(self, values: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """values -> (model, objective, optimizer), as `lmx.train.state.Make` wants it."""
        task = self.task  # built outside first: its tokenizer and data come from files, once
        shared = {path: made for path, made in self.builder.built.items() if path.split('.')[0] not in REBUILT}
        builder = spec.Builder(self.config, {**shared, **values}, self.allow)
        objective = builder('task').objective if any(path.startswith('task.') for path in values) else task.objective
        return builder('model'), objective, builder('optim')

    @functools.cached_property
    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a global training batch."""
        example = self.features('train')[0]
        size = self.config.batch_size
        arrays = {name: np.asarray(value) for name, value in example.items()}
        return {name: jax.ShapeDtypeStruct((size, *array.shape), array.dtype) for name, array in arrays.items()}

    def abstract_state(self) -> Any:
        """The TrainState as shapes with their shardings; nothing is computed."""
        shapes = self.batch_shapes  # built here and not under the trace, where a task's own arrays would become tracers
        state = jax.eval_shape(lambda: init_state(self.make, self.values, shapes, self.config.seed))
        shardings = shard.state_shardings(state, self.config.rules, self.mesh)
        return jax.tree.map(lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout), state, shardings)

    def check(self) -> None:
        """Traces the step on the real batch shapes before any device is used; raises BadInput for a combination that cannot work."""
        state = self.abstract_state()
        self._check_vocabulary()
        _, sums = jax.eval_shape(
            functools.partial(train_step, make=self.make, accumulate=self.config.accumulate), state, self.batch_shapes, self.values
        )
        if not any(name.startswith('loss/') for name in sums):
            raise BadInput(f'the task returns no loss/* to minimise, only {", ".join(sums)}')
        if self.config.accumulate > 1 and not self.task.additive:
            raise BadInput(f'accumulate {self.config.accumulate}: this task couples the examples of a batch; use accumulate=1')

    def _check_vocabulary(self) -> None:
        """Ids that the model has no embedding for would be NaN in the middle of training."""
        has = getattr(self.make(self.values)[0], 'vocab_size', None)
        if has is None or 'tokenizer' not in self.config:
            return
        needs = self.builder('tokenizer').vocab_size
        if has < needs:
            raise BadInput(f'model.vocab_size {has} is smaller than the {needs} ids of the tokenizer; use ref("tokenizer.vocab_size")')

    def jitted_init(self) -> Any:
        """() -> TrainState, every leaf born where it belongs."""
        layouts = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state())
        return jax.jit(lambda values: init_state(self.make, values, self.batch_shapes, self.config.seed), out_shardings=layouts)

    def jitted_train_step(self) -> Any:
        """(state, batch, values) -> (state, sums); the state's buffers are reused."""
        layouts = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state())
        step = functools.partial(train_step, make=self.make, accumulate=self.config.accumulate)
        return jax.jit(step, donate_argnums=0, out_shardings=(layouts, shard.replicated(self.mesh)))

    def jitted_eval_step(self) -> Any:
        """(params, batch) -> sums."""

        def step(params: Any, batch: Any, values: Mapping[str, Any]) -> Sums:
            return eval_step(params, batch, values, make=self.make)

        compiled = jax.jit(step, out_shardings=shard.replicated(self.mesh))
        return lambda params, batch: compiled(params, batch, self.values)


def set_up_jax(config: Mapping[str, Any]) -> None:
    """Process-wide settings, before the first device is touched: the compilation cache and the number of simulated CPU devices."""
    from lmx.text.tokenizers import cache_dir

    folder = pathlib.Path(os.environ.get('JAX_COMPILATION_CACHE_DIR', cache_dir() / 'xla'))
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
    wanted = config.get('cpu_devices', 1) if hasattr(config, 'get') else 1
    if wanted > 1 and 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
        with contextlib.suppress(RuntimeError):  # a notebook has used JAX already; the mesh takes the devices there are
            jax.config.update('jax_num_cpu_devices', wanted)
