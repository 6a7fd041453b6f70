"""What the API server would say to a job, asked by dry runs: nothing is created.

The CRD and the operator's webhook look at the PyTorchJob, but not at all of the pods in it; so a bare Pod of its
template is asked about too, which also meets the namespace's admission (Pod Security, limits). Quotas are compared with
all pods together, since one may pass where all don't.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from cpmbee_job.errors import ClusterError, ConflictError, CpmbeeError, NotFoundError, PreflightError, RejectedError
from cpmbee_job.launch.checks.capacity import quota_shortages
from cpmbee_job.launch.checks.findings import is_denied
from cpmbee_job.launch.checks.spec_keys import spec_key
from cpmbee_job.launch.kube.protocol import PODS, PYTORCHJOBS, QUOTAS, Cluster, Object
from cpmbee_job.launch.manifest.render import default_run_id, render
from cpmbee_job.run import keys
from cpmbee_job.spec import JobSpec

SERVICE_ACCOUNT_KEY = "storage.service_account"
PRIORITY_CLASS_KEY = "cluster.priority_class"
_LACKS = {
    "error looking up service account": ("serviceAccountName", SERVICE_ACCOUNT_KEY),
    "no PriorityClass": ("priorityClassName", PRIORITY_CLASS_KEY),
}
"""By the words of an admission: the field of the pod, and where it comes from."""
_LACKING = re.compile("|".join(_LACKS))
_PATH = re.compile(r"\[?((?:spec|metadata)\b[^\s:]*): (.*)", re.DOTALL)


@dataclass
class Verdict:
    """What the server says. Each of `objections` and `missing` is a key of the spec (or a path of the manifest, or
    nothing) and words."""

    objections: list[tuple[str, str]] = field(default_factory=list)
    """The spec is wrong for this cluster."""
    missing: list[tuple[str, str]] = field(default_factory=list)
    """Something that it needs is not there, or forbidden."""
    used_up: list[str] = field(default_factory=list)
    """Quotas that have no room for a pod just now."""
    not_permitted: list[str] = field(default_factory=list)
    """What could not be looked at."""
    warnings: list[str] = field(default_factory=list)
    """The server's own."""

    def object_to(self, key: str, words: str) -> None:
        if (key, words) not in self.objections:
            self.objections.append((key, words))

    def require_accepted(self, source: str, place: str) -> None:
        """Raise what speaks against the job of the spec `source` at `place`: `RejectedError` for objections, else
        `PreflightError` for what is missing.
        """
        objections = [f"{source}: {key}: {words}" if key else f"{source}: {words}" for key, words in self.objections]
        missing = [f"{key}: {words}" if key else words for key, words in self.missing]
        if objections:
            raise RejectedError("\n".join([*objections, *missing]), hint=f"the words are those of {place}")
        if missing:
            raise PreflightError(
                "\n".join(missing), hint=f"`cpmbee-job doctor {source}` looks at all that the job needs"
            )

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)


def rendered(spec: JobSpec, namespace: str) -> Object:
    """The manifest as `submit` would send it, local paths in the place that an upload would give them.

    Raises `SpecError` for what no cluster can run.
    """
    output = spec.output if spec.output.startswith("s3://") else "s3://bucket"  # `render` says what is wrong with it
    folder = f"{keys.uploads_url(output)}/{'0' * 32}/"
    on_server = spec.with_fields({key: folder for key, url in spec.inputs.items() if not url.startswith("s3://")})
    return render(on_server, default_run_id(on_server), namespace)


def check_on_server(cluster: Cluster, spec: JobSpec, manifest: Object) -> Verdict:
    """Ask about the manifest that was rendered from `spec`, and compare it with quotas.

    Raises `ClusterError` where the API can't be asked.
    """
    verdict = dry_run(cluster, spec, manifest)
    _check_quotas(cluster, manifest, verdict)
    verdict.missing += [("", words) for words in verdict.used_up]
    return verdict


def dry_run(cluster: Cluster, spec: JobSpec, manifest: Object) -> Verdict:
    """Ask about the manifest alone."""
    verdict = Verdict()
    _check_job(cluster, spec, manifest, verdict)
    _check_pod(cluster, spec, manifest, verdict)
    return verdict


def template_of(manifest: Object) -> Object:
    template: Object = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    return template


def _check_job(cluster: Cluster, spec: JobSpec, manifest: Object, verdict: Verdict) -> None:
    try:
        cluster.create(PYTORCHJOBS, manifest, dry_run=True, on_warning=verdict.warn)
    except ConflictError:
        pass  # it is there already, so it has been accepted
    except NotFoundError as error:
        verdict.missing.append(("", error.message))
    except ClusterError as error:
        if is_denied(error):
            verdict.missing.append(("", error.message))
        elif _is_admission(error):
            _object(verdict, spec, manifest, error, in_pod=False)
        else:
            raise
    except RejectedError as error:
        _object(verdict, spec, manifest, error, in_pod=False)


