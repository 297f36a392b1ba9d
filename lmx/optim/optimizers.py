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
from lmx.optim.rules import absent, matching
from lmx.optim.schedules import Schedule
from lmx.types import BadInput


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
      frozen: regular expression; these parameters never change and hold no state but their copy in the average, which stays whole so
        that a run can start from it.
      scale: ((regex, multiplier), ...) of the learning rate; the first match wins, others have 1.
      ema_decay: keeps an average of the parameters, see `lmx.optim.ema`.

    Every number may be traced; 0 or None, given statically, leaves no trace.

    Raises:
      BadInput (at init): a pattern that is no regular expression, or matches no parameter. `decay` is not looked at without weight decay.
    """
    parts = [rule]
    if not absent(clip_norm):
        parts.insert(0, optax.clip_by_global_norm(clip_norm))
    if not absent(weight_decay):
        parts.append(optax.add_decayed_weights(weight_decay, mask=lambda params: matching(params, decay)))
    if scale:
        parts.append(_scaled(tuple(scale)))
    parts.append(scale_by_rate(schedule))
    whole = optax.chain(*parts)
    if frozen:
        whole = optax.partition({True: optax.set_to_zero(), False: whole}, lambda params: trees.selected(params, frozen))
    if not absent(ema_decay):
        whole = optax.chain(whole, ema_of_params(ema_decay))
    decays = [] if absent(weight_decay) else [decay]
    return _checked(whole, [*decays, *([frozen] if frozen else []), *(pattern for pattern, _ in scale)])


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


def _checked(tx: optax.GradientTransformation, patterns: Sequence[str]) -> optax.GradientTransformation:
    """Tries every pattern on the whole tree; the transformations inside see a part of it when others are frozen."""

    def init(params: Any) -> Any:
        for pattern in patterns:
            try:
                trees.selected(params, pattern)
            except re.error as error:
                raise BadInput(f'pattern {pattern!r} is no regular expression ({error}); mend it, or escape it with a backslash') from None
        return tx.init(params)

    return optax.GradientTransformation(init, tx.update)


def _scaled(rules: Sequence[tuple[str, Any]]) -> optax.GradientTransformation:
    def multiplier(name: str) -> Any:
        return next((value for pattern, value in rules if re.search(pattern, name)), 1.0)

    return optax.stateless(lambda updates, params: trees.map_named(lambda name, u: multiplier(name) * u, updates))
