"""One optimizer from its parts: clip, rule, decoupled weight decay, learning rate, frozen parameters, averaging."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmx import trees
from lmx.optim.ema import ema_of_params, find
from lmx.optim.schedules import Schedule


class RateState(NamedTuple):
    """count: updates done; learning_rate: the one that the last update used."""

    count: Any
    learning_rate: Any


def optimizer(
    *,
    rule: optax.GradientTransformation,
    schedule: Schedule | Any,
    weight_decay: Any = 0.0,
    decay: str = r'(kernel|embedding)$',
    clip_norm: Any = None,
    frozen: str | None = None,
    scale: Sequence[tuple[str, Any]] = (),
    ema_decay: Any = None,
) -> optax.GradientTransformation:
    """params <- params - rate x scale x (rule(clipped gradient) + weight_decay x params).

    Args:
      rule: an update rule of `lmx.optim.rules`, or any gradient transformation without a learning rate.
      schedule: updates done -> learning rate, or a number.
      weight_decay: decoupled; for parameters whose path contains the regular expression `decay`. Layers are stacked, so names decide.
      clip_norm: largest global norm of the gradient (of what is not frozen).
      frozen: regular expression; these parameters never change and hold no optimizer state.
      scale: ((regex, multiplier), ...) of the learning rate; the first match wins, others have 1.
      ema_decay: keeps an average of the parameters, see `lmx.optim.ema`.

    Every number may be traced; 0 or None, given statically, leaves no trace.

    Raises:
      BadInput (at init): a pattern that matches no parameter.
    """
    parts = [rule]
    if not _absent(clip_norm):
        parts.insert(0, optax.clip_by_global_norm(clip_norm))
    if not _absent(weight_decay):
        parts.append(optax.add_decayed_weights(weight_decay, mask=lambda params: _decayed(params, decay)))
    if scale:
        parts.append(_scaled(tuple(scale)))
    parts.append(scale_by_rate(schedule))
    whole = optax.chain(*parts)
    if frozen:
        whole = optax.partition({True: optax.set_to_zero(), False: whole}, lambda params: trees.selected(params, frozen))
    return whole if _absent(ema_decay) else optax.chain(whole, ema_of_params(ema_decay))


def scale_by_rate(schedule: Schedule | Any) -> optax.GradientTransformation:
    """Multiplies by minus the learning rate, and keeps it in the state for the log."""
    rate_at = schedule if callable(schedule) else lambda step: schedule

    def init(params: Any) -> RateState:
        return RateState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(updates: Any, state: RateState, params: Any = None) -> tuple[Any, RateState]:
        rate = jnp.asarray(rate_at(state.count), jnp.float32)
        return jax.tree.map(lambda u: (-rate * u).astype(u.dtype), updates), RateState(state.count + 1, rate)

    return optax.GradientTransformation(init, update)


def learning_rate(opt_state: Any) -> Any:
    """The rate that the last update used; NaN for an optimizer that is not ours."""
    found = find(opt_state, RateState)
    return jnp.float32(jnp.nan) if found is None else found.learning_rate


def _decayed(params: Any, pattern: str) -> Any:
    """The decay mask; within a part of the tree (when others are frozen) the pattern may well match nothing."""
    return trees.map_named(lambda name, _: re.search(pattern, name) is not None, params)


def _scaled(rules: Sequence[tuple[str, Any]]) -> optax.GradientTransformation:
    def multiplier(name: str) -> Any:
        return next((value for pattern, value in rules if re.search(pattern, name)), 1.0)

    def init(params: Any) -> optax.EmptyState:
        for pattern, _ in rules:
            trees.selected(params, pattern)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return trees.map_named(lambda name, u: multiplier(name) * u, updates), state

    return optax.GradientTransformation(init, update)


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and value == 0)
