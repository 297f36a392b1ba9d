"""A job of many processes: who they are, how they meet, and what they do together.

Every process runs the same command. Process 0 waits for the others at the coordinator's address, compares what they run, and then lets
JAX connect them; so that a process that is missing or different is named, where JAX would end all of them with a stack trace.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lmx.types import BadInput

T = TypeVar('T')
MESSAGE = 1 << 16  # bytes of a message, at most


@dataclasses.dataclass(frozen=True)
class Job:
    """Process `process` of `processes`, which meet at `coordinator` (host:port); JAX finds all three where they are None.

    `devices`: the local GPUs that this process may use; None = all that it sees.
    """

    source: str
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    devices: tuple[int, ...] | None = None


def find(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> Job | None:
    """The job that this process belongs to, from flags or what Slurm, Open MPI or a TPU slice say in the environment; None = it is alone.

    Raises:
      BadInput: flags that do not go together.
    """
    given = {'--coordinator': coordinator, '--processes': processes, '--process': process}
    if any(value is not None for value in given.values()):
        missing = [name for name, value in given.items() if value is None]
        if missing:
            raise BadInput(f'{", ".join(missing)} is missing; a job of many processes needs {", ".join(given)}')
        if not 0 <= process < processes or ':' not in coordinator:  # type: ignore[operator]
            raise BadInput(
                f'--coordinator={coordinator} --processes={processes} --process={process}: give HOST:PORT and 0 <= process < processes'
            )
        return Job('flags', coordinator, processes, process) if processes != 1 else None
    env = os.environ
    if int(env.get('SLURM_STEP_NUM_TASKS', '1')) > 1:
        return _slurm(env)
    if int(env.get('OMPI_COMM_WORLD_SIZE', '1')) > 1:
        return Job('Open MPI')
    if len(env.get('TPU_WORKER_HOSTNAMES', '').split(',')) > 1:
        return Job('TPU metadata')
    return None


def _slurm(env: Mapping[str, str]) -> Job:
    """What srun says of this step. Node names need not resolve: Slurm knows their addresses."""
    names = subprocess.run(['scontrol', 'show', 'hostnames', env['SLURM_STEP_NODELIST']], capture_output=True, text=True).stdout.split()
    first = names[0] if names else env['SLURM_STEP_NODELIST'].split(',')[0]
    try:
        socket.getaddrinfo(first, None)
    except OSError:
        told = subprocess.run(['scontrol', 'show', 'node', first], capture_output=True, text=True).stdout
        first = next((word.partition('=')[2] for word in told.split() if word.startswith('NodeAddr=')), first)
    port = 20_000 + (int(env['SLURM_JOB_ID']) * 100 + int(env.get('SLURM_STEP_ID', '0')) % 100) % 10_000
    visible = [each for each in env.get('CUDA_VISIBLE_DEVICES', '').split(',') if each]
    tasks = int(env.get('SLURM_STEP_TASKS_PER_NODE', '1').partition('(')[0].partition(',')[0])
    own = (int(env['SLURM_LOCALID']),) if len(visible) == tasks > 1 else None  # a process per GPU, each of which sees all
    return Job('Slurm', f'{first}:{port}', int(env['SLURM_STEP_NUM_TASKS']), int(env['SLURM_PROCID']), own)


def join(job: Job | None, run: str, timeout: float = 300) -> None:
    """Connects this process with the others of its job.

    Args:
      run: what must be equal in all of them, such as the config as JSON.
      timeout: seconds to wait for all.

    Raises:
      BadInput: somebody does not come in time, or runs something else. The message is the same in all processes that are there.
    """
    if job is None:
        return
    import jax

    started: dict[str, Any] = {'initialization_timeout': max(int(timeout), 1)}
    if job.coordinator is not None:
        meet(job, {'run': run, **_versions()}, timeout)
        started |= {
            'coordinator_address': job.coordinator,
            'coordinator_bind_address': job.coordinator,
            'num_processes': job.processes,
            'process_id': job.process,
            'local_device_ids': job.devices,
            'cluster_detection_method': 'deactivate',
        }
    jax.distributed.initialize(**started)


def _versions() -> dict[str, str]:
    import jax
    import jaxlib

    import lmx

    return {'lmx': lmx.__version__, 'jax': jax.__version__, 'jaxlib': jaxlib.__version__}


def meet(job: Job, facts: Mapping[str, str], timeout: float) -> None:
    """Returns when every process of the job is there with the same facts; see `join`."""
    assert job.coordinator is not None
    assert job.processes is not None
    host, _, port = job.coordinator.rpartition(':')
    hashed = {name: hashlib.blake2b(value.encode(), digest_size=8).hexdigest() if name == 'run' else value for name, value in facts.items()}
    deadline = time.monotonic() + timeout
    said = (
        _gather(host, int(port), job.processes, hashed, deadline, timeout)
        if job.process == 0
        else _report(job, host, int(port), hashed, deadline, timeout)
    )
    if said:
        raise BadInput(said)


def _gather(host: str, port: int, processes: int, facts: Mapping[str, str], deadline: float, timeout: float) -> str:
    """Process 0's part: hears all others, and tells them what it says itself; '' = go on."""
    found: dict[int, socket.socket] = {}
    said = ''
    with contextlib.ExitStack() as opened:
        server = opened.enter_context(socket.socket())
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((host, port))
        except OSError as error:
            raise BadInput(
                f'process 0 cannot listen at the coordinator {host}:{port} ({error.strerror}); give another --coordinator'
            ) from None
        server.listen(processes)
        while len(found) < processes - 1:
            try:
                server.settimeout(max(deadline - time.monotonic(), 0.01))
                peer = opened.enter_context(server.accept()[0])
                peer.settimeout(max(deadline - time.monotonic(), 0.01))
                hello = json.loads(_line(peer))
                index = int(hello['process'])
            except TimeoutError:
                absent = ', '.join(str(index) for index in range(1, processes) if index not in found)
                late = f'process 0 waited {timeout:.0f} s at {host}:{port} and process {absent} of {processes} did not come; see their logs'
                said = said or late
                break
            except (ValueError, LookupError, TypeError, OSError):
                continue  # somebody else's connection
            twice = f'two processes say that they are process {index} of {processes}; give each its own --process' if index in found else ''
            found[index] = peer
            said = said or twice or _difference(index, processes, hello, facts)
            if said:  # time for the others to come and hear it
                deadline = min(deadline, time.monotonic() + 5)
        for peer in found.values():
            peer.sendall(json.dumps({'said': said}).encode() + b'\n')
    return said


