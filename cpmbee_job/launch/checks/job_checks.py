"""Checks of `doctor` for one job: its spec, whether the API server accepts it, and the objects that it names."""

import ipaddress
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from cpmbee_job.errors import ClusterError, NotFoundError
from cpmbee_job.launch.checks.check_result import CheckResult, from_error
from cpmbee_job.launch.checks.server_check import PRIORITY_CLASS_KEY, SERVICE_ACCOUNT_KEY, dry_run
from cpmbee_job.launch.kube.fields import object_at, objects_at, text_at
from cpmbee_job.launch.kube.protocol import CLAIMS, CONFIG_MAPS, SECRETS, Cluster, Object
from cpmbee_job.launch.manifest.render import remarks
from cpmbee_job.spec import JobSpec

S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_KINDS = {SECRETS: "Secret", CONFIG_MAPS: "ConfigMap", CLAIMS: "PersistentVolumeClaim"}
_CREATE = "create it, or name another one"


def check_image(spec: JobSpec) -> Iterator[CheckResult]:
    """Check the name of the image. A missing one is reported by rendering."""
    if spec.image is None:
        return
    found = remarks(spec)
    for remark in found:
        yield CheckResult("image", "warning", remark)
    if not found:
        yield CheckResult("image", "ok", f"{spec.image} (not pulled by this check)")


def check_endpoint(spec: JobSpec) -> Iterator[CheckResult]:
    """Check that pods reach the same object store as this machine, and have credentials for it."""
    storage = spec.storage
    host = urlsplit(storage.endpoint_url or "").hostname
    here = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if host is not None and _is_loopback(host):
        hint = "set storage.endpoint_url to the address for pods, launcher_endpoint_url to the one for this machine"
        yield CheckResult("endpoint", "problem", f"{storage.endpoint_url}: in a pod this is the pod itself", hint)
    elif storage.endpoint_url is None and here is not None:
        detail = f"AWS_ENDPOINT_URL is {here} on this machine, but pods would use AWS"
        yield CheckResult("endpoint", "problem", detail, "set storage.endpoint_url")
    else:
        yield CheckResult("endpoint", "ok", f"pods use {storage.endpoint_url or 'AWS'}")
    if storage.ca_bundle is not None and storage.ca_config_map is None:
        hint = "create a ConfigMap with ca.crt, and name it in storage.ca_config_map"
        yield CheckResult("CA", "warning", "storage.ca_bundle is a file of this machine, which pods do not have", hint)
    if storage.secret is None and storage.service_account is None:
        hint = "set storage.secret or storage.service_account, unless the nodes have a role"
        yield CheckResult("credentials", "warning", "the spec gives pods no credentials for the object store", hint)


def check_job(cluster: Cluster, spec: JobSpec, manifest: Object) -> Iterator[CheckResult]:
    """Check by dry runs that the API server accepts the job, and that its service account and priority class exist."""
    answer = dry_run(cluster, spec, manifest)
    for key, message in answer.objections:
        yield CheckResult("job", "problem", f"{key}: {message}" if key else message)
    for key, message in answer.missing:  # (quotas have a check of their own)
        yield CheckResult(key or "job", "problem", message, _CREATE if key else None)
    for message in answer.not_permitted:
        yield CheckResult("job", "not_permitted", message)
    for message in answer.warnings:
        yield CheckResult("job", "warning", message)
    if not answer.objections and not answer.missing:
        limit = ", as far as it was checked" if answer.not_permitted else ""
        yield CheckResult("job", "ok", f"the API server would accept it{limit}")
    if answer.objections or answer.not_permitted:
        return  # then the server may not have looked for these
    named = {SERVICE_ACCOUNT_KEY: spec.storage.service_account, PRIORITY_CLASS_KEY: spec.cluster.priority_class}
    for key, name in named.items():
        if name is not None and key not in {key for key, _ in answer.missing}:
            yield CheckResult(key, "ok", f"{name} exists")


def check_names(cluster: Cluster, spec: JobSpec) -> Iterator[CheckResult]:
    """Check the Secrets, the ConfigMap and the claim that the spec names. Of Secrets only metadata is read."""
    secrets = {"storage.secret": spec.storage.secret}
    secrets |= {f"cluster.image_pull_secrets.{i}": name for i, name in enumerate(spec.cluster.image_pull_secrets)}
    for key, name in secrets.items():
        if name is not None:
            yield _check_object(cluster, key, SECRETS, name)
    if spec.storage.ca_config_map is not None:
        yield _check_object(cluster, "storage.ca_config_map", CONFIG_MAPS, spec.storage.ca_config_map)
    if spec.cluster.cache_claim is not None:
        yield _check_object(cluster, "cluster.cache_claim", CLAIMS, spec.cluster.cache_claim, spec.workers.count)


def _check_object(cluster: Cluster, key: str, kind: str, name: str, num_pods: int = 1) -> CheckResult:
    try:
        found = cluster.get_metadata(kind, name) if kind == SECRETS else cluster.get(kind, name)
    except NotFoundError:
        hint = _CREATE
        if key == "storage.secret":
            literals = " ".join(f"--from-literal={variable}=..." for variable in S3_KEYS)
            hint = f"kubectl -n {cluster.namespace} create secret generic {name} {literals}"
        return CheckResult(key, "problem", f"{_KINDS[kind]} {name} does not exist in {cluster.namespace}", hint)
    except ClusterError as error:
        return from_error(key, error)
    if kind == SECRETS:
        return _check_secret(key, name, found)
    return _check_config_map(key, name, found) if kind == CONFIG_MAPS else _check_claim(key, name, found, num_pods)


def _check_secret(key: str, name: str, found: Object) -> CheckResult:
    """Check the Secret's keys without reading its values: `managedFields` in the metadata names them."""
    keys = {
        field.removeprefix("f:")
        for entry in objects_at(found, "metadata", "managedFields")
        for place in ("f:data", "f:stringData")
        for field in object_at(entry, "fieldsV1", place)
        if field.startswith("f:")
    }
    missing = [variable for variable in S3_KEYS if variable not in keys]
    if key != "storage.secret" or not missing:
        return CheckResult(key, "ok", f"{name} exists" + (f", with {', '.join(sorted(keys))}" if keys else ""))
    if not keys:
        return CheckResult(key, "ok", f"{name} exists; its keys are unknown, because its values are not read")
    detail = f"{name} has {', '.join(sorted(keys))}, but no {', '.join(missing)}"
    return CheckResult(key, "problem", detail, f"use the keys {' and '.join(S3_KEYS)}")


def _check_config_map(key: str, name: str, found: Object) -> CheckResult:
    if "ca.crt" not in object_at(found, "data"):
        hint = "kubectl create configmap --from-file=ca.crt=FILE"
        return CheckResult(key, "problem", f"{name} has no key ca.crt", hint)
    return CheckResult(key, "ok", f"{name} exists, with ca.crt")


def _check_claim(key: str, name: str, found: Object, num_pods: int) -> CheckResult:
    phase, modes = text_at(found, "status", "phase"), (object_at(found, "spec").get("accessModes") or ())
    if phase == "Lost":
        return CheckResult(key, "problem", f"{name} is Lost: its volume does not exist", "create another claim")
    if num_pods > 1 and "ReadWriteMany" not in modes:
        detail = f"{name} has {', '.join(modes)}: pods on several nodes cannot share it"
        return CheckResult(key, "warning", detail, "use a claim with ReadWriteMany, or none")
    return CheckResult(key, "ok", f"{name} exists, {phase}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
