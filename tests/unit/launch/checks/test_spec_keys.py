"""A path in the manifest is translated to the key of the spec that it comes from."""

import pytest

from cpmbee_job.launch.checks.server_check import template_of
from cpmbee_job.launch.checks.spec_keys import spec_key
from cpmbee_job.launch.manifest.render import render
from cpmbee_job.spec import parse_spec

JOB = """\
name: a
image: registry.example/train:1
model: s3://m/
data: {train: s3://d/}
output: s3://o/
workers: {gpus: 1, resources: {rdma/hca: 1}}
storage: {secret: s3, ca_config_map: ca}
cluster:
  env: {NCCL_DEBUG: INFO}
  cache_claim: cache
  image_pull_secrets: [registry]
  tolerations: [{key: gpu, operator: Exists}]
  pod_overlay:
    metadata: {labels: {team: nlp}}
    spec:
      hostAliases: [{ip: 10.0.0.1, hostnames: [s3]}]
      containers: [{name: pytorch, env: [{name: EXTRA, value: "1"}], stdin: true}]
"""
SPEC = parse_spec(JOB, source="job.yaml")
TEMPLATE = template_of(render(SPEC, "r1"))
VARIABLES = [variable["name"] for variable in TEMPLATE["spec"]["containers"][0]["env"]]


def env(name):
    return f"spec.containers[0].env[{VARIABLES.index(name)}].value"


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("spec.tolerations[0].operator", "cluster.tolerations.0.operator"),
        ("spec.imagePullSecrets[0].name", "cluster.image_pull_secrets.0"),
        ("spec.containers[0].resources.limits[cpu]", "workers.cpu"),
        ("spec.initContainers[0].resources.requests.memory", "workers.memory"),
        ("spec.containers[0].resources.limits[nvidia.com/gpu]", "workers.gpus"),
        ("spec.containers[0].resources.limits.nvidia.com/gpu", "workers.gpus"),
        ("spec.containers[0].resources.limits[rdma/hca]", "workers.resources.rdma/hca"),
        ("spec.containers[0].image", "image"),
        (env("NCCL_DEBUG"), "cluster.env.NCCL_DEBUG"),
        (env("AWS_ACCESS_KEY_ID"), "storage.secret"),
        ("spec.volumes[2].emptyDir.sizeLimit", "workers.shared_memory"),
        ("spec.volumes[1].persistentVolumeClaim.claimName", "cluster.cache_claim"),
        ("spec.terminationGracePeriodSeconds", "cluster.grace_period"),
        ("metadata.annotations", "cluster.annotations"),
        ("spec.hostAliases[0].ip", "cluster.pod_overlay.spec.hostAliases.0.ip"),
        ("spec.containers[0].stdin", "cluster.pod_overlay.spec.containers.0.stdin"),
        (env("EXTRA"), "cluster.pod_overlay.spec.containers.0.env.0.value"),
        ("metadata.labels", "cluster.pod_overlay.metadata.labels"),
        ("spec.dnsPolicy", "spec.dnsPolicy"),
    ],
)
def test_translates_a_path_in_a_pod(path, key):
    assert spec_key(path, SPEC, TEMPLATE, in_pod=True) == key


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("spec.pytorchReplicaSpecs[Worker].template.spec.tolerations[0].key", "cluster.tolerations.0.key"),
        ("spec.pytorchReplicaSpecs.Worker.template.spec.affinity", "cluster.affinity"),
        ("spec.pytorchReplicaSpecs.Worker.replicas", "workers.count"),
        ("spec.elasticPolicy.minReplicas", "workers.min"),
        ("spec.runPolicy.ttlSecondsAfterFinished", "cluster.ttl"),
        ("metadata.name", "name"),
        ("spec.elasticPolicy.rdzvBackend", "spec.elasticPolicy.rdzvBackend"),
    ],
)
def test_translates_a_path_in_the_job(path, key):
    assert spec_key(path, SPEC, TEMPLATE) == key
