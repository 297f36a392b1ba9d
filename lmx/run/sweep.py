"""`lmx sweep`: a study from where it stands to its end, and what it found."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lmx import spec, study
from lmx.run import groups
from lmx.run.parts import Parts, set_up_jax
from lmx.run.train import Signals, say
from lmx.study import Search, Study, Trial
from lmx.sweep import table
from lmx.sweep.answer import answer, span
from lmx.sweep.folder import ENDED, Folder, Row, ended
from lmx.sweep.packed import Packed, extract
from lmx.sweep.population import Population
from lmx.sweep.source import Listed, Source
from lmx.types import BadInput, Preempted

EXECUTORS = ('vmap', 'local')
MOST = 32
"""Slots, where the device does not say how much memory it has."""


def sweep(
    of: Study,
    workdir: str | os.PathLike[str],
    *,
    executor: str = 'vmap',
    jobs: int = 1,
    slots: int | None = None,
    part: tuple[int, int] | None = None,
) -> list[table.Line]:
    """Trains what is left of a study and returns a line per point; run again, it goes on, and tries again what has failed.

    Args:
      workdir: of the sweep. Every training has an ordinary run's folder in it.
      executor: 'vmap', many in one program; or 'local', a process of `lmx train` for each.
      jobs: of 'local', how many at a time.
      slots: of 'vmap', how many at most in one program, and at least one a device; None = as many as fit.
      part: (index, count): every count-th training alone, without what comes when all have ended.

    Raises:
      BadInput: anything the user can mend, before the first training begins.
      Preempted: SIGTERM or Ctrl-C came, and everything is saved.
    """
    if executor not in EXECUTORS:
        raise BadInput(f'executor {executor!r} is unknown; there are {", ".join(EXECUTORS)}{spec.nearest(executor, EXECUTORS)}')
    folder = Folder(workdir, of)
    with folder.locked('' if part is None else f'.{part[0]}'):
        if of.budget is not None and table.steps(of) > of.budget:
            raise BadInput(
                f'the study takes {table.steps(of):,} updates and its budget is {of.budget:,}; take fewer points, seeds or steps'
            )
        if executor == 'vmap':
            use_cores(of.base)  # before anything touches a device
            groups.varied(of, folder.trials())
        groups.check_metric(of)
        if part is None or part[0] == 0:
            folder.record()
        run = _Sweep(folder, executor, jobs, slots, part)
        with contextlib.closing(_source(folder, part)) as source:
            run(source, source.left if isinstance(source, Listed) else folder.trials())
        if part is None:
            run.fresh()
            if ended(folder.rows()):
                shutil.rmtree(folder.path / 'population', ignore_errors=True)
    return table.lines([row for row in folder.rows() if not row.trial.fresh], of.metric)


class _Sweep:
    """One start of a sweep."""

    def __init__(self, folder: Folder, executor: str, jobs: int, slots: int | None, part: tuple[int, int] | None):
        self.folder, self.executor, self.jobs, self.slots = folder, executor, jobs, slots
        self.suffix = '' if part is None else f'-{part[0]}of{part[1]}'  # parts have populations of their own
        self.signal: str | None = None  # as `Signals` sets it

    def __call__(self, source: Source, trials: Sequence[Trial]) -> None:
        """Trains what a source has; `trials` are those that are known beforehand."""
        if self.executor == 'local':
            from lmx.sweep import processes

            total = len(trials) if isinstance(source, Listed) else None
            processes.run(self.folder, source, jobs=self.jobs, total=total)
            return
        if not trials and isinstance(source, Listed):
            return
        of = self.folder.study
        # Of all trainings, also those that have ended: what one program takes does not change as a sweep goes on.
        own = groups.own_paths(of, [*self.folder.trials(), *(trial for trial in trials if trial.fresh)])
        if isinstance(of.points, Search) and not isinstance(source, Listed):
            middle = Trial(0, groups.middle(of.points), of.seeds[0])
            self._population(study.config_of(of, middle), own, source, of.points.trials)
            return
        for config, mine, members in groups.grouped(of, trials, own):
            self._population(config, mine, Listed(self.folder, members), len(members))

    def _population(self, config: Any, own: Sequence[str], source: Source, count: int) -> None:
        group = groups.group(self.folder.study, config, own)
        group = dataclasses.replace(group, name=group.name + self.suffix)
        devices = jax.device_count()
        most = self.slots or _fitting(group, devices)
        size = min(math.ceil(count / devices), max(most // devices, 1)) * devices  # every device has as many
        say(f'{count} training(s) of {config.steps} updates in {size} slots on {devices} {jax.devices()[0].device_kind} device(s)')
        with Signals(self):
            whole = Packed(group, self.folder, source, size, count * config.steps, stop=lambda: self.signal is not None).run()
        if not whole:
            raise Preempted(f'{self.signal}: everything is saved; run the same command again to go on')

    def fresh(self) -> None:
        """Trains the winner again with the fresh seeds, once all points have come to their end."""
        of = self.folder.study
        rows = [row for row in self.folder.rows() if not row.trial.fresh]
        best = next(iter(table.ranked(of, table.lines(rows, of.metric))), None)
        if best is None or not of.fresh_seeds or any(row.state not in ENDED for row in rows):
            return
        trials = [Trial(best.number, best.point, seed, fresh=True) for seed in of.fresh_seeds]
        self(source := Listed(self.folder, trials), source.left)


def _source(folder: Folder, part: tuple[int, int] | None) -> Source:
    if isinstance(folder.study.points, Search):
        from lmx.sweep.search import Searched

        return Searched(folder, part or (0, 1))
    return Listed(folder, folder.trials(), part or (0, 1))


def use_cores(config: Any) -> None:
    """A CPU trains the slots of a population on as many simulated devices as it has cores; alone, a training has one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    set_up_jax({**config, 'cpu_devices': max(config.cpu_devices, cores)})


