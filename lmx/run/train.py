"""`lmx train`: one config, one run, from the first step or from where it stopped."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax

from lmx import spec, trees
from lmx.data import pipeline
from lmx.optim import eval_params
from lmx.run.parts import Parts
from lmx.train import hosts, loop, lora, shard
from lmx.train.checkpoint import Checkpoints
from lmx.train.evaluate import evaluate
from lmx.train.log import Log
from lmx.train.watchdog import Watchdog
from lmx.train.workdir import Workdir, read_lines
from lmx.types import BadInput, Preempted


def train(
    config: Any, workdir: str | os.PathLike[str] | None = None, *, profile: tuple[int, int] | None = None
) -> dict[str, dict[str, float]]:
    """Trains; with the workdir of an unfinished run it goes on where that run was.

    Args:
      config: of `lmx.load` or a config file's get_config.
      workdir: the run's folder; None makes `runs/<time>`.
      profile: (from, to): writes a trace of these steps to `WORKDIR/profile`.

    Returns:
      {split: the values of its last evaluation}. The files it leaves are described in the README.

    Raises:
      BadInput: anything the user can mend, before anything is overwritten.
      Preempted: SIGTERM or Ctrl-C came, and a checkpoint has been written.
    """
    config = spec.finish(config)
    _check_numbers(config)
    parts = Parts(config)
    _ = parts.mesh  # refuses a batch size that does not divide before anything is written
    path = pathlib.Path(workdir or hosts.broadcast(time.strftime('runs/%Y%m%d-%H%M%S'))).absolute()
    folder = hosts.first(lambda: Workdir(path, config))  # one process holds the lock and writes; all join the checkpoints
    try:
        return _Run(parts, path, folder, profile).run()
    finally:
        if folder is not None:
            folder.close()


class _Run:
    """One start of one run."""

    def __init__(self, parts: Parts, path: pathlib.Path, folder: Workdir | None, profile: tuple[int, int] | None):
        self.parts, self.path, self.folder, self.config = parts, path, folder, parts.config
        self.profile = (*profile, str(path / 'profile')) if profile else None
        self.evaluations: dict[str, dict[str, float]] = {}
        self.evaluated_at = -1
        self.signal: str | None = None
        self.main = jax.process_index() == 0
        self.asked = (-1, False)

    def run(self) -> dict[str, dict[str, float]]:
        parts, config = self.parts, self.config
        hosts.first(parts.train_batches)  # data sets, tokenizers and caches are made once, and found by the others
        batches = parts.train_batches()
        self.fingerprint = batches.fingerprint
        self.rows = batches.rows
        parts.check()
        trackers = _trackers(config, self.path)
        if parts.adapter is not None:
            say(f'adapter: {parts.base}')  # read before anything is written, for it may be gone
        warnings = self.folder.record(config) if self.folder is not None else []
        if parts.adapter is not None:
            lora.recognise(self.path, parts.base.params)
        self._save_tokenizer()
        for text in warnings:
            say(f'resuming under other conditions ({text}): the result will equal an undisturbed run to rounding, not to the bit')
        keep = config.keep
        self.checkpoints = Checkpoints(self.path / 'checkpoints', keep_last=keep.last, best=keep.best, mode=keep.mode)
        state, start, lengths = self._first_state()
        self.log = Log(self.path, lengths, start, trackers) if self.main else None
        self.eval_step = parts.jitted_eval_step()
        self.kept, self.logged, self.begun = _kept(self.path, start)
        self.watchdog = Watchdog(self.path / 'logs', config.watchdog, jax.process_index(), jax.process_count())
        self.watchdog.beat(start)
        step = parts.jitted_train_step()
        self._announce(state, start)
        try:
            with Signals(self), self.watchdog, pipeline.prefetch(lambda index: self._put(batches, index), start, config.steps) as feed:
                state, reason = loop.fit(
                    state,
                    lambda state, batch: self._step(step, state, batch),
                    feed,
                    loop.Hooks(self._log, self._evaluate, self._save, self._stop, self._identify),
                    start=start,
                    steps=config.steps,
                    every=config.every,
                    nonfinite=config.nonfinite,
                    profile=self.profile,
                )
            self.checkpoints.close()
        finally:
            with contextlib.suppress(BadInput):  # whatever ended the run is the news, not that a save under way failed too
                self.checkpoints.close()
            if self.log is not None:
                self.log.close()
        if reason == 'preempted':
            raise Preempted(f'{self.signal or "SIGTERM"}: checkpoint written; run the same command again to go on')
        if reason:
            say(f'stopped early: {reason}')
        return self.evaluations or _last_evaluations(self.path)

    def _put(self, batches: pipeline.Batches, index: int) -> tuple[Any, Any]:
        batch = batches(index)
        return batch, shard.put_batch(batch, self.parts.mesh)

    def _first_state(self) -> tuple[Any, int, Mapping[str, int] | None]:
        """(state, updates done, lengths of the log files): last good checkpoint, else config.init, else fresh."""
        found = self.checkpoints.newest_good(self.parts.abstract_state()) if self.checkpoints.steps() else None
        if found is not None:
            step, state, meta = found
            if meta['data'] != self.fingerprint:
                raise BadInput(f'the training data of {self.path} has changed since step {step}; restore it, or give a new --workdir')
            say(f'resuming at step {step} of {self.config.steps}')
            return state, step, meta['lengths']
        state = self.parts.jitted_init()(self.parts.values)
        if self.config.init is not None and self.parts.adapter is None:
            loaded = self.parts.begin(state.params)
            say(str(loaded))
            optimizer = self.parts.make(self.parts.values)[2]
            layouts = jax.tree.map(lambda leaf: leaf.sharding, self.parts.abstract_state().opt_state)
            state = state.replace(params=loaded.params, opt_state=jax.jit(optimizer.init, out_shardings=layouts)(loaded.params))
        return state, 0, None

    # -- what the loop calls

    def _step(self, step: Any, state: Any, batch: Any) -> Any:
        self.watchdog.beat(self.watchdog.step + 1)
        return step(state, batch, self.parts.values)

    def _log(self, line: dict[str, Any]) -> None:
        spread = hosts.spread(line['step_seconds'])
        if self.log is not None:
            self.kept += line['step_seconds'] * (line['step'] - self.logged)
            self.logged = line['step']
            self.log.write('metrics.jsonl', {**line, **spread, 'goodput': min(self.kept / max(time.time() - self.begun, 1e-9), 1.0)})

    def _identify(self, batch: Any) -> str:
        return hosts.add_hashes(pipeline.batch_hash(batch, self.rows))

    def _evaluate(self, step: int, state: Any) -> None:
        params = self.parts.merged(eval_params(state.opt_state, state.params))
        self.evaluated_at = step
        for split in self.config.evaluate:
            some = itertools.islice(self.parts.eval_batches(split), self.config.eval_batches)
            batches = (self._evaluated(batch) for batch in some)
            values = evaluate(self.eval_step, params, batches, self.parts.eval_carry(split))
            self.evaluations[split] = values
            if self.log is not None:
                self.log.write('eval.jsonl', {'step': step, 'split': split, **values})

    def _evaluated(self, batch: Any) -> Any:
        self.watchdog.beat()
        return shard.put_batch(batch, self.parts.mesh)

    def _save(self, step: int, state: Any) -> None:
        # Values of an earlier step say nothing about this checkpoint.
        now = self.evaluations if self.evaluated_at == step else {}
        metrics = {f'{split}/{name}': value for split, values in now.items() for name, value in values.items()}
        best = self.config.keep.best
        if metrics and best is not None and best not in metrics:
            raise BadInput(f'keep.best {best!r} is not evaluated; there are {", ".join(metrics)}')
        self.checkpoints.save(step, state, {'data': self.fingerprint, 'lengths': self.log.sync() if self.log is not None else {}}, metrics)

    def _stop(self, step: int) -> str | None:
        if self._asked(step):
            return 'preempted'
        if not self.config.early_stopping.patience or self.evaluated_at not in (step, -1):
            return None
        return hosts.broadcast(self._early() if self.main else '') or None

    def _asked(self, step: int) -> bool:
        """Whether to stop here; in a job of several processes, the same in all."""
        if jax.process_count() == 1:
            return self.signal is not None
        if self.asked[0] != step:
            self.asked = (step, hosts.asked_to_stop(step))
        return self.asked[1]

    def _early(self) -> str:
        """Why training ends early; '' = it goes on."""
        rule = self.config.early_stopping
        split, name = rule.metric.split('/', 1)
        history = [line[name] for line in read_lines(self.path / 'eval.jsonl') if line['split'] == split and name in line]
        best = max if rule.mode == 'max' else min
        recent, before = history[-rule.patience :], history[: -rule.patience]
        stalled = bool(before) and best(*recent, *before) == best(before)
        return f'{rule.metric} has not improved for {rule.patience} evaluations' if stalled else ''

    # -- around it

    def _save_tokenizer(self) -> None:
        if self.main and self.config.get('tokenizer') is not None and not (self.path / 'tokenizer.json').exists():
            self.parts.builder('tokenizer').save(self.path / 'tokenizer.json')

    def _announce(self, state: Any, start: int) -> None:
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        devices = jax.devices()
        frozen = trees.size(self.parts.frozen)
        trained = f' trained on top of {frozen:,} frozen' if frozen else ''
        many = f' of {jax.process_count()} processes' if jax.process_count() > 1 else ''
        say(f'{count:,} parameters{trained} on {len(devices)} {devices[0].device_kind} device(s){many}, mesh {dict(self.parts.mesh.shape)}')
        say(f'{len(self.parts.features("train")):,} training examples, {self.config.batch_size} a step, steps {start}..{self.config.steps}')


class Signals:
    """SIGTERM and Ctrl-C ask for a checkpoint and an orderly end: `run.signal` is then their name. A second Ctrl-C ends at once."""

    def __init__(self, run: Any):
        self.run, self.before = run, {}

    def __enter__(self) -> None:
        try:
            # In a job of several processes JAX itself listens for SIGTERM, for all of them.
            for number in (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else (signal.SIGINT,):
                self.before[number] = signal.signal(number, self._ask)
        except ValueError:  # not the main thread of a notebook server: signals stay as they are
            pass

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: Any) -> None:
        if self.run.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.run.signal = signal.Signals(number).name
        if jax.process_count() > 1:  # JAX tells the others
            os.kill(os.getpid(), signal.SIGTERM)


def say(text: str) -> None:
    """A line for the person who watches; results go to stdout, everything else here."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def _kept(workdir: pathlib.Path, start: int) -> tuple[float, int, float]:
    """(seconds of steps so far, the last of them, when the run first began in seconds since 1970): what goodput is made of."""
    kept, last = 0.0, 0
    for line in read_lines(workdir / 'metrics.jsonl'):
        if line['step'] <= start:
            kept, last = kept + (line.get('step_seconds') or 0.0) * (line['step'] - last), line['step']
    now = json.loads((workdir / 'provenance.json').read_text()) if (workdir / 'provenance.json').exists() else {}
    first = (now.get('earlier_starts') or [now])[0].get('time')
    return kept, last, datetime.datetime.strptime(first, '%Y-%m-%dT%H:%M:%S%z').timestamp() if first else time.time()


