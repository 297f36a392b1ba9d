"""Learning rates over time, in jnp only, so that every number may be traced: a sweep trains many schedules in one program.

Every schedule is a function of the updates done so far: step 0 is the first update. Warm-up is linear and counts from 1, so the first
update is not lost: update number `warmup_steps` is the first at the peak.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

Schedule = Callable[[Any], Any]


def _warmup(step: Any, warmup_steps: Any) -> Any:
    """1/w, 2/w, ..., 1, 1, ...; 1 throughout when there is no warm-up."""
    return jnp.minimum(1.0, (step + 1.0) / jnp.maximum(warmup_steps, 1))


def _progress(step: Any, start: Any, end: Any) -> Any:
    """0 up to `start`, 1 from `end` on, linear between."""
    return jnp.clip((step - start) / jnp.maximum(end - start, 1e-9), 0.0, 1.0)


def constant(*, peak: Any, warmup_steps: Any = 0) -> Schedule:
    """`peak`, after a warm-up."""
    return lambda step: peak * _warmup(step, warmup_steps)


def cosine(*, peak: Any, steps: Any, warmup_steps: Any = 0, end: Any = 0.0) -> Schedule:
    """Half a cosine from `peak` to `end` x peak at `steps` (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts)."""

    def schedule(step: Any) -> Any:
        fall = 0.5 * (1.0 + jnp.cos(jnp.pi * _progress(step, warmup_steps, steps)))
        return peak * _warmup(step, warmup_steps) * (end + (1.0 - end) * fall)

    return schedule


def linear(*, peak: Any, steps: Any, warmup_steps: Any = 0, end: Any = 0.0) -> Schedule:
    """A straight line from `peak` to `end` x peak at `steps`, as BERT was trained."""

    def schedule(step: Any) -> Any:
        return peak * _warmup(step, warmup_steps) * (1.0 + (end - 1.0) * _progress(step, warmup_steps, steps))

    return schedule


def wsd(*, peak: Any, steps: Any, decay_steps: Any, warmup_steps: Any = 0, end: Any = 0.0) -> Schedule:
    """Warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395): `peak` until the last `decay_steps`, then a line to `end` x peak."""

    def schedule(step: Any) -> Any:
        return peak * _warmup(step, warmup_steps) * (1.0 + (end - 1.0) * _progress(step, steps - decay_steps, steps))

    return schedule


def noam(*, dim: Any, warmup_steps: Any, factor: Any = 1.0) -> Schedule:
    """factor x dim^-0.5 x min(t^-0.5, t warmup_steps^-1.5) with t = step + 1 (Vaswani et al. 2017, arXiv:1706.03762, equation 3)."""

    def schedule(step: Any) -> Any:
        t = step + 1.0
        return factor * dim**-0.5 * jnp.minimum(t**-0.5, t * jnp.asarray(warmup_steps, jnp.float32) ** -1.5)

    return schedule


def inverse_sqrt(*, peak: Any, warmup_steps: Any = 1) -> Schedule:
    """`peak` x sqrt(warmup_steps / t) behind the warm-up, t = step + 1 (T5, arXiv:1910.10683, section 3.1.2)."""

    def schedule(step: Any) -> Any:
        w = jnp.maximum(jnp.asarray(warmup_steps, jnp.float32), 1.0)
        return peak * _warmup(step, w) * jnp.sqrt(w / jnp.maximum(step + 1.0, w))

    return schedule
