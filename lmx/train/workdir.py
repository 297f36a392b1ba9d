"""The folder of a run: its lock, its config and where it came from. Nothing in it is overwritten by another run."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import lmx
from lmx import spec
from lmx.types import BadInput

RESUMABLE = (
    'steps',
    'accumulate',
    'mesh',
    'rules',
    'pipeline',
    'parallel',
    'cpu_devices',
    'every',
    'keep',
    'evaluate',
    'eval_batches',
    'early_stopping',
    'nonfinite',
    'samples',
    'baselines',
    'wandb',
    'watchdog',
)
"""What may change when a run goes on; everything else would make it another run."""

SAME_BITS = ('affinity', 'xla_flags', 'devices', 'jaxlib')
"""Where these differ, a resumed run equals an undisturbed one to rounding, not to the bit."""


class Workdir:
    """A run's folder, locked for as long as this process trains in it.

    Raises:
      BadInput: another process holds the lock, or the folder holds a run that this config may not continue.
    """

    def __init__(self, path: str | os.PathLike[str], config: Mapping[str, Any], write: bool = True):
        self.path = pathlib.Path(path).absolute()
        self.write = write
        if self.path.is_file():
            raise BadInput(f'--workdir={path} is a file; give a folder')
        self.path.mkdir(parents=True, exist_ok=True)
        if write:
            self._lock = locked(self.path / '.lock')
        self.config_path = self.path / 'config.json'
        self._check(config)

    def _check(self, config: Mapping[str, Any]) -> None:
        if not self.config_path.exists():
            others = sorted(entry.name for entry in self.path.iterdir() if entry.name not in ('.lock', 'logs', 'code'))
            if others:
                raise BadInput(f'{self.path} is not empty and holds no run ({", ".join(others[:3])}); give a new --workdir')
            return
        # What an adapter adds to may be found elsewhere by now: base.json knows it again.
        resumable = RESUMABLE if config.get('adapter') is None else (*RESUMABLE, 'init')
        differences = [row for row in spec.diff(read_config(self.path), config) if row[0].split('.')[0] not in resumable]
        differences = [row for row in differences if row[1:] != ('-', None)]  # a key that came to lmx since then, and is not used
        if differences:
            shown = ', '.join(f'{path} {old!r} -> {new!r}' for path, old, new in differences[:4]) + (
                ', ...' if len(differences) > 4 else ''
            )
            raise BadInput(
                f'{self.path} holds a run of another config ({shown}); give a new --workdir, and config.init to start from that run'
            )

    def record(self, config: Mapping[str, Any]) -> list[str]:
        """Writes config.json and adds this start to provenance.json; returns what differs from the last start and may change bits."""
        now = provenance()
        path = self.path / 'provenance.json'
        before = json.loads(path.read_text()) if path.exists() else None
        starts = [*(before or {}).get('earlier_starts', []), {k: v for k, v in before.items() if k != 'earlier_starts'}] if before else []
        replace(path, json.dumps({**now, 'earlier_starts': starts}, indent=2) + '\n')
        replace(self.config_path, spec.to_json(config))
        return [f'{key} {before.get(key)} -> {now[key]}' for key in SAME_BITS if before and before.get(key) != now[key]]

    def close(self) -> None:
        if self.write:
            os.close(self._lock)


def read_config(workdir: str | os.PathLike[str]) -> Any:
    """The config of a run.

    Raises:
      BadInput: the folder holds no run.
    """
    path = pathlib.Path(workdir) / 'config.json'
    if not path.exists():
        raise BadInput(f'{workdir} holds no run (no config.json); `lmx runs` lists the runs below a folder')
    return spec.from_json(path.read_text())


def read_lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The lines of a .jsonl file; none where there is no file."""
    if path.exists():
        for line in path.read_text().splitlines():
            yield json.loads(line)


def provenance() -> dict[str, Any]:
    """What made this run: command, code, versions, machine."""
    import jax

    versions = {name: metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')}
    return {
        'time': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
        'command': sys.argv,
        'folder': os.getcwd(),
        'lmx': lmx.__version__,
        'git': _git(),
        'python': platform.python_version(),
        'versions': versions,
        'jaxlib': versions['jaxlib'],
        'host': socket.gethostname(),
        'platform': platform.platform(),
        'devices': [str(device.device_kind) for device in jax.devices()],
        'processes': jax.process_count(),
        'affinity': sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else None,
        'xla_flags': os.environ.get('XLA_FLAGS', ''),
    }


def _git() -> dict[str, str] | None:
    """Commit and uncommitted difference of the folder that the command was typed in."""

    def git(*args: str) -> str:
        return subprocess.run(['git', *args], capture_output=True, text=True, timeout=20, check=True).stdout

    try:
        return {'commit': git('rev-parse', 'HEAD').strip(), 'diff': git('diff', 'HEAD')}
    except (OSError, subprocess.SubprocessError):
        return None


def locked(path: pathlib.Path) -> int:
    """The handle of a lock file, held until it is closed.

    Raises:
      BadInput: another process holds it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = path.read_text().strip() or 'another process'
        os.close(handle)
        raise BadInput(f'{path.parent} is in use by {holder}; wait for it, or give another --workdir') from None
    os.truncate(handle, 0)
    os.write(handle, f'process {os.getpid()} on {socket.gethostname()}'.encode())
    return handle


def replace(path: pathlib.Path, text: str) -> None:
    """Writes a file by one rename: it is there whole, or as it was."""
    part = path.with_name(path.name + '.part')
    part.write_text(text)
    part.replace(path)
