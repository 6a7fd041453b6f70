"""What the doctor looks at for one job: what its spec says of itself, whether the server takes it, what it names."""

import ipaddress
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from cpmbee_job.errors import ClusterError, NotFoundError
from cpmbee_job.launch.checks.findings import Finding, as_finding
from cpmbee_job.launch.checks.server_check import PRIORITY_CLASS_KEY, SERVICE_ACCOUNT_KEY, dry_run
from cpmbee_job.launch.kube.fields import part, parts, text
from cpmbee_job.launch.kube.protocol import CLAIMS, CONFIG_MAPS, SECRETS, Cluster, Object
from cpmbee_job.launch.manifest.render import remarks
from cpmbee_job.spec import JobSpec

S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def check_image(spec: JobSpec) -> Iterator[Finding]:
    if spec.image is None:
        return  # the manifest can't be rendered then, which says so
    for remark in remarks(spec):
        yield Finding("image", "warning", remark)
    if not remarks(spec):
        yield Finding("image", "ok", f"{spec.image} (whether it can be pulled shows on the nodes)")


def check_endpoint(spec: JobSpec) -> Iterator[Finding]:
    """Whether pods can mean the same store as this machine, and with which credentials."""
    storage = spec.storage
    host = urlsplit(storage.endpoint_url or "").hostname
    if host is not None and _is_loopback(host):
        hint = "storage.endpoint_url is the address that pods use, launcher_endpoint_url the one of this machine"
        yield Finding("endpoint", "problem", f"{storage.endpoint_url}: to a pod that is the pod itself", hint)
    elif storage.endpoint_url is None and (elsewhere := _endpoint_here()) is not None:
        hint = "set storage.endpoint_url"
        yield Finding("endpoint", "problem", f"AWS_ENDPOINT_URL is {elsewhere} here; pods would go to AWS", hint)
    else:
        yield Finding("endpoint", "ok", f"pods use {storage.endpoint_url or 'AWS'}")
    if storage.ca_bundle is not None and storage.ca_config_map is None:
        hint = "a ConfigMap with ca.crt, and its name as storage.ca_config_map"
        yield Finding("CA", "warning", "storage.ca_bundle is a file of this machine; pods do not have it", hint)
    if storage.secret is None and storage.service_account is None:
        hint = "storage.secret or storage.service_account, unless the nodes have a role"
        yield Finding("credentials", "warning", "the spec gives pods none for the store", hint)


def check_job(cluster: Cluster, spec: JobSpec, manifest: Object) -> Iterator[Finding]:
    """What CRD, webhook and admission say, and whether service account and priority class are there."""
    verdict = dry_run(cluster, spec, manifest)
    for key, words in verdict.objections:
        yield Finding("job", "problem", f"{key}: {words}" if key else words)
    for key, words in verdict.missing:  # what quotas lack, their own check says
        yield Finding(key or "job", "problem", words, "create it, or name another one" if key else None)
    for words in verdict.not_permitted:
        yield Finding("job", "not_permitted", words)
    for words in verdict.warnings:
        yield Finding("job", "warning", words)
    if not verdict.objections and not verdict.missing:
        what = "the PyTorchJob, as far as it was looked at," if verdict.not_permitted else "it"
        yield Finding("job", "ok", f"the server would accept {what}".rstrip(","))
    named = {SERVICE_ACCOUNT_KEY: spec.storage.service_account, PRIORITY_CLASS_KEY: spec.cluster.priority_class}
    lacking = {key for key, _ in verdict.missing}
    for key, name in named.items():
        if name is not None and key not in lacking and not verdict.objections and not verdict.not_permitted:
            yield Finding(key, "ok", f"{name} is there")


def check_names(cluster: Cluster, spec: JobSpec) -> Iterator[Finding]:
    """Secrets, ConfigMap and claim that the spec names. Of Secrets only metadata are read."""
    secrets = {"storage.secret": spec.storage.secret}
    secrets |= {f"cluster.image_pull_secrets.{i}": name for i, name in enumerate(spec.cluster.image_pull_secrets)}
    for key, name in secrets.items():
        if name is not None:
            yield _found(cluster, key, name, SECRETS)
    if spec.storage.ca_config_map is not None:
        yield _found(cluster, "storage.ca_config_map", spec.storage.ca_config_map, CONFIG_MAPS)
    if spec.cluster.cache_claim is not None:
        yield _found(cluster, "cluster.cache_claim", spec.cluster.cache_claim, CLAIMS, spec.workers.count)


def _found(cluster: Cluster, key: str, name: str, kind: str, pods: int = 1) -> Finding:
    try:
        found = cluster.get_metadata(kind, name) if kind == SECRETS else cluster.get(kind, name)
    except NotFoundError:
        what = {SECRETS: "Secret", CONFIG_MAPS: "ConfigMap", CLAIMS: "PersistentVolumeClaim"}[kind]
        hint = "create it, or name another one"
        if key == "storage.secret":
            literals = " ".join(f"--from-literal={variable}=..." for variable in S3_KEYS)
            hint = f"kubectl -n {cluster.namespace} create secret generic {name} {literals}"
        return Finding(key, "problem", f"there is no {what} {name} in {cluster.namespace}", hint)
    except ClusterError as error:
        return as_finding(key, error)
    if kind == SECRETS:
        return _secret(key, name, found)
    return _config_map(key, name, found) if kind == CONFIG_MAPS else _claim(key, name, found, pods)


def _secret(key: str, name: str, found: Object) -> Finding:
    """Who manages which field is metadata: so the names of its keys are known without its values."""
    names = {
        field.removeprefix("f:")
        for entry in parts(found, "metadata", "managedFields")
        for place in ("f:data", "f:stringData")
        for field in part(entry, "fieldsV1", place)
        if field.startswith("f:")
    }
    lacking = [variable for variable in S3_KEYS if variable not in names]
    if key != "storage.secret" or not lacking:
        return Finding(key, "ok", f"{name} is there" + (f", with {', '.join(sorted(names))}" if names else ""))
    if not names:
        return Finding(key, "ok", f"{name} is there; which keys it has can't be told without its values")
    hint = f"name its keys {' and '.join(S3_KEYS)}"
    return Finding(key, "problem", f"{name} has {', '.join(sorted(names))}, but no {', '.join(lacking)}", hint)


def _config_map(key: str, name: str, found: Object) -> Finding:
    if "ca.crt" not in part(found, "data"):
        return Finding(key, "problem", f"{name} has no key ca.crt", "kubectl create configmap --from-file=ca.crt=FILE")
    return Finding(key, "ok", f"{name} is there, with ca.crt")


def _claim(key: str, name: str, found: Object, pods: int) -> Finding:
    phase, modes = text(found, "status", "phase"), (part(found, "spec").get("accessModes") or ())
    if phase == "Lost":
        return Finding(key, "problem", f"{name} has lost its volume", "make another claim")
    if pods > 1 and "ReadWriteMany" not in modes:
        words = f"{name} has {', '.join(modes)}: pods on several nodes can't share it"
        return Finding(key, "warning", words, "a claim with ReadWriteMany, or none")
    return Finding(key, "ok", f"{name} is there, {phase}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _endpoint_here() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
