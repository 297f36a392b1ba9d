"""The one train step, for every family and every task: it differentiates loss sums and never looks inside a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmx import rng
from lmx.optim import learning_rate
from lmx.train.state import Make, TrainState, bind
from lmx.types import Batch, Mean, Sums


def train_step(
    state: TrainState,
    batch: Batch,
    values: Mapping[str, Any],
    *,
    make: Make,
    accumulate: int = 1,
    merge: Callable[[Any], Any] = lambda params: params,
    axis_name: str | None = None,
) -> tuple[TrainState, Sums]:
    """One update on one global batch.

    Args:
      state: what training carries.
      batch: arrays with leading axis B; B is a multiple of `accumulate`.
      values: traced numbers by config path, put in place of the config's own while the model, objective and optimizer are built.
      make: values -> (model, objective, optimizer).
      accumulate: microbatches. The counts of the whole batch divide every microbatch's totals, so that the gradient is the full
        batch's and not a mean of means.
      merge: what is trained -> the model's parameters, where these are not the same (`lmx.train.lora`).
      axis_name: of `jax.pmap`, where `batch` is this device's part of the global one; None = it is the whole.

    Returns:
      The next state, and the sums of the objective beside 'grad_norm', 'learning_rate' and 'skipped'. A step whose loss or gradient is
      not finite leaves parameters and optimizer untouched and counts as skipped.
    """
    model, objective, optimizer = make(values)
    key = rng.key(state.key, 'dropout', state.step)
    if axis_name is not None:
        key = rng.key(key, 'device', jax.lax.axis_index(axis_name))

    def everywhere(tree: Any) -> Any:
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    micro = jax.tree.map(lambda x: _strided(x, accumulate), batch)

    def sums_of(params: Any, part: Batch, index: Any) -> Sums:
        return objective(bind(model, merge(params), rng.key(key, 'microbatch', index)), part)

    if accumulate == 1:
        whole = jax.tree.map(lambda x: x[0], micro)

        def loss(params: Any) -> tuple[Any, tuple[Sums, Any]]:
            apply = bind(model, merge(params), rng.key(key, 'microbatch', 0), state.carry)
            sums = objective(apply, whole)
            counts = {name: everywhere(jax.lax.stop_gradient(mean.count)) for name, mean in sums.items()}
            return total_loss(sums, counts), (sums, apply.carry())

        (_, (sums, carry)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    else:
        carry = state.carry
        counts = everywhere(_counts(sums_of, state.params, micro, accumulate))

        def add(carry: Any, item: Any) -> tuple[Any, None]:
            part, index = item
            loss = lambda params: _with_loss(sums_of(params, part, index), counts)  # noqa: E731
            (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
            return jax.tree.map(jnp.add, carry, (sums, grads)), None

        shapes = jax.eval_shape(lambda: sums_of(state.params, jax.tree.map(lambda x: x[0], micro), 0))
        start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes, state.params))
        (sums, grads), _ = jax.lax.scan(add, start, (micro, jnp.arange(accumulate)))

    sums, grads = everywhere((dict(sums), grads))
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(total_loss(sums))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)  # noqa: E731
    one = jnp.ones((), jnp.float32)
    report = {
        **sums,
        'grad_norm': Mean(norm.astype(jnp.float32), one),
        'learning_rate': Mean(jnp.asarray(learning_rate(opt_state), jnp.float32), one),
        'skipped': Mean(1 - finite.astype(jnp.float32), one),
    }
    new, old = (params, opt_state, carry), (state.params, state.opt_state, state.carry)
    params, opt_state, carry = keep(new, old)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state, carry=carry), report


def eval_step(params: Any, batch: Batch, values: Mapping[str, Any], *, make: Make) -> Sums:
    """The objective's sums without dropout and without gradients."""
    model, objective, _ = make(values)
    return objective(bind(model, params), batch)


def stream_eval_step(params: Any, batch: Batch, carry: Any, values: Mapping[str, Any], *, make: Make) -> tuple[Sums, Any]:
    """`eval_step` of a model whose recurrent state goes on from batch to batch: -> (sums, the state behind this batch)."""
    model, objective, _ = make(values)
    apply = bind(model, params, carry=carry)
    return objective(apply, batch), apply.carry()


def total_loss(sums: Sums, counts: Mapping[str, Any] | None = None) -> Any:
    """The sum of total / count over 'loss/*'; `counts` replaces the sums' own. A count of 0 contributes 0."""
    out = jnp.zeros((), jnp.float32)
    for name, mean in sums.items():
        if name.startswith('loss/'):
            count = jax.lax.stop_gradient(mean.count if counts is None else counts[name])
            out += jnp.where(count > 0, mean.total / jnp.where(count > 0, count, 1), 0)
    return out


def _with_loss(sums: Sums, counts: Mapping[str, Any] | None = None) -> tuple[Any, Sums]:
    return total_loss(sums, counts), sums


def _counts(sums_of: Any, params: Any, micro: Batch, accumulate: int) -> dict[str, Any]:
    """The counts of the whole batch. No count depends on parameters, so the compiler drops the model from this pass."""

    def one(part: Batch, index: Any) -> dict[str, Any]:
        return {name: mean.count for name, mean in sums_of(params, part, index).items() if name.startswith('loss/')}

    shapes = jax.eval_shape(lambda: one(jax.tree.map(lambda x: x[0], micro), 0))
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(lambda carry, item: (jax.tree.map(jnp.add, carry, one(*item)), None), start, (micro, jnp.arange(accumulate)))
    return total


def _strided(x: Any, accumulate: int) -> Any:
    """[B, ...] -> [accumulate, B / accumulate, ...], rows dealt out in turn, so that a sharded batch axis is not gathered."""
    return x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)
