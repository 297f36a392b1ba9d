"""Kubernetes: what is rendered is valid, and says what a job needs."""

import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

from lmx.launch import kubernetes
from lmx.types import BadInput

ASKED = {'name': 'moe', 'image': 'registry/lmx:1', 'claim': 'runs', 'resources': {'nvidia.com/gpu': '8'}, 'node_selector': {'pool': 'h100'}}
COMMAND = ['train', '--config=configs/gpt_lm1b.py', '--workdir=/runs/moe']
VERSION = kubernetes_validate.latest_version()


def rendered(**asked):
    return list(yaml.safe_load_all(kubernetes.render(kubernetes.manifests(COMMAND, **{**ASKED, **asked}))))


def test_service_and_job_are_valid():
    for document in rendered(processes=4, jobset=False):
        kubernetes_validate.validate(document, VERSION, strict=True)
    service, jobset = rendered(processes=4)
    kubernetes_validate.validate(service, VERSION, strict=True)
    (workers,) = jobset['spec']['replicatedJobs']
    job = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'moe'}, **workers['template']}
    kubernetes_validate.validate(job, VERSION, strict=True)


def test_the_validator_would_say_so():
    _, job = rendered(processes=4, jobset=False)
    job['spec']['completion'] = 4
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSION, strict=True)


def test_processes_meet_and_exit_codes_mean_what_they_mean_elsewhere():
    _, jobset = rendered(processes=4)
    (workers,) = jobset['spec']['replicatedJobs']
    job = workers['template']['spec']
    pod = job['template']['spec']
    (container,) = pod['containers']
    assert container['command'][:2] == ['lmx', 'train']
    assert container['command'][-3:] == ['--coordinator=moe-workers-0-0.moe:8476', '--processes=4', '--process=$(JOB_COMPLETION_INDEX)']
    assert container['resources'] == {'limits': {'nvidia.com/gpu': '8'}}
    assert pod['volumes'][0]['persistentVolumeClaim'] == {'claimName': 'runs'}
    assert pod['nodeSelector'] == {'pool': 'h100'}
    rules = {rule['action'] + str(rule.get('onExitCodes', {}).get('values', '')) for rule in job['podFailurePolicy']['rules']}
    assert rules == {'FailJob[2]', 'Ignore[75]', 'Ignore'}
    assert jobset['spec']['failurePolicy']['maxRestarts'] == 3
    (_, job) = rendered(processes=4, jobset=False)
    assert '--coordinator=moe-0.moe:8476' in job['spec']['template']['spec']['containers'][0]['command']
    (_, job) = rendered(jobset=False)
    assert not any('--process' in word for word in job['spec']['template']['spec']['containers'][0]['command'])


@pytest.mark.parametrize(
    ('asked', 'says'),
    [
        ({'name': 'My_Job'}, 'small letters, digits and dashes'),
        ({'processes': 0}, '--processes=0 must be at least 1'),
        ({'mount': '/data'}, 'the workdir is not on the volume that is mounted at /data; give --workdir=/data/NAME'),
    ],
)
def test_what_cannot_be(asked, says):
    with pytest.raises(BadInput, match=says):
        rendered(**asked)


def test_the_command_prints_it(root):
    launch = ['launch', 'kubernetes', '--image=i', '--processes=2', '--resource=google.com/tpu=4', '--node_label=a/b=c', '--']
    done = subprocess.run([sys.executable, '-m', 'lmx.cli', *launch, *COMMAND], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    service, jobset = yaml.safe_load_all(done.stdout)
    assert service['metadata']['name'] == 'moe'  # the workdir's
    (workers,) = jobset['spec']['replicatedJobs']
    pod = workers['template']['spec']['template']['spec']
    assert pod['containers'][0]['resources'] == {'limits': {'google.com/tpu': '4'}}
    assert pod['nodeSelector'] == {'a/b': 'c'}
