"""A thread that notices when training stands still, says which process is behind, and shows where this one is."""

from __future__ import annotations

import faulthandler
import json
import os
import pathlib
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO, Any

EVERY = 5.0  # seconds between the signs of life of a process


class Watchdog:
    """Speaks up when no `beat` has come for `patience` seconds. A context manager: leaving it ends the thread.

    In a job of several processes each keeps its last step in `folder/process-I.json`; who has fallen behind, or no longer writes, is named.

    Args:
      patience: seconds; 0 = never.
      process, processes: which one this is, and of how many.
      stream: where the report goes.
    """

    def __init__(self, folder: pathlib.Path, patience: float, process: int = 0, processes: int = 1, stream: IO[str] | None = None):
        self.folder, self.patience, self.process, self.processes = folder, patience, process, processes
        self.stream = sys.stderr if stream is None else stream
        self.step, self._beaten, self._told = -1, time.monotonic(), False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name='watchdog')

    def beat(self, step: int | None = None) -> None:
        """Something was done: a step was given to the device, or a batch evaluated."""
        self.step = self.step if step is None else step
        self._beaten, self._told = time.monotonic(), False

    def __enter__(self) -> Watchdog:
        if self.patience:
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        interval = min(EVERY, self.patience / 4)
        while not self._ended.wait(interval):
            if self.processes > 1:
                self._sign()
            silent = time.monotonic() - self._beaten
            if silent > self.patience and not self._told:
                self._told = True
                others = f'; {behind(self.folder, self.processes, 3 * interval + 1)}' if self.processes > 1 else ''
                print(f'lmx: process {self.process} has stood at step {self.step} for {silent:.0f} s{others}', file=self.stream, flush=True)
                faulthandler.dump_traceback(self.stream)

    def _sign(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f'process-{self.process}.json.{os.getpid()}.part'
        part.write_text(json.dumps({'step': self.step, 'time': time.time()}))
        part.replace(self.folder / f'process-{self.process}.json')


def behind(folder: pathlib.Path, processes: int, late: float) -> str:
    """Which processes are not as far as the others, by their signs of life; one older than `late` seconds is none."""
    silent: list[int] = []
    steps: dict[int, int] = {}
    for index in range(processes):
        try:
            sign = json.loads((folder / f'process-{index}.json').read_text())
        except (OSError, ValueError):
            silent.append(index)
            continue
        steps[index] = sign['step']
        if time.time() - sign['time'] > late:
            silent.append(index)
    slow = [index for index, step in steps.items() if step < max(steps.values())]
    said = [f'no sign of life from process {_listed(silent)}'] * bool(silent) + [f'behind: process {_listed(slow)}'] * bool(slow)
    return ', '.join(said) or 'no process is behind the others'


def _listed(numbers: Sequence[int]) -> str:
    return ', '.join(map(str, numbers))
