"""The exponential moving average of parameters (Polyak and Juditsky 1992), kept in the optimizer's state."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax


class EmaState(NamedTuple):
    """ema: the average, in the parameters' dtypes; it starts at the initial parameters and needs no bias correction."""

    ema: Any


def ema_of_params(decay: Any) -> optax.GradientTransformation:
    """Leaves the updates alone and averages what the parameters become: ema <- decay ema + (1 - decay) params. Goes last in a chain."""

    def update(updates: Any, state: EmaState, params: Any = None) -> tuple[Any, EmaState]:
        new = optax.apply_updates(params, updates)
        return updates, EmaState(jax.tree.map(lambda a, p: (decay * a + (1 - decay) * p).astype(a.dtype), state.ema, new))

    return optax.GradientTransformation(lambda params: EmaState(jax.tree.map(lambda p: p + 0, params)), update)


def eval_params(opt_state: Any, params: Any) -> Any:
    """What to evaluate, predict with and export: the average where the optimizer keeps one, else the parameters themselves."""
    found = find(opt_state, EmaState)
    return params if found is None else found.ema


def find(opt_state: Any, kind: type) -> Any:
    """The first state of a type within a nested optimizer state, or None."""
    states = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind))
    return next((state for state in states if isinstance(state, kind)), None)
