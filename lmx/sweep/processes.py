"""Trainings as processes of their own, some at a time: `lmx train` for each, in the folder that the sweep gives it."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

from lmx import spec
from lmx.launch.bound import bound
from lmx.report.read import lines, number
from lmx.study import Trial, config_of
from lmx.sweep.folder import Folder
from lmx.sweep.source import Source
from lmx.train import workdir
from lmx.types import BadInput, Diverged, Preempted

GRACE = 60.0  # seconds between SIGTERM and SIGKILL: time to write a checkpoint
STOPPED = 75
PAUSE = 0.1  # seconds between looks at the processes


def run(folder: Folder, source: Source, *, jobs: int = 1, total: int | None = None) -> None:
    """Trains all that the source has, `jobs` at a time; returns when it has nothing more.

    A training whose process fails is marked 'failed', with the last line of its output, which is in FOLDER/train.log, and the others go on.
    On a machine with several GPUs, these are shared out among the jobs. SIGTERM and Ctrl-C are handed on; all save, and the same sweep goes
    on where it was. Trainings end with this process, whatever ends it.

    Args:
      total: how many trainings the source has, for the progress bar; None = nobody knows.

    Raises:
      BadInput: fewer than one job; the study's metric is not among what a training evaluates.
      Preempted: after SIGTERM or Ctrl-C, when all have saved.
    """
    if jobs < 1:
        raise BadInput(f'--jobs={jobs} must be at least 1')
    pool = _Pool(folder, source, jobs, total)
    with _signals() as asked, contextlib.closing(pool):
        pool.fill()
        while pool.running:
            time.sleep(PAUSE)
            if asked:
                pool.stop()
            if pool.look() and not asked:
                pool.fill()
    if asked:
        raise Preempted(f'{signal.Signals(asked[0]).name}: the trainings have saved; run the same command again to go on')


class _Pool:
    """The trainings that run, by the place that each has."""

    def __init__(self, folder: Folder, source: Source, jobs: int, total: int | None):
        self.folder, self.source, self.jobs = folder, source, jobs
        self.running: dict[int, _Child] = {}
        self.stopping = False
        self.bar = tqdm(total=total, unit='training', dynamic_ncols=True, mininterval=0.2 if sys.stderr.isatty() else 10)
        done = (row.values.get(folder.study.metric) for row in folder.rows() if row.state == 'done' and not row.trial.fresh)
        self.best = self._better(*(value for value in done if value is not None))

    def _better(self, *values: float) -> float:
        worst = -math.inf if self.folder.study.mode == 'max' else math.inf
        return (max if self.folder.study.mode == 'max' else min)((worst, *values))

    def fill(self) -> None:
        """Begins trainings as long as there is room and the source has any."""
        for place in range(self.jobs):
            while place not in self.running and (trial := self.source.next()) is not None:
                self._begin(place, trial)
        self._show()

    def _begin(self, place: int, trial: Trial) -> None:
        self.folder.mark(trial, 'running')
        config = self.folder.folder(trial) / 'config.json'
        try:
            text = spec.to_json(config_of(self.folder.study, trial))
        except BadInput as error:
            self._end(trial, 'failed', None, str(error))
            return
        if not config.exists():
            workdir.replace(config, text)
        self.running[place] = _Child(self.folder, trial, devices(place, self.jobs))

    def look(self) -> bool:
        """Reports what the trainings have evaluated, and takes in those that have ended -> whether one has."""
        before = len(self.running)
        for place, child in list(self.running.items()):
            code = child.process.poll()  # before its last lines are read
            for step, value in child.evaluated():
                if self.source.report(child.trial, step, value) and code is None:
                    child.pruned = True
                    child.stop()
            if code is not None:
                del self.running[place]
                self._take(child, code)
        return len(self.running) < before

    def _take(self, child: _Child, code: int) -> None:
        child.close()
        stopped = code in (STOPPED, -signal.SIGTERM, -signal.SIGKILL)
        value = child.seen[max(child.seen)] if child.seen else None
        if code == 0:
            self._end(child.trial, 'done', value)
        elif stopped and child.pruned:
            self._end(child.trial, 'pruned', value)
        elif not (stopped and self.stopping):
            last = child.last_line() if code > 0 else f'killed by {signal.Signals(-code).name}'
            diverged = code == 2 and Diverged.SIGN in last
            self._end(child.trial, 'diverged' if diverged else 'failed', None, last or f'exit code {code}')

    def _end(self, trial: Trial, state: str, value: float | None, why: str = '') -> None:
        self.folder.mark(trial, state, **({'why': why} if why else {}))
        self.source.end(trial, state, value)
        if why:
            self.bar.write(f'{trial.name} {state}: {why}', file=sys.stderr)
        if state == 'done' and value is not None and not trial.fresh:
            self.best = self._better(self.best, value)
        self.bar.update()
        self._show()

    def _show(self) -> None:
        self.bar.set_postfix(running=len(self.running), best=f'{self.best:.4g}' if math.isfinite(self.best) else '-')

    def stop(self) -> None:
        self.stopping = True
        for child in self.running.values():
            child.stop()

    def close(self) -> None:
        """Whatever ended the sweep: no training outlives it."""
        for child in self.running.values():
            child.process.kill()
            child.process.wait()
            child.close()
        self.bar.close()


class _Child:
    """The process of one training."""

    def __init__(self, folder: Folder, trial: Trial, environment: dict[str, str]):
        self.trial, self.path = trial, folder.folder(trial)
        self.split, _, self.name = folder.study.metric.partition('/')
        self.seen: dict[int, float] = {}
        self.size = -1  # of eval.jsonl, when it was last read
        self.pruned = False
        self.deadline = math.inf
        self.log = open(self.path / 'train.log', 'ab')  # noqa: SIM115
        self.begin = self.log.tell()
        train = [sys.executable, '-m', 'lmx.cli', 'train', f'--config={self.path / "config.json"}', f'--workdir={self.path}']
        # A session of its own: Ctrl-C in the terminal reaches it through the sweep alone, once.
        streams = {'stdin': subprocess.DEVNULL, 'stdout': self.log, 'stderr': subprocess.STDOUT}
        self.process = subprocess.Popen(bound(train), start_new_session=True, env={**os.environ, **environment}, **streams)

    def evaluated(self) -> list[tuple[int, float]]:
        """(step, value) of the study's metric that were not there before.

        Raises:
          BadInput: the metric is not among what is evaluated.
        """
        file = self.path / 'eval.jsonl'
        size = file.stat().st_size if file.exists() else -1
        if size == self.size:
            return []
        self.size, new = size, []
        for line in lines(file):
            if line.get('split') != self.split or 'checkpoint' in line:
                continue
            if self.name not in line:
                names = [name for name in line if name not in ('step', 'split')]
                near = spec.nearest(self.name, names)
                raise BadInput(f'metric {self.split}/{self.name} is not evaluated; {self.split} has {", ".join(names)}{near}')
            if line['step'] not in self.seen and (value := number(line[self.name])) is not None:
                self.seen[line['step']] = value
                new.append((line['step'], value))
        return new

    def stop(self) -> None:
        """Asks it to save and end, and ends it when it does not."""
        if self.deadline == math.inf:
            self.process.send_signal(signal.SIGTERM)
            self.deadline = time.monotonic() + GRACE
        elif time.monotonic() > self.deadline:
            self.process.kill()

    def last_line(self) -> str:
        """Of what it printed since it began."""
        with open(self.path / 'train.log', 'rb') as file:
            file.seek(self.begin)
            said = [line.strip() for line in file.read().decode(errors='replace').replace('\r', '\n').splitlines()]
        return next((line.removeprefix('lmx: ') for line in reversed(said) if line), '')

    def close(self) -> None:
        self.log.close()


def devices(place: int, jobs: int) -> dict[str, str]:
    """What the environment of the job at a place says of GPUs: its own where there are enough, else its share of the memory of one."""
    found = _gpus()
    if jobs == 1 or not found:
        return {}
    mine = found[place::jobs] or [found[place % len(found)]]
    share = math.ceil(jobs / len(found))
    memory = {'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{0.9 / share:.2f}'} if share > 1 else {}
    return {'CUDA_VISIBLE_DEVICES': ','.join(mine), **{key: value for key, value in memory.items() if key not in os.environ}}


def _gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES knows."""
    given = os.environ.get('CUDA_VISIBLE_DEVICES')
    if given is not None:
        return [name for name in given.split(',') if name]
    if shutil.which('nvidia-smi') is None:
        return []
    listed = subprocess.run(['nvidia-smi', '--query-gpu=uuid', '--format=csv,noheader'], capture_output=True, text=True)
    return listed.stdout.split() if listed.returncode == 0 else []


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGTERM and Ctrl-C are written down; a second Ctrl-C ends at once."""
    asked: list[int] = []

    def ask(received: int, _: object) -> None:
        if asked and received == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(received)

    before = {}
    try:
        for each in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):  # not the main thread of a notebook server: signals stay as they are
                before[each] = signal.signal(each, ask)
        yield asked
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
