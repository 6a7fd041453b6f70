"""A `Cluster` in memory. Tests create and change objects like the kubelet and the operator."""

import copy
import itertools
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from cpmbee_job.errors import ConflictError, CpmbeeError, NotFoundError
from cpmbee_job.launch.kube.protocol import ACCESS_REVIEWS, Change, Object, ignore_warning


class FakeCluster:
    """`objects`: by kind and name. `failures`: errors that the next calls raise, one each. `lines`: logs by (pod,
    container), and of previous containers by (pod, container, "previous"). `calls`: all requests in order. `changes`:
    what a watch yields after the existing objects (None: no event), before it ends. `refusals`: errors by (verb, kind),
    raised by every call. `denied`: (verb, resource) that access reviews deny. `warnings`: those of every creation.
    """

    def __init__(self, namespace: str = "default") -> None:
        self.namespace = namespace
        self.address = "https://fake:6443"
        self.objects: dict[str, dict[str, Object]] = {}
        self.failures: list[CpmbeeError] = []
        self.lines: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        self.calls: list[tuple[str, str]] = []
        self.changes: list[tuple[Change, Object] | None] = []
        self._versions = itertools.count(1)
        self.refusals: dict[tuple[str, str], CpmbeeError] = {}
        self.denied: set[tuple[str, str]] = set()
        self.warnings: list[str] = []
        self._writing = threading.Lock()

    def server_version(self) -> str:
        return "v1.34.4"

    def server_time(self) -> datetime:
        return datetime.now(UTC)

    def put(self, kind: str, item: Object) -> Object:
        """Add or replace an object."""
        item = copy.deepcopy(item)
        metadata = item.setdefault("metadata", {})
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault("namespace", self.namespace)
        metadata.setdefault("creationTimestamp", "2026-01-31T12:00:00Z")
        metadata["resourceVersion"] = str(next(self._versions))
        self.objects.setdefault(kind, {})[metadata["name"]] = item
        return item

    def get(self, kind: str, name: str) -> Object:
        self._called("get", f"{kind}/{name}")
        try:
            return copy.deepcopy(self.objects.get(kind, {})[name])
        except KeyError:
            raise NotFoundError(f'{kind.rpartition("/")[2]} "{name}" not found') from None

    def get_metadata(self, kind: str, name: str) -> Object:
        return {"metadata": self.get(kind, name)["metadata"]}

    def list(
        self, kind: str, labels: Mapping[str, str] | None = None, fields: str = "", *, all_namespaces: bool = False
    ) -> Iterator[Object]:
        self._called("list", kind)
        for item in list(self.objects.get(kind, {}).values()):
            wanted = all(path_value(item, *term.partition("=")[::2]) for term in fields.split(",") if term)
            if wanted and has_labels(item, labels or {}):
                yield copy.deepcopy(item)

    def create(
        self,
        kind: str,
        manifest: Object,
        *,
        dry_run: bool = False,
        on_warning: Callable[[str], None] = ignore_warning,
    ) -> Object:
        name = manifest["metadata"].get("name", "")
        self._called("create", f"{kind}/{name}")
        for text in self.warnings:
            on_warning(text)
        if kind == ACCESS_REVIEWS:
            asked = manifest["spec"]["resourceAttributes"]
            resource = "/".join(filter(None, [asked["resource"], asked.get("subresource")]))
            return {**manifest, "status": {"allowed": (asked["verb"], resource) not in self.denied}}
        with self._writing:  # makes concurrent creations of a name exclusive
            if name in self.objects.get(kind, {}):
                raise ConflictError(f'{kind.rpartition("/")[2]} "{name}" already exists')
            return copy.deepcopy(manifest) if dry_run else copy.deepcopy(self.put(kind, manifest))

    def delete(self, kind: str, name: str, uid: str) -> None:
        with self._writing:
            if self.get(kind, name)["metadata"]["uid"] != uid:
                raise ConflictError(f"{name}: the UID in the precondition does not match")
            self._called("delete", f"{kind}/{name}")
            del self.objects[kind][name]

    def watch(self, kind: str, labels: Mapping[str, str]) -> Iterator[tuple[Change, Object] | None]:
        for item in list(self.list(kind, labels)):
            yield "ADDED", item
        while self.changes:
            yield self.changes.pop(0)

    def logs(
        self, pod: str, container: str, *, follow: bool = False, previous: bool = False, since: str | None = None
    ) -> Iterator[tuple[str, str]]:
        self._called("logs", f"{pod}/{container}")
        key = (pod, container, "previous") if previous else (pod, container)
        if key not in self.lines:
            raise NotFoundError(f"{pod}: no log of {container}")
        yield from (line for line in self.lines[key] if since is None or line[0] >= since)

    def _called(self, verb: str, what: str) -> None:
        self.calls.append((verb, what))
        if (refusal := self.refusals.get((verb, what.rpartition("/")[0] if verb != "list" else what))) is not None:
            raise refusal
        if self.failures:
            raise self.failures.pop(0)


def has_labels(item: Object, labels: Mapping[str, str]) -> bool:
    return labels.items() <= item["metadata"].get("labels", {}).items()


def path_value(item: Object, path: str, value: str) -> bool:
    found: Any = item
    for key in path.rstrip("!").split("."):
        found = (found or {}).get(key)
    return (str(found) != value) if path.endswith("!") else str(found) == value
