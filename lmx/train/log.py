"""What a run writes while it runs: `metrics.jsonl`, `eval.jsonl`, TensorBoard, the progress bar.

Lines up to step N are on disk before checkpoint N commits, and the checkpoint holds the files' lengths: a resumed run cuts the files back
to them and goes on, so that a run that was killed leaves the same lines as one that was not.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

FILES = ('metrics.jsonl', 'eval.jsonl')


class Log:
    """The writers of one run; only the first process of a job has one.

    Args:
      workdir: where the files go.
      lengths: bytes to keep of each file (from the checkpoint that is resumed); None starts anew.
      step: the step that is resumed, from which TensorBoard's later events are dropped.
      writers: further functions (line) -> None, such as wandb's.
    """

    def __init__(self, workdir: pathlib.Path, lengths: Mapping[str, int] | None = None, step: int = 0, writers: tuple[Any, ...] = ()):
        self.workdir, self.writers = workdir, writers
        self._files = {}
        for name in FILES:
            self._files[name] = _cut(workdir / name, (lengths or {}).get(name, 0))
        self._board = _summary_writer()(str(workdir / 'tensorboard'), purge_step=step + 1 if step else None)

    def write(self, name: str, line: Mapping[str, Any]) -> None:
        """One line of 'metrics.jsonl' or 'eval.jsonl'; numbers also go to TensorBoard as 'split/key'."""
        self._files[name].write((json.dumps(rounded(line)) + '\n').encode())
        self._files[name].flush()
        for key, value in line.items():
            if isinstance(value, (int, float)) and key != 'step':
                self._board.add_scalar(f'{line.get("split", "train")}/{key}', value, line['step'])
        for writer in self.writers:
            writer(line)

    def sync(self) -> dict[str, int]:
        """Everything written is on disk; returns the files' lengths in bytes."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()}

    def close(self) -> None:
        self.sync()
        for file in self._files.values():
            file.close()
        self._board.close()


def _summary_writer() -> Any:
    """tensorboardX's. It would import PyTorch where that is installed, for seconds, to write what are only numbers here."""
    hidden = 'torch' not in sys.modules
    if hidden:
        sys.modules['torch'] = None  # type: ignore[assignment]
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden:
            del sys.modules['torch']
    return SummaryWriter


def _cut(path: pathlib.Path, length: int) -> Any:
    """The file opened for appending, cut back to `length` bytes; lines that `lmx evaluate` added by hand behind them stay."""
    kept = path.read_bytes()[length:].splitlines(keepends=True) if path.exists() else []
    file = open(path, 'ab')  # noqa: SIM115
    file.truncate(length)
    file.writelines(line for line in kept if b'"checkpoint"' in line and line.endswith(b'\n'))
    file.flush()
    return file


def rounded(line: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: non-finite numbers become None. Nothing else is changed; float32 values print their shortest float64 form."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()}


class Bar:
    """A progress bar on a terminal; a line now and then where there is none."""

    def __init__(self, start: int, steps: int):
        import jax
        from tqdm import tqdm

        self._quiet, self._shown = not sys.stderr.isatty(), 0.0
        self._bar = tqdm(
            total=steps,
            disable=jax.process_index() != 0,
            initial=start,
            unit='step',
            dynamic_ncols=True,
            mininterval=10 if self._quiet else 0.2,
            maxinterval=10,
            smoothing=0.1,
        )

    def step(self) -> None:
        self._bar.update()

    def due(self) -> bool:
        """Whether it is time to show new values to a person who watches."""
        return not self._quiet and time.monotonic() - self._shown > 0.5

    def show(self, **values: str) -> None:
        self._shown = time.monotonic()
        self._bar.set_postfix(values, refresh=False)

    def close(self) -> None:
        self._bar.close()
