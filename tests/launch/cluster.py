"""A Slurm of this machine's own, without systemd: munged, slurmctld and two slurmds with a node each, all on 127.0.0.1."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

NEEDS = ('slurmctld', 'slurmd', 'sbatch', 'srun', 'munged')
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=2
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=1
PartitionName=low Nodes=n0,n1 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60 PreemptMode=REQUEUE
PartitionName=high Nodes=n0,n1 MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Why there can be no cluster here; '' = there can."""
    absent = [name for name in NEEDS if shutil.which(name) is None]
    if absent:
        return f'{", ".join(absent)} not installed'
    return '' if os.geteuid() == 0 else 'the daemons are started as root'


@contextlib.contextmanager
def slurm(folder: pathlib.Path) -> Iterator[None]:
    """Slurm's commands of this process and its children speak to this cluster, as long as it lasts."""
    ports = [_free_port() for _ in range(3)]
    (folder / 'state').mkdir()
    names = dict(zip(('control', 'first', 'second'), ports))
    (folder / 'slurm.conf').write_text(CONF.format(host=socket.gethostname().split('.')[0], folder=folder, **names))
    (folder / 'munge.key').write_bytes(os.urandom(128))
    for path, mode in ((folder, 0o755), (folder / 'munge.key', 0o600)):
        path.chmod(mode)
    before, started = os.environ.get('SLURM_CONF'), []
    os.environ['SLURM_CONF'] = str(folder / 'slurm.conf')
    files = {name: f'--{name}-file={folder}/munge.{name}' for name in ('key', 'pid', 'log', 'seed')}
    try:
        munged = ['munged', '--foreground', '--force', f'--socket={folder}/munge.socket', *files.values()]
        for command in (munged, ['slurmctld', '-D', '-c'], ['slurmd', '-D', '-N', 'n0'], ['slurmd', '-D', '-N', 'n1']):
            log = open(folder / f'daemon-{len(started)}.out', 'w')  # noqa: SIM115
            started.append((subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT), log))
            time.sleep(0.5)
        deadline = time.monotonic() + 60
        while len(_out('sinfo', '-h', '-N', '-p', 'low', '-t', 'idle')) < 2:
            assert time.monotonic() < deadline, (folder / 'slurmctld.log').read_text()[-2000:]
            time.sleep(0.2)
        yield
    finally:
        subprocess.run(['scancel', '--user=root', '--full'], capture_output=True)
        time.sleep(0.5)
        for process, log in reversed(started):
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            log.close()
        os.environ.pop('SLURM_CONF')
        if before is not None:
            os.environ['SLURM_CONF'] = before


def state(job: int | str) -> str:
    """'PENDING', 'RUNNING', 'COMPLETED', ..., as long as the controller remembers the job."""
    words = shown(job)
    return next((word.partition('=')[2] for word in words if word.startswith('JobState=')), '')


def shown(job: int | str) -> list[str]:
    """What the controller says of a job, or of 'ARRAY_INDEX': KEY=VALUE."""
    return ' '.join(_out('scontrol', 'show', 'job', str(job))).split()


def restarts(job: int | str) -> int:
    words = shown(job)
    return int(next((word.partition('=')[2] for word in words if word.startswith('Restarts=')), '0'))


def _out(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]
