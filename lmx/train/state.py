"""The state that training carries from step to step, and how it is born."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from lmx import rng
from lmx.types import Apply, Batch, Mean, Sums

Make = Callable[[Mapping[str, Any]], tuple[nn.Module, Callable[[Apply, Batch], Sums], Any]]
"""values -> (model, objective, optimizer). `values` are traced numbers by config path; it is called inside jit."""


class TrainState(struct.PyTreeNode):
    """step: int32 updates done; key: the run's root key; carry: recurrent state across windows. EMA lives in opt_state."""

    step: Any
    params: Any
    opt_state: Any
    key: Any
    carry: Any = ()


def bind(model: nn.Module, params: Any, key: Any = None, carry: Any = ()) -> Any:
    """The model with these parameters as an `Apply`. With a key, dropout is on, and every call draws from a stream of its own.

    `carry`, recurrent state that goes on from the batch before, is the collection 'carry' of the first call; `apply.carry` then gives what
    that call left in it.
    """
    calls = 0
    kept = {'carry': carry} if jax.tree.leaves(carry) else {}

    def apply(*args: Any, method: str | None = None, stream: str = '', **kwargs: Any) -> tuple[Any, Sums]:
        nonlocal calls
        rngs = None if key is None else {'dropout': rng.key(key, stream, calls)}
        calls += 1
        # Later calls may stand in a loop or under remat, out of which nothing could be kept.
        given = kept if calls == 1 else {}
        output, collected = model.apply({'params': params, **given}, *args, rngs=rngs, method=method, mutable=['losses', *given], **kwargs)
        if given:
            kept['carry'] = collected['carry']
        return output, sown(collected)

    apply.carry = lambda: kept.get('carry', ())
    return apply


def sown(collected: Mapping[str, Any]) -> Sums:
    """Losses that layers sowed as Mean under self.sow('losses', name, ...), added up over layers by name."""
    out: dict[str, Mean] = {}
    is_mean = lambda node: isinstance(node, Mean)  # noqa: E731
    for path, mean in jax.tree_util.tree_leaves_with_path(collected.get('losses', {}), is_leaf=is_mean):
        name = 'loss/' + next(part.key for part in reversed(path) if hasattr(part, 'key'))
        total, count = jnp.sum(mean.total), jnp.sum(mean.count)
        out[name] = Mean(out[name].total + total, out[name].count + count) if name in out else Mean(total, count)
    return out


def calls_of(model: nn.Module, objective: Callable[[Apply, Batch], Sums], batch: Batch) -> list[tuple[str | None, Any, Any]]:
    """The (method, args, kwargs) of every call that an objective makes, arrays as shapes. Nothing is computed."""
    seen: dict[str | None, tuple[str | None, Any, Any]] = {}

    def abstract(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, 'dtype') else leaf

    def apply(*args: Any, method: str | None = None, stream: str = '', **kwargs: Any) -> tuple[Any, Sums]:
        seen.setdefault(method, (method, jax.tree.map(abstract, args), jax.tree.map(abstract, kwargs)))
        output, variables = model.init_with_output(jax.random.key(0), *args, method=method, **kwargs)
        return output, sown(variables)

    jax.eval_shape(lambda data: objective(apply, data), batch)
    return list(seen.values())


def init_params(model: nn.Module, objective: Callable[[Apply, Batch], Sums], batch: Batch, key: Any) -> Any:
    """Fresh parameters of every part of the model that the objective touches; `batch` may be shapes only."""

    params: dict[str, Any] = {}
    for method, args, kwargs in calls_of(model, objective, batch):
        # The same path gets the same key in every call, so parts that several methods share come out equal.
        made = model.init(key, *_zeros(args), method=method, **_zeros(kwargs))
        params = _merged(params, made.get('params', {}))
    return params


def init_carry(model: nn.Module, objective: Callable[[Apply, Batch], Sums], batch: Batch) -> Any:
    """The recurrent state before the first batch, zeros; () for a model that keeps none. `batch` may be shapes only."""
    method, args, kwargs = calls_of(model, objective, batch)[0]
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *_zeros(args), method=method, **_zeros(kwargs)))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes.get('carry', ()))


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf, tree)


def _merged(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(a)
    for name, node in b.items():
        out[name] = _merged(out[name], node) if isinstance(node, Mapping) and name in out else node
    return out


def init_state(
    make: Make,
    values: Mapping[str, Any],
    batch: Batch,
    seed: Any,
    adapt: Callable[[Any, Any], Any] | None = None,
    carries: bool = False,
) -> TrainState:
    """A fresh state; pure, so it can be jitted with output shardings, vmapped over trials or taken by shape only.

    `adapt`: (the model's parameters, key) -> what is trained in their place, such as `lmx.train.lora` makes it. `carries`: the data
    is read in streams, so recurrent state goes on from batch to batch.
    """
    model, objective, optimizer = make(values)
    key = jax.random.key(seed)
    params = init_params(model, objective, batch, rng.key(key, 'params'))
    if adapt is not None:
        params = adapt(params, rng.key(key, 'adapter'))
    carry = init_carry(model, objective, batch) if carries else ()
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), rng.key(key, 'train'), carry)