def _report(job: Job, host: str, port: int, facts: Mapping[str, str], deadline: float, timeout: float) -> str:
    """The part of the others: tells process 0 what they run, and hears whether to go on."""
    reason: Any = 'no answer'
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), timeout=max(deadline - time.monotonic(), 0.01)) as peer:
                peer.sendall(json.dumps({'process': job.process, 'processes': job.processes, **facts}).encode() + b'\n')
                peer.settimeout(max(deadline - time.monotonic(), 0.01) + 10)  # process 0 waits as long for the others, and then says so
                answer = _line(peer)
            if answer:
                return json.loads(answer)['said']
        except OSError as error:
            reason = error.strerror or error
        time.sleep(0.1)
    return f'process {job.process} of {job.processes} waited {timeout:.0f} s for the coordinator {host}:{port} ({reason}); is process 0 running there?'


def _line(peer: socket.socket) -> bytes:
    data = b''
    while not data.endswith(b'\n') and len(data) < MESSAGE:
        part = peer.recv(4096)
        if not part:
            break
        data += part
    return data


def _difference(index: int, processes: int, hello: Mapping[str, Any], facts: Mapping[str, str]) -> str:
    if hello.get('processes') != processes:
        return f'process {index} says that there are {hello.get("processes")} processes and process 0 that there are {processes}'
    for name, value in facts.items():
        if hello.get(name) != value:
            what = 'another config' if name == 'run' else f'{name} {hello.get(name)}'
            return f'process {index} runs {what} and process 0 {value if name != "run" else "its own"}; start all with the same command and code'
    return ''


# -- together


def main() -> bool:
    """Whether this process writes what is written once."""
    import jax

    return jax.process_index() == 0


def first(function: Callable[[], T]) -> T | None:
    """Calls a function in process 0 while the others wait; its BadInput is raised in all. None in the others."""
    import jax

    if jax.process_count() == 1:
        return function()
    out, said = None, ''
    if jax.process_index() == 0:
        try:
            out = function()
        except BadInput as error:
            said = str(error)
    said = broadcast(said)
    if said:
        raise BadInput(said)
    return out


def broadcast(text: str) -> str:
    """Process 0's text, in all processes."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return text
    data = np.frombuffer(text.encode()[:MESSAGE].ljust(MESSAGE, b'\0'), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(data))).rstrip(b'\0').decode()


def barrier(name: str) -> None:
    """Returns when all processes are here."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def add_hashes(digits: str) -> str:
    """The sum of all processes' `lmx.data.pipeline.batch_hash`."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return digits
    halves = np.array([int(digits[:8], 16), int(digits[8:], 16)], np.uint32)  # JAX has no 64-bit integers by default
    total = sum(int(high) << 32 | int(low) for high, low in np.asarray(multihost_utils.process_allgather(halves)))
    return f'{total % (1 << 64):016x}'


def spread(seconds: float) -> dict[str, float]:
    """Of a time that every process took: the least and the most, and whose the most was; {} where there is one process."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return {}
    every = np.asarray(multihost_utils.process_allgather(np.float32(seconds)))
    return {'step_seconds_min': float(every.min()), 'step_seconds_max': float(every.max()), 'slowest_process': int(every.argmax())}


def asked_to_stop(step: int) -> bool:
    """Whether some process got SIGTERM and this is the step at which all stop; all ask at every step."""
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)