def _last_evaluations(workdir: pathlib.Path) -> dict[str, dict[str, float]]:
    return {line.pop('split'): {k: v for k, v in line.items() if k != 'step'} for line in read_lines(workdir / 'eval.jsonl')}


def _check_numbers(config: Any) -> None:
    for name, least in (('steps', 0), ('batch_size', 1), ('accumulate', 1)):
        if not isinstance(config[name], int) or config[name] < least:
            raise BadInput(f'{name} {config[name]!r} must be a whole number of at least {least}')
    if config.parallel not in ('mesh', 'pmap'):
        raise BadInput(f'parallel {config.parallel!r} must be mesh or pmap')
    if config.nonfinite not in ('stop', 'skip'):
        raise BadInput(f'nonfinite {config.nonfinite!r} must be stop or skip')


def _trackers(config: Any, workdir: pathlib.Path) -> tuple[Any, ...]:
    if not config.wandb or jax.process_index() != 0:
        return ()
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise BadInput("config.wandb needs `pip install 'lmx[wandb]'`") from None
    run = wandb.init(project=config.wandb, dir=str(workdir), id=workdir.name, resume='allow', config=spec.to_plain(config))
    return (lambda line: run.log({f'{line["split"]}/{k}': v for k, v in line.items() if isinstance(v, (int, float))}, step=line['step']),)
