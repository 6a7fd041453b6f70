"""Ask the API server by dry runs whether it would accept a job. Nothing is created.

The CRD and the operator's webhook validate the PyTorchJob, but not all of its pod template. Therefore a bare Pod with
that template is tried too; it also passes the namespace's admission (Pod Security, limits). Quotas are compared with
all pods together, since one pod may fit where all do not.
"""

import re
from dataclasses import dataclass, field

from cpmbee_job.errors import ClusterError, ConflictError, CpmbeeError, NotFoundError, PreflightError, RejectedError
from cpmbee_job.launch.checks.capacity import quota_shortages
from cpmbee_job.launch.checks.check_result import is_denied, list_permitted
from cpmbee_job.launch.checks.spec_keys import spec_key
from cpmbee_job.launch.kube.fields import name_of
from cpmbee_job.launch.kube.protocol import PODS, PYTORCHJOBS, QUOTAS, Cluster, Object
from cpmbee_job.launch.manifest.render import default_run_id, render
from cpmbee_job.run import keys
from cpmbee_job.spec import JobSpec
from cpmbee_job.spec.cluster import RESOURCE_KEYS

SERVICE_ACCOUNT_KEY = "storage.service_account"
PRIORITY_CLASS_KEY = "cluster.priority_class"
_MISSING = {
    "error looking up service account": ("serviceAccountName", SERVICE_ACCOUNT_KEY),
    "no PriorityClass": ("priorityClassName", PRIORITY_CLASS_KEY),
}
"""By a part of the admission's message: the field of the pod that names a missing object, and its key in the spec."""


@dataclass
class ServerAnswer:
    """How the API server answers a dry run. `objections` and `missing` are pairs (key of the spec, or path in the
    manifest, or ""; message)."""

    objections: list[tuple[str, str]] = field(default_factory=list)
    """The spec is invalid on this cluster."""
    missing: list[tuple[str, str]] = field(default_factory=list)
    """Something that the job requires is missing or not permitted."""
    exhausted: list[str] = field(default_factory=list)
    """Quotas that have no room for a pod now."""
    not_permitted: list[str] = field(default_factory=list)
    """What could not be checked."""
    warnings: list[str] = field(default_factory=list)
    """The server's warnings."""

    def require_accepted(self, source: str, place: str) -> None:
        """Raise why the server at `place` does not accept the spec `source`: `RejectedError` if there are objections,
        else `PreflightError` for what is missing."""
        missing = [f"{key}: {message}" if key else message for key, message in self.missing]
        if self.objections:
            objections = [": ".join(filter(None, (source, key, message))) for key, message in self.objections]
            raise RejectedError("\n".join([*objections, *missing]), hint=f"these are the messages of {place}")
        if missing:
            hint = f"`cpmbee-job doctor {source}` checks everything that the job requires"
            raise PreflightError("\n".join(missing), hint=hint)

    def object_to(self, key: str, message: str) -> None:
        if (key, message) not in self.objections:
            self.objections.append((key, message))

    def warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)


def rendered(spec: JobSpec, namespace: str) -> Object:
    """Return the manifest that `submit` would send, with placeholders for the URLs of uploads.

    Raises `SpecError` for a spec that no cluster can run.
    """
    output = spec.output if spec.output.startswith("s3://") else "s3://bucket"  # `render` reports the real one
    folder = f"{keys.uploads_url(output)}/{'0' * 32}/"
    uploaded = spec.with_fields({key: folder for key, url in spec.inputs.items() if not url.startswith("s3://")})
    return render(uploaded, default_run_id(uploaded), namespace)


def template_of(manifest: Object) -> Object:
    """Return the pod template of a rendered PyTorchJob."""
    template: Object = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    return template


def check_on_server(cluster: Cluster, spec: JobSpec, manifest: Object) -> ServerAnswer:
    """Try the manifest that was rendered from `spec`, and compare it with the namespace's quotas.

    Raises `ClusterError` if the API server cannot be asked.
    """
    answer = dry_run(cluster, spec, manifest)
    quotas, denial = list_permitted(cluster, QUOTAS)
    if denial is not None:
        answer.not_permitted.append(f"quotas: {denial}")
    replicas = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"]
    for quota in quotas:
        shortages = quota_shortages(quota, template_of(manifest)["spec"], replicas)
        if shortages:  # of all pods: more precise than the refusal of one pod
            refusal = f"exceeded quota: {name_of(quota)}"
            answer.exhausted = [message for message in answer.exhausted if refusal not in message]
        answer.missing += [("", f"quota {name_of(quota)}: {shortage}") for shortage in shortages]
    answer.missing += [("", message) for message in answer.exhausted]
    return answer