def _fitting(group: Any, devices: int) -> int:
    """How many slots the devices' memory holds, by the compiled step of one slot on each."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit')
    if limit is None:
        return max(MOST, devices)
    one = {name: np.stack([array] * devices) for name, array in group.batches(0)(0).items()}
    values = {path: np.zeros(devices, np.float32) for path in group.own}
    return max(int(0.85 * limit / Population(group.program, devices).bytes_of_slot(one, values)), 1) * devices


def dry_run(of: Study, workdir: str | os.PathLike[str] | None = None) -> str:
    """The points with what they change, and what they cost."""
    points: Any = of.points
    lines = []
    if isinstance(points, Search):
        lines += [f'{path}: {where}' for path, where in points.space.items()]
        lines.append(f'{points.trials} points by {points.sampler}, pruned by {points.pruner}')
    else:
        numbered = Folder(workdir, of).points if workdir is not None else list(points)
        for number, point in enumerate(numbered):
            changed = ', '.join(f'{path}={table.value_text(value)}' for path, value in point.items()) or 'the config as it is'
            lines.append(f'{number:4d}  {changed}')
    use_cores(of.base)
    trials = [] if isinstance(points, Search) else study.trials(of)
    try:
        own = groups.own_paths(of, trials)
        programs = 1 if isinstance(points, Search) else len(groups.grouped(of, trials, own))
        shapes = f'--executor=vmap compiles {programs} program(s); its arguments: {", ".join(own) or "seeds alone"}'
    except BadInput as error:
        shapes = f'--executor=vmap is refused: {error}'
    count = sum(
        leaf.size for leaf in jax.tree.leaves(Parts(study.config_of(of, Trial(0, {}, 0)), devices=jax.devices()[:1]).abstract_params())
    )
    total = points.trials if isinstance(points, Search) else len(trials)
    fresh = f' and {len(of.fresh_seeds)} with fresh seeds' if of.fresh_seeds else ''
    lines += [
        '',
        f'{total} trainings ({len(of.seeds)} seed(s) each{fresh}), {table.steps(of):,} updates of {of.base.batch_size} examples in all; '
        f'the config as it is has {count:,} parameters',
        shapes,
    ]
    return '\n'.join(lines)


def status(workdir: str | os.PathLike[str]) -> str:
    """How a sweep stands, by its files: a line per training that is neither waiting nor done, and the best points."""
    folder = Folder(workdir)
    rows = folder.rows()
    states = {state: sum(row.state == state for row in rows) for state in dict.fromkeys(row.state for row in rows)}
    lines = [f'{folder.path.name}: ' + ', '.join(f'{count} {state}' for state, count in states.items())]
    for row in rows:
        if row.state not in ('waiting', 'done'):
            lines.append(f'  {row.trial.name}  {row.state} at step {row.step}' + (f': {row.why}' if row.why else ''))
    return '\n'.join([*lines, result(folder.study, rows)])


def result(of: Study, rows: Sequence[Row], most: int = 10) -> str:
    """The best points as a person reads them, and what may be reported."""
    found = table.lines([row for row in rows if not row.trial.fresh], of.metric)
    best, names = table.ranked(of, found), table.shorts(table.paths(found))
    lines = [f'{of.metric}, {"highest" if of.mode == "max" else "lowest"} first:'] if best else [f'no value of {of.metric} yet']
    for line in best[:most]:
        point = ', '.join(f'{names[path]} {table.value_text(value)}' for path, value in line.point.items())
        lines.append(f'  {line.number:4d}  {span(line.mean, line.low, line.high, len(line.values))}  {point}')
    said = answer(of, rows)
    if said.fresh:
        what = span(said.mean, said.low, said.high, len(said.fresh), 'fresh seeds')
        lines.append(f'reported: {said.metric} {what}, point {said.best.number if said.best else ""}')
    return '\n'.join([*lines, f'note: {said.note}'] if best and said.note else lines)


def take(workdir: str | os.PathLike[str], name: str, to: str | os.PathLike[str]) -> pathlib.Path:
    """Copies one training of a sweep as a run of its own, which `lmx train --workdir=TO` goes on with.

    Raises:
      BadInput: there is no such training, it has not begun, or `to` exists.
    """
    folder, target = Folder(workdir), pathlib.Path(to)
    trials = {row.trial.name: row for row in folder.rows()}
    if name not in trials:
        raise BadInput(f'{workdir} has no training {name!r}{spec.nearest(name, list(trials))}')
    if target.exists():
        raise BadInput(f'{to} exists; give another --to')
    row = trials[name]
    if row.state == 'waiting':
        raise BadInput(f'training {name!r} has not begun; run the sweep first')
    if (row.path / 'checkpoints').is_dir():
        shutil.copytree(row.path, target, ignore=shutil.ignore_patterns('trial.json', '.lock'))
        return target
    of = folder.study
    use_cores(of.base)
    everything = [one.trial for one in folder.rows()]
    own = groups.own_paths(of, everything)
    config, mine, _ = next(found for found in groups.grouped(of, everything, own) if row.trial in found[2])
    extract(groups.group(of, config, mine), folder, row.trial, target)
    return target


def finish(workdir: str | os.PathLike[str]) -> str:
    """What `lmx sweep` prints last: the best points, and the report's path."""
    from lmx.report import sweep as page

    folder = Folder(workdir)
    return f'{result(folder.study, folder.rows())}\nreport: {page.write(workdir)}'
