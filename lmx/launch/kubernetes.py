"""Jobs on Kubernetes: a headless Service and an Indexed Job, inside a JobSet where the cluster has them. Rendered, for `kubectl apply -f`.

Every pod is a process and finds process 0 by its DNS name. A pod that exits with 75 (stopped, with a checkpoint) or is evicted is made anew
and costs nothing; bad input (2) ends the job; any other failure starts all again, a bounded number of times.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lmx.types import BadInput

PORT = 8476


def manifests(
    command: Sequence[str],
    *,
    name: str,
    image: str,
    processes: int = 1,
    claim: str | None = None,
    mount: str = '/runs',
    resources: Mapping[str, str] | None = None,
    node_selector: Mapping[str, str] | None = None,
    restarts: int = 3,
    jobset: bool = True,
) -> list[dict[str, Any]]:
    """The Service and the JobSet, or the Service and the Job, of one training.

    Args:
      command: of lmx, such as ('train', '--config=...', '--workdir=/runs/a').
      name: of the job, and of its Service.
      image: with lmx in it, and the code of the config.
      processes: pods; each uses all accelerators that it is given.
      claim: the persistent volume claim that holds the workdir, mounted at `mount` in every pod.
      resources: of a pod, {'nvidia.com/gpu': '8'}, {'google.com/tpu': '4'}, {'memory': '64Gi'}, ...
      node_selector: labels that a node must have, such as {'cloud.google.com/gke-tpu-topology': '4x4'}.
      restarts: how often all pods start again after a failure.
      jobset: wrap the Job in a JobSet (jobset.x-k8s.io), which starts all pods again when one fails; without, the others end by
        themselves when they miss it, and their pods are made anew.

    Raises:
      BadInput: a name that DNS does not allow, no process, a workdir that is not on the volume.
    """
    if not re.fullmatch(r'[a-z]([a-z0-9-]{0,38}[a-z0-9])?', name):
        raise BadInput(f'--name={name} must be up to 40 small letters, digits and dashes, begin with a letter and not end in a dash')
    if processes < 1:
        raise BadInput(f'--processes={processes} must be at least 1')
    if claim and not any(word.startswith(f'--workdir={mount.rstrip("/")}/') for word in command):
        raise BadInput(f'the workdir is not on the volume that is mounted at {mount}; give --workdir={mount.rstrip("/")}/NAME')
    first = f'{name}-workers-0-0' if jobset else f'{name}-0'
    meet = (
        [f'--coordinator={first}.{name}:{PORT}', f'--processes={processes}', '--process=$(JOB_COMPLETION_INDEX)'] if processes > 1 else []
    )
    container: dict[str, Any] = {
        'name': 'lmx',
        'image': image,
        'command': ['lmx', *command, *meet],
        'ports': [{'containerPort': PORT}],
        'resources': {'limits': dict(resources)} if resources else {},
    }
    pod: dict[str, Any] = {
        'restartPolicy': 'Never',
        'subdomain': name,
        'terminationGracePeriodSeconds': 120,  # between SIGTERM and SIGKILL: time to write a checkpoint
        'containers': [container],
    }
    if node_selector:
        pod['nodeSelector'] = dict(node_selector)
    if claim:
        container['volumeMounts'] = [{'name': 'runs', 'mountPath': mount}]
        pod['volumes'] = [{'name': 'runs', 'persistentVolumeClaim': {'claimName': claim}}]
    exits = lambda action, *codes: {'action': action, 'onExitCodes': {'containerName': 'lmx', 'operator': 'In', 'values': list(codes)}}  # noqa: E731
    evicted = {'action': 'Ignore', 'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}]}
    job = {
        'completions': processes,
        'parallelism': processes,
        'completionMode': 'Indexed',
        'backoffLimit': 0 if jobset else restarts * processes,
        'podFailurePolicy': {'rules': [exits('FailJob', 2), exits('Ignore', 75), evicted]},
        'template': {'metadata': {'labels': {'app': name}}, 'spec': pod},
    }
    service = {
        'apiVersion': 'v1',
        'kind': 'Service',
        'metadata': {'name': name},
        # Names before pods are ready: they wait for each other.
        'spec': {'clusterIP': 'None', 'publishNotReadyAddresses': True, 'selector': {'app': name}, 'ports': [{'port': PORT}]},
    }
    if not jobset:
        return [service, {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': name}, 'spec': job}]
    never_again = {'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}
    spec = {
        'network': {'enableDNSHostnames': True, 'subdomain': name},
        'failurePolicy': {'maxRestarts': restarts, 'rules': [never_again]},
        'replicatedJobs': [{'name': 'workers', 'replicas': 1, 'template': {'spec': job}}],
    }
    return [service, {'apiVersion': 'jobset.x-k8s.io/v1alpha2', 'kind': 'JobSet', 'metadata': {'name': name}, 'spec': spec}]


def render(documents: Sequence[Mapping[str, Any]]) -> str:
    """As YAML."""
    return yaml.safe_dump_all(documents, sort_keys=False, width=140)