def dry_run(cluster: Cluster, spec: JobSpec, manifest: Object) -> ServerAnswer:
    """Try the manifest that was rendered from `spec`. Raises `ClusterError` if the API server cannot be asked."""
    answer = ServerAnswer()
    error = _refusal(cluster, PYTORCHJOBS, manifest, answer)
    if isinstance(error, NotFoundError) or (error is not None and is_denied(error)):
        answer.missing.append(("", error.message))
    elif error is not None:
        _add_objections(answer, spec, manifest, error, in_pod=False)
    _try_pod(cluster, spec, manifest, answer)
    return answer


def _try_pod(cluster: Cluster, spec: JobSpec, manifest: Object, answer: ServerAnswer) -> None:
    template = template_of(manifest)
    pod: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], "name": f"{name_of(manifest)}-worker-0"},
        "spec": {**template["spec"], "restartPolicy": "OnFailure"},
    }
    error = _refusal(cluster, PODS, pod, answer)
    # A missing object hides further objections, so try again without the field that names it.
    while error is not None and (missing := next((part for part in _MISSING if part in error.message), None)):
        field_name, key = _MISSING[missing]
        answer.missing.append((key, _reason(error)))
        if pod["spec"].pop(field_name, None) is None:
            return
        error = _refusal(cluster, PODS, pod, answer)
    if error is None:
        return
    if is_denied(error):
        answer.not_permitted.append(f"a pod like the operator's: {error.message}")
    elif isinstance(error, NotFoundError):
        if ("", error.message) not in answer.missing:
            answer.missing.append(("", error.message))
    elif "exceeded quota" in error.message:
        answer.exhausted.append(_reason(error))
    elif not answer.objections or _causes(error) or "cannot be handled as a Pod" not in error.message:
        _add_objections(answer, spec, manifest, error, in_pod=True)  # (otherwise the CRD has named the place already)


def _refusal(cluster: Cluster, kind: str, item: Object, answer: ServerAnswer) -> CpmbeeError | None:
    """Return why the server refuses the object, None if it accepts it or has it already."""
    try:
        cluster.create(kind, item, dry_run=True, on_warning=answer.warn)
    except ConflictError:
        return None
    except (RejectedError, NotFoundError) as error:
        return error
    except ClusterError as error:
        is_admission = re.search(r"denied (the )?request| is forbidden: ", error.message) is not None
        if is_denied(error) or is_admission:
            return error
        raise
    return None


def _add_objections(answer: ServerAnswer, spec: JobSpec, manifest: Object, error: CpmbeeError, *, in_pod: bool) -> None:
    causes = _causes(error)
    for path, message in causes:
        answer.object_to(spec_key(path, spec, template_of(manifest), in_pod=in_pod), message)
    if not causes:
        answer.object_to(_likely_key(error.message), _reason(error))


def _causes(error: CpmbeeError) -> list[tuple[str, str]]:
    """Return pairs (path, what is wrong there), as far as the server names paths."""
    strict = re.findall(r'(unknown|duplicate) field "([^"]+)"', error.message)
    if strict:
        return [(path, f"{kind} field") for kind, path in strict]
    if isinstance(error, RejectedError) and any(path for path, _ in error.causes):
        return [(path, _shorten(path, message)) for path, message in error.causes if path != "<nil>"]
    denial = error.message.partition("denied the request: ")[2]
    denied = re.match(r"\[?((?:spec|metadata)\b[^\s:]*): (.*)", denial, re.DOTALL)
    return [(denied[1], _shorten(denied[1], denied[2]))] if denied else []


def _shorten(path: str, message: str) -> str:
    """Remove the path, which is named already, and the regular expression from the server's message."""
    return re.sub(r",? regex used for validation is '[^']*'", "", message.replace(f"{path} in body ", ""))


def _reason(error: CpmbeeError) -> str:
    """Return the message after `pods "name" is forbidden: `."""
    return re.sub(r'^\S+ "[^"]+" is (forbidden|invalid): ', "", error.message)


def _likely_key(message: str) -> str:
    """Return the key that an admission most likely means if its message names no path, "" if there is none."""
    if "violates PodSecurity" in message:
        return "cluster.pod_overlay"
    for resource, key in RESOURCE_KEYS.items():
        pattern = rf"(max|min)imum {resource} usage per|max limit to request ratio per \w+ is .*{resource}"
        if re.search(pattern, message):
            return key
    return ""
