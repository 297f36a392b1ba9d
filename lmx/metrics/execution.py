"""Runs programs that a model wrote: each in a process of its own that can reach no network, start no process and write nowhere else."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import pathlib
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from lmx.metrics import sandbox
from lmx.types import BadInput

FOLDER_LIMIT = 16
"""Files' worth of `file_size` that a program may leave in its folder."""


class Result(NamedTuple):
    """How a program ended: whether it came to its end, and if not the reason, such as 'AssertionError' or 'over 5 s'."""

    passed: bool
    reason: str = ''


def run(program: str, *, seconds: float = 5.0, memory: int = 1 << 30, files: int = 32, file_size: int = 1 << 20) -> Result:
    """Runs a Python program in an empty folder that goes with it; see `lmx.metrics.sandbox` for what it may not do.

    A program passes by coming to its end: what leaves early has not passed, whatever its exit status.

    Args:
      seconds: of wall time. memory: bytes of address space. files: open at once. file_size: bytes of one file.

    Raises:
      BadInput: a machine where programs cannot be confined.
    """
    lacking = sandbox.supported()
    if lacking:
        raise BadInput(f'programs cannot be confined here: {lacking}; score them on another machine, or leave task.execute off')
    limits = {'seconds': int(seconds) + 1, 'memory': memory, 'files': files, 'file_size': file_size}
    told = json.dumps({'program': program, 'word': secrets.token_hex(), 'limits': limits})
    with tempfile.TemporaryDirectory(prefix='lmx-program-', ignore_cleanup_errors=True) as folder, tempfile.TemporaryFile() as errors:
        reads, writes = os.pipe()
        command = [sys.executable, '-I', '-S', '-B', os.path.abspath(sandbox.__file__), str(writes)]
        settings = {'PYTHONHASHSEED': '0', 'LANG': 'C.UTF-8', 'OPENBLAS_NUM_THREADS': '1'}
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=(writes,),
            cwd=folder,
            env=settings,
            start_new_session=True,
        )
        os.close(writes)
        try:
            reason = _wait(process, told, seconds, pathlib.Path(folder), FOLDER_LIMIT * file_size)
            word = b'' if reason else os.read(reads, 200)
        finally:
            process.kill()
            process.wait()
            os.close(reads)
        if word.decode(errors='replace') == json.loads(told)['word']:
            return Result(True)
        return Result(False, reason or _last_line(errors, process.returncode))


def run_all(programs: Sequence[str], *, workers: int | None = None, seconds: float = 5.0) -> list[Result]:
    """As `run`, several at a time and in order, with a progress bar; `workers` None = as many as there are cores."""
    from tqdm import tqdm

    with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        made = pool.map(lambda program: run(program, seconds=seconds), programs)
        return list(tqdm(made, total=len(programs), desc='programs', unit='program', leave=False, disable=len(programs) < 20))


def _wait(process: subprocess.Popen[bytes], told: str, seconds: float, folder: pathlib.Path, limit: int) -> str:
    """'' once the process has ended by itself; else why it is to be ended."""
    assert process.stdin is not None
    end = time.monotonic() + seconds
    try:
        process.stdin.write(told.encode())
        process.stdin.close()
    except BrokenPipeError:
        return ''
    while process.poll() is None:
        if time.monotonic() > end:
            return f'over {seconds:g} s'
        if _size(folder) > limit:
            return f'over {limit} bytes of files'
        time.sleep(0.02)
    return ''


def _size(folder: pathlib.Path) -> int:
    """Bytes on disk below a folder, a block at least for each file, so that many empty ones count too."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # it is gone already
                total += max(os.lstat(os.path.join(place, name)).st_blocks * 512, 4096)
    return total


def _last_line(errors: Any, status: int) -> str:
    """The name of the exception that ended a program, else its exit status."""
    errors.seek(0)
    lines = errors.read(1 << 20).decode(errors='replace').split('\n')
    named = [line for line in lines if line and not line[0].isspace()]
    return named[-1][:200] if named and status == 1 else f'exit status {status}'
