"""The built parts of one config: what every command needs before it does its own thing."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lmx import spec
from lmx.data import pipeline
from lmx.nn import pipeline as staged
from lmx.train import pmap, shard
from lmx.train.init import Loaded, flat, same_tokens
from lmx.train.state import init_carry, init_state
from lmx.train.step import eval_step, stream_eval_step, train_step
from lmx.types import BadInput, Sums, Task

REBUILT = ('model', 'task', 'optim')
"""The top-level keys that are built inside jit, from traced values; everything else is built once and shared."""


class Parts:
    """Lazily built parts of a config.

    Args:
      allow: which modules a config of somebody else may call; None = all.
      given: what is built already, by path.
      devices: that the mesh is made of; None = all.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        allow: Sequence[str] | None = None,
        given: Mapping[str, Any] | None = None,
        devices: Sequence[Any] | None = None,
    ):
        set_up_jax(config)
        self.config, self.devices = config, devices
        self.allow = allow
        self.builder = spec.Builder(config, given, allow)

    @functools.cached_property
    def task(self) -> Task:
        return self.builder('task')

    @functools.cached_property
    def mesh(self) -> Any:
        mesh = shard.make_mesh(dict(self.config.mesh), self.devices)
        stages = mesh.shape.get('stage', 1)
        microbatches = staged.scheduled(stages, **self.config.get('pipeline', {})).microbatches if stages > 1 else 1
        shard.check_batch(self.config.batch_size, self.config.accumulate, mesh, microbatches)
        return mesh

    def records(self, split: str) -> Any:
        """The MapDataset of records under data.SPLIT."""
        return self.builder(f'data.{split}')

    @functools.cache  # noqa: B019 - one Parts lives as long as its command
    def features(self, split: str) -> Any:
        return self.task.features(self.records(split))

    def train_batches(self) -> pipeline.Batches:
        rows = shard.rows(self.mesh, self.config.batch_size)
        return pipeline.train_batches(self.features('train'), batch_size=self.config.batch_size, seed=self.order(), rows=rows)

    def order(self, seed: int | None = None) -> int:
        """The seed of the order of the training data, for a run of `seed` (None = the config's)."""
        own = self.config.get('data_seed')  # which configs of older runs have not
        return own if own is not None else self.config.seed if seed is None else seed

    def eval_batches(self, split: str) -> Sequence[Any]:
        rows = shard.rows(self.mesh, self.config.batch_size)
        return pipeline.eval_batches(self.features(split), batch_size=self.config.batch_size, rows=rows)

    # -- parameters to begin with

    def begin(self, fresh: Any) -> Loaded:
        """What config.init makes of fresh parameters.

        Raises:
          BadInput: whatever it refuses; embeddings of a run whose tokenizer gives their ids to other tokens.
        """
        loaded = self.builder('init')(fresh)
        if self.config.get('tokenizer') is not None and 'workdir' in self.config.init:
            same_tokens(loaded, self.config.init.workdir, self.builder('tokenizer'))
        return loaded

    # -- an adapter and what it adds to

    @functools.cached_property
    def adapter(self) -> Any:
        """What is trained in place of the model's own parameters, see `lmx.train.lora`; None = they are trained themselves."""
        if self.config.get('adapter') is None:
            return None
        if self.config.init is None:
            raise BadInput('config.adapter has nothing to add to; set config.init = spec(lmx.train.init.run, workdir=...)')
        return self.builder('adapter')

    @functools.cached_property
    def base(self) -> Any:
        """The `Loaded` of config.init that an adapter adds to."""
        return self.adapter.freeze(self.begin, self.abstract_params())

    @property
    def frozen(self) -> Any:
        """The parameters that no step changes, by path; None without an adapter."""
        return None if self.adapter is None else self.base.params

    @functools.cached_property
    def merged(self) -> Callable[[Any], Any]:
        """What is trained -> the model's parameters, for evaluation."""
        if self.adapter is None:
            return lambda trained: trained
        layouts = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_params())
        compiled = jax.jit(self._merge, out_shardings=layouts)
        return lambda trained: compiled(self.frozen, trained)

    def _merge(self, base: Any, trained: Any) -> Any:
        return trained if self.adapter is None else self.adapter.merge(base, trained)

    def _adapt(self, base: Any) -> Callable[[Any, Any], Any] | None:
        return None if self.adapter is None else lambda params, key: self.adapter.init(params, base, key)

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
        return self._shapes('train')

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The same with their shardings."""
        place = shard.batch_sharding(self.mesh)
        return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place) for name, leaf in self.batch_shapes.items()}

    def _shapes(self, split: str) -> dict[str, jax.ShapeDtypeStruct]:
        example = self.features(split)[0]
        size = self.config.batch_size
        arrays = {name: np.asarray(value) for name, value in example.items()}
        return {name: jax.ShapeDtypeStruct((size, *array.shape), array.dtype) for name, array in arrays.items()}

    @functools.cache  # noqa: B019
    def abstract_state(self) -> Any:
        """The TrainState as shapes with their shardings; nothing is computed."""
        return self._abstract(self._init, None if self.adapter is None else {})

    @functools.cache  # noqa: B019
    def abstract_params(self) -> Any:
        """The model's own parameters, likewise."""
        return self.abstract_state().params if self.adapter is None else self._abstract(self._own, None).params

    def _abstract(self, init: Callable[[Any, Any], Any], base: Any) -> Any:
        _ = self.batch_shapes  # built here and not under the trace, where a task's own arrays would become tracers
        state = jax.eval_shape(init, self.values, base)
        shardings = shard.state_shardings(state, self.config.rules, self.mesh)
        return jax.tree.map(lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout), state, shardings)

    def _own(self, values: Mapping[str, Any], _: Any) -> Any:
        return init_state(self.make, values, self.batch_shapes, self.config.seed, None, self.carries)

    @functools.cached_property
    def _init(self) -> Callable[[Any, Any], Any]:
        """(values, base) -> TrainState: one function for its shapes and for its program, for JAX traces a function once."""

        def init(values: Mapping[str, Any], base: Any) -> Any:
            return init_state(self.make, values, self.batch_shapes, self.config.seed, self._adapt(base), self.carries)

        return init

    @property
    def carries(self) -> bool:
        """Whether recurrent state goes on from batch to batch."""
        return pipeline.in_streams(self.features('train'))

    def eval_carry(self, split: str) -> Any:
        """The recurrent state before the first batch of a split; () where none is carried."""
        if not pipeline.in_streams(self.features(split)):
            return ()
        model, objective, _ = self.make(self.values)
        return jax.device_put(init_carry(model, objective, self._shapes(split)), shard.batch_sharding(self.mesh))

    def check(self) -> None:
        """Traces the step on the real batch shapes before any device is used; raises BadInput for a combination that cannot work."""
        state = self.abstract_state()
        self._check_vocabulary()
        base = None if self.adapter is None else flat(self.abstract_params())
        if self.config.parallel == 'pmap':
            pmap.check(self.mesh, self.task, self.carries)
        step = jax.jit(self._train_step) if self.config.parallel == 'pmap' else self._step
        traced = self._on_mesh(step.trace, state, self.abstract_batch(), self.values, base)
        sums = traced.out_info[1]
        split = self.mesh.shape.get('context', 1)
        if split > 1 and 'shard_map' not in str(traced.jaxpr):
            raise BadInput(
                f'mesh axis context={split} splits attention, and {self.config.model.call} has none that it can; use mesh.context=1'
            )
        if not any(name.startswith('loss/') for name in sums):
            raise BadInput(f'the task returns no loss/* to minimise, only {", ".join(sums)}')
        if self.carries and not jax.tree.leaves(state.carry):
            raise BadInput(f'the data is read in streams, and {self.config.model.call} carries no state; use windows=packing.concatenated')
        if self.carries and self.config.accumulate > 1:
            raise BadInput(f'accumulate {self.config.accumulate}: state is carried from batch to batch; use accumulate=1')
        if self.mesh.shape.get('stage', 1) > 1 and not self.task.additive:
            raise BadInput('mesh.stage > 1 cuts a batch into microbatches, and this task couples its examples; use mesh.stage=1')
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
        """values -> TrainState, every leaf born where it belongs."""
        layouts = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state())
        compiled = jax.jit(self._init, out_shardings=layouts)
        return lambda values: compiled(values, self.frozen)

    def jitted_train_step(self, lower: bool = False) -> Any:
        """(state, batch, values) -> (state, sums); the state's buffers are reused. `lower`: shapes -> what is to be compiled."""
        if self.config.parallel == 'pmap':
            mapped = pmap.pmapped(self._train_step, self.mesh)
            return lambda state, batch, values: mapped(state, batch, values, self.frozen)
        function = self._step.lower if lower else self._step
        return lambda state, batch, values: self._on_mesh(function, state, batch, values, self.frozen)

    @functools.cached_property
    def _step(self) -> Any:
        """The step under jit; what `check` has traced is what is compiled."""
        layouts = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state())
        return jax.jit(self._train_step, donate_argnums=0, out_shardings=(layouts, shard.replicated(self.mesh)))

    def _on_mesh(self, compiled: Any, *args: Any) -> Any:
        with jax.set_mesh(self.mesh), staged.asking(**self.config.get('pipeline', {})):  # for `lmx.nn.partition` and `lmx.nn.pipeline`
            return compiled(*args)

    def _train_step(self, state: Any, batch: Any, values: Mapping[str, Any], base: Any, axis_name: str | None = None) -> Any:
        # The base is an argument: inside the program it would be a constant, one copy in each executable and in the compilation cache.
        merge = functools.partial(self._merge, base)
        return train_step(state, batch, values, make=self.make, accumulate=self.config.accumulate, merge=merge, axis_name=axis_name)

    def jitted_eval_step(self) -> Any:
        """(params, batch) -> sums; with recurrent state, (params, batch, carry) -> (sums, the next carry)."""

        def step(params: Any, batch: Any, values: Mapping[str, Any]) -> Sums:
            return eval_step(params, batch, values, make=self.make)

        def stream_step(params: Any, batch: Any, carry: Any, values: Mapping[str, Any]) -> tuple[Sums, Any]:
            return stream_eval_step(params, batch, carry, values, make=self.make)

        whole = shard.replicated(self.mesh)
        plain, stream = jax.jit(step, out_shardings=whole), jax.jit(stream_step, out_shardings=(whole, shard.batch_sharding(self.mesh)))
        return lambda params, batch, *carry: self._on_mesh(stream if carry else plain, params, batch, *carry, self.values)


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
