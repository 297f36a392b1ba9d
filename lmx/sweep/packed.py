"""Executor `vmap`: trainings of one shape in one program (`lmx.sweep.population`), slot by slot, each into a run's folder of its own.

The whole population is checkpointed below `WORKDIR/population`; a sweep that was killed goes on to the same bits.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from lmx import spec
from lmx.data import pipeline
from lmx.study import Trial
from lmx.sweep.folder import Folder
from lmx.sweep.population import Population, Program, take
from lmx.sweep.source import Source
from lmx.train import workdir
from lmx.train.checkpoint import Checkpoints
from lmx.train.evaluate import gather, report
from lmx.train.log import Log
from lmx.types import BadInput, Mean, Sums


@dataclasses.dataclass(frozen=True)
class Group:
    """Trainings that differ in traced numbers and seeds alone.

    Attributes:
      name: tells it from other groups of the sweep, also when it goes on.
      config: of any of them.
      own: the config paths in which they differ.
      batches: seed -> its training batches.
      evaluations: split -> its batches.
      config_of: training -> its complete config.
      prepare: (a training's folder) -> None, writes what the folder needs beside config and log (the tokenizer).
    """

    name: str
    config: Any
    program: Program
    own: Sequence[str]
    batches: Callable[[int], pipeline.Batches]
    evaluations: Callable[[str], Sequence[Any]]
    config_of: Callable[[Trial], Any]
    prepare: Callable[[pathlib.Path], None]


@dataclasses.dataclass
class _Slot:
    """A training in its slot: its files are open."""

    trial: Trial
    config: Any
    workdir: workdir.Workdir
    log: Log
    batches: pipeline.Batches
    step: int


class Packed:
    """One population, from where it stands to its end.

    Args:
      size: slots, a multiple of the devices; a population that goes on keeps the number that it has.
      total: updates of all trainings, for the progress bar.
      stop: whether to save and leave, asked at every update.
    """

    def __init__(self, group: Group, folder: Folder, source: Source, size: int, total: int, stop: Callable[[], bool] = lambda: False):
        self.group, self.folder, self.source, self.stop = group, folder, source, stop
        self.place = folder.path / 'population' / group.name
        size = _kept_size(self.place, size)
        self.population = Population(group.program, size)
        self.held: list[_Slot | None] = [None] * size
        self.values = {path: np.zeros(size, _kind(group.config, path)) for path in group.own}
        self.seeds = np.zeros(size, np.int32)
        self.slots: Any = None
        self.tick = self.saved = 0
        self.pending: tuple[Sums, list[tuple[_Slot, int, str]]] = ({}, [])
        self.bar = tqdm(total=total, unit='update', dynamic_ncols=True, mininterval=0.3 if sys.stderr.isatty() else 10)

    def run(self) -> bool:
        """Whether all came to their end; False = `stop` said so, and everything is saved."""
        self.checkpoints = Checkpoints(self.place / 'checkpoints')
        try:
            self._restore()
            while self._refill_and_save():
                if self._advance():
                    self._look()
                if self.stop():
                    self._save()
                    return False
        finally:
            self.bar.close()
            for slot in filter(None, self.held):
                slot.log.close()
                slot.workdir.close()
            self.checkpoints.close()
        shutil.rmtree(self.place)  # every training has its own checkpoint by now
        return True

    # -- slots

    def _refill_and_save(self) -> bool:
        """Puts waiting trainings into free slots; whether there is anything to train."""
        new = np.zeros(len(self.held), bool)
        for index in (index for index, slot in enumerate(self.held) if slot is None):
            there = {slot.trial.name for slot in self.held if slot is not None}
            trial = next((trial for trial in iter(self.source.next, None) if trial.name not in there), None)
            if trial is None:
                break
            self._open(index, trial, 0, None)
            new[index] = True
        if new.any():
            self.slots = self.population.fill(self.slots, new, self.values, self.seeds)
        if any(self.held) and (new.any() or _every(self.tick, self.group.config.every.checkpoint)):
            self._save()
        return any(self.held)

    def _open(self, index: int, trial: Trial, step: int, lengths: Mapping[str, int] | None) -> None:
        path, config = self.folder.folder(trial), self.group.config_of(trial)
        if lengths is None and (path / 'checkpoints').is_dir():
            _discard(path)
        folder = workdir.Workdir(path, config)
        folder.record(config)
        self.group.prepare(path)
        self.folder.mark(trial, 'running', executor='vmap')
        self.held[index] = _Slot(trial, config, folder, Log(path, lengths, step), self.group.batches(trial.seed), step)
        for where, array in self.values.items():
            array[index] = spec.get(config, where)
        self.seeds[index] = trial.seed

    def _end(self, index: int, state: str, value: float | None, **facts: Any) -> None:
        """Closes a training: its own checkpoint first, then the word that it has ended."""
        slot = self.held[index]
        assert slot is not None
        trained = take(self.slots, index)
        step, keep = int(trained.step), slot.config.keep
        checkpoints = Checkpoints(self.folder.folder(slot.trial) / 'checkpoints', keep_last=keep.last, best=keep.best, mode=keep.mode)
        lines = [] if keep.best is None else workdir.read_lines(slot.workdir.path / 'eval.jsonl')
        scores = {f'{line["split"]}/{name}': v for line in lines if line['step'] == step for name, v in line.items()}
        checkpoints.save(step, trained, {'data': slot.batches.fingerprint, 'lengths': slot.log.sync()}, scores)
        checkpoints.close()
        slot.log.close()
        slot.workdir.close()
        self.held[index] = None
        self.folder.mark(slot.trial, state, executor='vmap', **facts)
        self.source.end(slot.trial, state, value)
        self.bar.update(slot.config.steps - slot.step)

    # -- time

    def _advance(self) -> bool:
        """Updates up to the next evaluation, checkpoint or end of any training; whether it came there before it was stopped."""
        values, every = self.population.put(self.values), self.group.config.every
        held = [slot for slot in self.held if slot is not None]
        ahead = min(_ahead(slot.step, every.evaluate, slot.config.steps) for slot in held)
        ahead = min(ahead, _ahead(self.tick, every.checkpoint, sys.maxsize))
        self.clock, self.ticks = time.perf_counter(), 0
        for _ in range(ahead):
            if self.stop():
                self._flush()
                return False
            hosts = [None if slot is None else slot.batches(slot.step) for slot in self.held]
            some = next(host for host in hosts if host is not None)
            batch = {name: np.stack([(some if host is None else host)[name] for host in hosts]) for name in some}
            self.slots, sums = self.population.step(self.slots, self.population.put(batch), values)
            self._flush()
            self.tick, self.ticks = self.tick + 1, self.ticks + 1
            self.bar.update(len(held))
            self.pending = sums, [line for slot, host in zip(self.held, hosts) if slot is not None for line in _made(slot, host)]
        self._flush()
        return True

    def _flush(self) -> None:
        """Logs what is due of the update before; the next one runs already."""
        (sums, due), self.pending = self.pending, ({}, [])
        if not due:
            return
        arrays = jax.device_get(dict(sums))
        now = time.perf_counter()
        seconds, self.clock, self.ticks = (now - self.clock) / max(self.ticks, 1), now, 0
        for slot, step, identity in due:
            mine = _of_slot(arrays, self.held.index(slot))
            if not float(mine.pop('skipped').total):
                count = max(float(mean.count) for name, mean in mine.items() if name.startswith('loss/'))
                timing = {'tokens_per_second': count / max(seconds, 1e-9), 'step_seconds': seconds}
                slot.log.write('metrics.jsonl', {'step': step, 'split': 'train', **report(mine), **timing, 'batch_hash': identity})

    def _look(self) -> None:
        """Evaluates what is due, and ends what has diverged, is pruned or done."""
        alive = np.asarray(self.slots.alive)
        for index, slot in enumerate(self.held):
            if slot is not None and not alive[index]:
                at = int(self.slots.state.step[index]) + 1
                self._end(index, 'diverged', None, why=f'loss or gradient is not finite at step {at}; the update was not made')
        due = [
            index
            for index, slot in enumerate(self.held)
            if slot is not None and (slot.step == slot.config.steps or _every(slot.step, slot.config.every.evaluate))
        ]
        if not due:
            return
        found = {index: {} for index in due}
        values = self.population.put(self.values)
        for split in self.group.config.evaluate:
            batches = itertools.islice(self.group.evaluations(split), self.group.config.eval_batches)
            totals = gather(lambda slots, batch: self.population.evaluate(slots, batch, values), self.slots, batches)
            for index in due:
                found[index][split] = report({name: Mean(*array[:, index]) for name, array in totals.items()})
        for index in due:
            self._evaluated(index, found[index])

    def _evaluated(self, index: int, found: Mapping[str, Mapping[str, float]]) -> None:
        slot = self.held[index]
        assert slot is not None
        for split, values in found.items():
            slot.log.write('eval.jsonl', {'step': slot.step, 'split': split, **values})
        split, _, name = self.folder.study.metric.partition('/')
        if name not in found[split]:
            raise BadInput(
                f'metric {self.folder.study.metric!r} is not evaluated{spec.nearest(name, list(found[split]))}; there are {", ".join(found[split])}'
            )
        value = found[split][name]
        self.bar.set_postfix({slot.trial.name: f'{value:.4f}'}, refresh=False)
        pruned = math.isfinite(value) and self.source.report(slot.trial, slot.step, value)
        if slot.step == slot.config.steps:
            self._end(index, 'done', value)
        elif pruned:
            self._end(index, 'pruned', value)

    # -- the whole population

    def _save(self) -> None:
        held = [None if slot is None else {**spec.to_plain(dataclasses.asdict(slot.trial)), 'step': slot.step} for slot in self.held]
        lengths = {slot.trial.name: slot.log.sync() for slot in self.held if slot is not None}
        # One update may see several changes of slots: the save counts on.
        self.saved = max(self.saved + 1, self.tick)
        self.checkpoints.save(self.saved, self.slots, {'held': held, 'lengths': lengths, 'tick': self.tick}, {})

    def _restore(self) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        workdir.replace(self.place / 'size.json', json.dumps(len(self.held)))
        found = self.checkpoints.newest_good(self.population.abstract(self.values)) if self.checkpoints.steps() else None
        if found is None:
            return
        self.saved, self.slots, meta = found
        self.tick = meta['tick']
        for index, one in enumerate(meta['held']):
            if one is not None:
                trial = _trial(one)
                self._open(index, trial, one['step'], meta['lengths'][trial.name])
                self.bar.update(one['step'])


def extract(group: Group, folder: Folder, trial: Trial, target: pathlib.Path) -> None:
    """Writes one training of a population's last checkpoint as a run of its own.

    Raises:
      BadInput: it is in no checkpoint.
    """
    for place in sorted((folder.path / 'population').glob(f'{group.name}*')):
        size = json.loads((place / 'size.json').read_text())
        values = {path: np.zeros(size, _kind(group.config, path)) for path in group.own}
        checkpoints = Checkpoints(place / 'checkpoints', read_only=True)
        try:
            found = checkpoints.newest_good(Population(group.program, size).abstract(values))
        finally:
            checkpoints.close()
        names = [] if found is None else [None if one is None else _trial(one).name for one in found[2]['held']]
        if found is not None and trial.name in names:
            trained, meta = take(found[1], names.index(trial.name)), found[2]
            shutil.copytree(folder.folder(trial), target, ignore=shutil.ignore_patterns('trial.json', '.lock'))
            own = Checkpoints(target / 'checkpoints')
            own.save(
                int(trained.step), trained, {'data': group.batches(trial.seed).fingerprint, 'lengths': meta['lengths'][trial.name]}, {}
            )
            own.close()
            return
    raise BadInput(f'training {trial.name!r} is in no checkpoint yet; try again after the next one')


def _trial(kept: Mapping[str, Any]) -> Trial:
    return Trial(**{key: value for key, value in kept.items() if key != 'step'})


def _kept_size(place: pathlib.Path, size: int) -> int:
    """The slots of a population that goes on."""
    file = place / 'size.json'
    kept = json.loads(file.read_text()) if file.exists() else size
    if kept % jax.device_count():
        raise BadInput(
            f'the population in {place} has {kept} slots, which {jax.device_count()} devices cannot share; go on with as many devices as before'
        )
    return kept


def _kind(config: Any, path: str) -> Any:
    return np.int32 if isinstance(spec.get(config, path), int) else np.float32


def _ahead(step: int, interval: int, end: int) -> int:
    """Updates until the next multiple of an interval (0 = none), or the end."""
    return min(interval - step % interval if interval else sys.maxsize, end - step)


def _every(step: int, interval: int) -> bool:
    return bool(interval) and step > 0 and step % interval == 0


def _made(slot: _Slot, host: Any) -> list[tuple[_Slot, int, str]]:
    """A training has made an update: (slot, step, hash of the batch), if it is to be logged."""
    slot.step += 1
    logged = slot.step == slot.config.steps or _every(slot.step, slot.config.every.log)
    return [(slot, slot.step, pipeline.batch_hash(host))] if logged else []


def _of_slot(arrays: Mapping[str, Mean], index: int) -> dict[str, Mean]:
    return {name: Mean(mean.total[index], mean.count[index]) for name, mean in arrays.items()}


def _discard(path: pathlib.Path) -> None:
    """Half a training of a population that was killed just then; one that was begun as a run of its own is not ours to discard."""
    facts = json.loads((path / 'trial.json').read_text()) if (path / 'trial.json').exists() else {}
    if facts.get('executor') != 'vmap':
        raise BadInput(f'{path} was begun as a run of its own; go on with --executor=local')
    shutil.rmtree(path / 'checkpoints')
