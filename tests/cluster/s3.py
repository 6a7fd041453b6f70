"""A real S3 server as a pod, and a way to it from this machine."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.urls import open_store
from tests.cluster.images import S3_SERVER
from tests.cluster.kubectl import apply, kubectl

BUCKET = "e2e"
IMAGE = os.environ.get("CPMBEE_S3_IMAGE", S3_SERVER)
PORT = 8333
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "e2e-key", "AWS_SECRET_ACCESS_KEY": "e2e-secret-0451"}
LIMITED = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "reader-secret-0451"}
"""These may read and list, nothing else."""


def start(namespace: str) -> str:
    """The server's address for pods, once it answers."""
    everything = ["Admin", "Read", "Write", "List", "Tagging"]
    identities = [_identity(CREDENTIALS, everything), _identity(LIMITED, ["Read", "List"])]
    arguments = ["-logtostderr=true", "server", "-dir=/data", "-ip=127.0.0.1", "-ip.bind=0.0.0.0", "-filer=true"]
    arguments += [
        "-s3=true",
        f"-s3.port={PORT}",
        "-s3.config=/config/s3.json",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
    arguments += [
        "-master.telemetry=false",
        "-master.electionTimeout=1s",
        "-volume.max=0",
        "-master.volumeSizeLimitMB=256",
    ]
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "s3",
        "image": IMAGE,
        "command": ["/weed", *arguments],
        "securityContext": security,
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
        "volumeMounts": [
            {"name": "data", "mountPath": "/data"},
            {"name": "data", "mountPath": "/tmp"},
            {"name": "config", "mountPath": "/config"},
        ],
    }
    volumes = [{"name": "data", "emptyDir": {}}, {"name": "config", "secret": {"secretName": "s3"}}]
    metadata = {"name": "s3", "namespace": namespace, "labels": {"app": "s3"}}
    spec = {"containers": [container], "volumes": volumes, "securityContext": {"fsGroup": 65532}}
    apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata,
            "stringData": {"s3.json": json.dumps({"identities": identities})},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": {"app": "s3"}, "ports": [{"port": PORT}]},
        },
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec},
    )
    kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/s3", "--timeout=120s")
    return f"http://s3.{namespace}.svc:{PORT}"


@contextmanager
def forwarded(namespace: str) -> Iterator[str]:
    """The server's address for this machine, with the bucket in it."""
    command = ["kubectl", "port-forward", "-n", namespace, "pod/s3", f":{PORT}"]
    forward = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert forward.stdout is not None
        line = forward.stdout.readline()
        match = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert match, f"kubectl port-forward said {line!r}"
        yield f"http://127.0.0.1:{match[1]}"
    finally:
        forward.terminate()
        forward.wait()


def make_bucket(endpoint_url: str) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=BUCKET)
    store = open_store(f"s3://{BUCKET}", StorageSpec(endpoint_url=endpoint_url))
    store.put(".ready", b"ready")


def _identity(keys: dict[str, str], actions: list[str]) -> dict[str, object]:
    key, secret = keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"]
    return {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
