"""Several processes of one job on this machine: what a cluster does, for trying out and for machines with several accelerators."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO

GRACE = 60.0  # seconds between SIGTERM and SIGKILL: time to write a checkpoint
STOPPED = 75


def launch(command: Sequence[str], *, processes: int, restarts: int = 3) -> int:
    """Runs `lmx COMMAND` as one job of `processes` processes and returns its exit code.

    A process that dies takes the others with it, and all start again, at most `restarts` times, from the last checkpoint. Bad input (2) is
    not tried again. SIGTERM and Ctrl-C are handed on: all write a checkpoint and the exit code is 75. Process 0 writes to this terminal; of
    the others the last lines are shown when they fail.
    """
    asked: list[int] = []
    before = {number: signal.signal(number, lambda number, _: asked.append(number)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for attempt in range(restarts + 1):
            code = _once(command, processes, asked)
            if code in (0, 2, STOPPED) or asked:
                return code
            if attempt < restarts:
                print(f'lmx: the job ended with exit code {code}; restart {attempt + 1} of {restarts}', file=sys.stderr, flush=True)
        return code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _once(command: Sequence[str], processes: int, asked: list[int]) -> int:
    """One start of all processes; 0, or the exit code of the first that failed."""
    coordinator = f'127.0.0.1:{_free_port()}'
    outputs: list[IO[str]] = [tempfile.TemporaryFile('w+', errors='replace') for _ in range(1, processes)]  # noqa: SIM115
    running: list[subprocess.Popen[bytes]] = []
    try:
        for index in range(processes):
            mine = ['--coordinator', coordinator, '--processes', str(processes), '--process', str(index)]
            streams = {} if index == 0 else {'stdout': outputs[index - 1], 'stderr': subprocess.STDOUT}
            # Groups of their own: Ctrl-C in the terminal reaches them through this process alone, once.
            running.append(subprocess.Popen([sys.executable, '-m', 'lmx.cli', *command, *mine], start_new_session=True, **streams))
        code = _watch(running, asked)
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    for index, output in enumerate(outputs, 1):
        ended = running[index].returncode
        if code not in (0, STOPPED) and ended not in (0, STOPPED, -signal.SIGKILL, -signal.SIGTERM):
            output.seek(0)
            last = [line for line in output.read().splitlines() if line.strip()][-5:]
            print(f'lmx: process {index} ended with exit code {ended}:', *last, sep='\n  ', file=sys.stderr, flush=True)
        output.close()
    return code


def _watch(running: Sequence[subprocess.Popen[bytes]], asked: list[int]) -> int:
    told, failed, deadline = False, None, None
    while any(process.poll() is None for process in running):
        if asked and not told:
            told = True
            for process in running:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
        codes = [process.poll() for process in running]
        ended = [code for code in codes if code not in (None, 0, STOPPED)]
        if ended and failed is None:
            failed = next((code for code in ended if code is not None and code > 0), 128 - ended[0])
        if deadline is None and (failed is not None or any(code == STOPPED for code in codes)):
            deadline = time.monotonic() + (5.0 if failed is not None else GRACE)
        if deadline is not None and time.monotonic() > deadline:
            for process in running:
                process.kill()
        time.sleep(0.05)
    codes = [process.returncode for process in running]
    if failed is None:
        failed = next((128 - code if code < 0 else code for code in codes if code not in (0, STOPPED)), None)
    return failed if failed is not None else STOPPED if STOPPED in codes else 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]
