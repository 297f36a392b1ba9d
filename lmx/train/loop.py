"""The loop. Its order is law: evaluate -> checkpoint -> next batch -> step -> log the previous step."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from lmx.train.evaluate import report
from lmx.train.log import Bar
from lmx.types import Batch, Diverged, Sums


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What the loop calls; all it knows of the world.

    Attributes:
      log: (line) -> None, for the steps that are logged.
      evaluate: (step, state) -> None.
      save: (step, state) -> None.
      stop: (step) -> None, or the reason why training ends here ('preempted', 'early stopping').
      identify: batch -> its hash, called for the steps that are logged.
    """

    log: Callable[[dict[str, Any]], None]
    evaluate: Callable[[int, Any], None]
    save: Callable[[int, Any], None]
    stop: Callable[[int], str | None]
    identify: Callable[[Batch], str]


@dataclasses.dataclass
class _Pending:
    """A step whose sums have not been read yet."""

    step: int
    sums: Sums
    batch_hash: str | None


def fit(
    state: Any,
    step_fn: Callable[[Any, Batch], tuple[Any, Sums]],
    batches: Iterator[tuple[Batch, Batch]],
    hooks: Hooks,
    *,
    start: int,
    steps: int,
    every: Mapping[str, int],
    nonfinite: str = 'stop',
    profile: tuple[int, int, str] | None = None,
) -> tuple[Any, str | None]:
    """Runs updates start..steps and returns (state, why it ended early or None).

    Args:
      state: TrainState at `start` updates.
      step_fn: (state, batch on devices) -> (state, sums).
      batches: (batch on the host, batch on devices), from update `start` on.
      every: intervals 'log', 'evaluate', 'checkpoint' in steps; 0 is only at the end.
      nonfinite: 'stop' ends with an error at a loss or gradient that is not finite, 'skip' goes on. Either way that update was not made.
      profile: (from, to, directory): a trace of these steps.

    Raises:
      Diverged: a non-finite step under 'stop'.
    """
    bar, clock, pending, done = Bar(start, steps), _Clock(), None, start

    def flush() -> None:
        nonlocal pending
        if pending is not None:
            _read(pending, hooks, clock, bar, nonfinite)
            pending = None

    try:
        while True:
            reason = hooks.stop(done)
            last = done == steps or reason is not None
            evaluating, saving = (_due(every[what], done, start) for what in ('evaluate', 'checkpoint'))
            if last or evaluating or saving:
                flush()
                clock.pause()
                if evaluating or (done == steps and done > start):
                    hooks.evaluate(done, state)
                    reason = reason or hooks.stop(done)
                if (saving or last or reason) and done > start:
                    hooks.save(done, state)
                clock.resume()
            if done == steps or reason is not None:
                return state, reason if done < steps else None
            _profile(profile, done)
            host, batch = next(batches)
            state, sums = step_fn(state, batch)
            done += 1
            logged = _due(every['log'], done, start) or done == steps
            identity = hooks.identify(host) if logged else None
            flush()
            pending = _Pending(done, sums, identity)
    finally:
        bar.close()


def _due(interval: int, done: int, start: int) -> bool:
    return bool(interval) and done % interval == 0 and done > start


def _read(pending: _Pending, hooks: Hooks, clock: _Clock, bar: Bar, nonfinite: str) -> None:
    """Waits for a step and reports it. The next step is already queued, so the device does not wait for this."""
    skipped = bool(np.asarray(pending.sums['skipped'].total))
    clock.tick(pending.sums)
    logged = pending.batch_hash is not None or skipped
    if logged or bar.due():  # on other steps nothing more is read: on a CPU, reading takes time from computing
        line = report({name: mean for name, mean in jax.device_get(dict(pending.sums)).items() if name != 'skipped'})
        bar.show(loss=f'{line["loss"]:.4f}', tok_s=f'{clock.rate():.3g}')
        if skipped and nonfinite == 'stop':
            raise Diverged(
                f'loss {line["loss"]} or gradient norm {line["grad_norm"]} {Diverged.SIGN} {pending.step}; the update was not made. '
                'Lower the learning rate, or go on with --config.nonfinite=skip'
            )
        if logged:
            rate, seconds = clock.read()
            extra = {'skipped': 1} if skipped else {}
            timing = {'tokens_per_second': rate, 'step_seconds': seconds}
            hooks.log({'step': pending.step, 'split': 'train', **line, **extra, **timing, 'batch_hash': pending.batch_hash})
    bar.step()


class _Clock:
    """Throughput since the last reading, evaluations and saves not counted."""

    def __init__(self) -> None:
        self._counts: list[Any] = []
        self._seconds = 0.0
        self._since = time.perf_counter()

    def tick(self, sums: Sums) -> None:
        now = time.perf_counter()
        self._counts.append([mean.count for name, mean in sums.items() if name.startswith('loss/')])
        self._seconds, self._since = self._seconds + now - self._since, now

    def pause(self) -> None:
        self._since = time.perf_counter()

    resume = pause

    def rate(self) -> float:
        """What the first loss counts (tokens, for a language model), per second."""
        counts = [max(map(float, counts)) for counts in jax.device_get(self._counts)]
        self._counts = [[count] for count in counts]
        return sum(counts) / max(self._seconds, 1e-9)

    def read(self) -> tuple[float, float]:
        out = self.rate(), self._seconds / max(len(self._counts), 1)
        self._counts, self._seconds = [], 0.0
        return out


def _profile(profile: tuple[int, int, str] | None, done: int) -> None:
    if profile is not None and done == profile[0]:
        jax.profiler.start_trace(profile[2])
    elif profile is not None and done == profile[1]:
        jax.profiler.stop_trace()