def _check_pod(cluster: Cluster, spec: JobSpec, manifest: Object, verdict: Verdict) -> None:
    pod = _bare_pod(manifest)
    error = _refusal(cluster, pod, verdict)
    # What an admission misses hides what the next one has to say, so it is asked again without.
    while error is not None and (lacking := _LACKING.search(error.message)) is not None:
        place, key = _LACKS[lacking[0]]
        verdict.missing.append((key, _reason(error)))
        if pod["spec"].pop(place, None) is None:
            return
        error = _refusal(cluster, pod, verdict)
    if error is None:
        return
    if is_denied(error):
        verdict.not_permitted.append(f"a pod as the operator would make it: {error.message}")
    elif isinstance(error, NotFoundError):
        if ("", error.message) not in verdict.missing:
            verdict.missing.append(("", error.message))
    elif "exceeded quota" in error.message:
        verdict.used_up.append(_reason(error))
    elif not verdict.objections or _places(error) or "cannot be handled as a Pod" not in error.message:
        _object(verdict, spec, manifest, error, in_pod=True)  # (else the CRD has said it already, and where)


def _refusal(cluster: Cluster, pod: Object, verdict: Verdict) -> CpmbeeError | None:
    try:
        cluster.create(PODS, pod, dry_run=True, on_warning=verdict.warn)
    except ConflictError:
        return None
    except (RejectedError, NotFoundError) as error:
        return error
    except ClusterError as error:
        if is_denied(error) or _is_admission(error):
            return error
        raise
    return None


def _check_quotas(cluster: Cluster, manifest: Object, verdict: Verdict) -> None:
    replicas = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"]
    try:
        quotas = list(cluster.list(QUOTAS))
    except ClusterError as error:
        if not is_denied(error):
            raise
        verdict.not_permitted.append(f"quotas: {error.message}")
        return
    for quota in quotas:
        name = quota["metadata"]["name"]
        found = quota_shortages(quota, template_of(manifest)["spec"], replicas)
        if found:  # says more than what one pod alone was told
            verdict.used_up = [words for words in verdict.used_up if f"exceeded quota: {name}" not in words]
        verdict.missing += [("", f"quota {name}: {words}") for words in found]


def _bare_pod(manifest: Object) -> Object:
    template = template_of(manifest)
    name = f"{manifest['metadata']['name']}-worker-0"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], "name": name},
        "spec": {**template["spec"], "restartPolicy": "OnFailure"},
    }


def _is_admission(error: ClusterError) -> bool:
    """Whether an admission refused; else the API has not come to look at the job."""
    return re.search(r"denied (the )?request| is forbidden: ", error.message) is not None


def _object(verdict: Verdict, spec: JobSpec, manifest: Object, error: CpmbeeError, *, in_pod: bool) -> None:
    for path, words in _places(error):
        verdict.object_to(spec_key(path, spec, template_of(manifest), in_pod=in_pod), words)
    if not _places(error):
        verdict.object_to(_admission_key(error.message), _reason(error))


def _places(error: CpmbeeError) -> list[tuple[str, str]]:
    """(path, what is wrong there) as far as the server says so."""
    strict = re.findall(r'(unknown|duplicate) field "([^"]+)"', error.message)
    if strict:
        return [(path, f"{kind} field") for kind, path in strict]
    if isinstance(error, RejectedError) and any(path for path, _ in error.causes):
        return [(path, _brief(path, words)) for path, words in error.causes if path != "<nil>"]
    denied = _PATH.match(error.message.partition("denied the request: ")[2])
    return [(denied[1], _brief(denied[1], denied[2]))] if denied else []


def _brief(path: str, words: str) -> str:
    """The server's words without the path that is said already, nor the regular expression that nobody reads."""
    return re.sub(r",? regex used for validation is '[^']*'", "", words.replace(f"{path} in body ", ""))


def _reason(error: CpmbeeError) -> str:
    """What follows `pods "name" is forbidden: `."""
    return re.sub(r'^\S+ "[^"]+" is (forbidden|invalid): ', "", error.message)


def _admission_key(message: str) -> str:
    """The key that an admission without a path most likely means."""
    limited: Iterator[str] = (
        key
        for resource, key in (
            ("ephemeral-storage", "workers.ephemeral"),
            ("memory", "workers.memory"),
            ("cpu", "workers.cpu"),
        )
        if re.search(
            rf"(maximum|minimum) {resource} usage per|max limit to request ratio per \w+ is .*{resource}", message
        )
    )
    return "cluster.pod_overlay" if "violates PodSecurity" in message else next(limited, "")
