"""The Kubernetes API as a `Cluster`."""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal, cast, get_args
from urllib.parse import quote

from kubernetes import config
from kubernetes.client import ApiClient, Configuration
from kubernetes.config.kube_config import KubeConfigLoader, KubeConfigMerger

from cpmbee_job import documents
from cpmbee_job.errors import NotFoundError, PreflightError, RejectedError, UnreachableError
from cpmbee_job.launch.kube.fields import object_at, objects_at, text_at
from cpmbee_job.launch.kube.protocol import CLUSTER_WIDE, Change, Cluster, Object, ignore_warning
from cpmbee_job.launch.kube.transport import CONFIG_ERRORS, GoneError, Transport

METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
PAGE = 500
"""Objects in one page of a list."""
WATCH_SECONDS = 20
"""Duration of one watch request."""
LONGEST_LINE = 2**16
"""Bytes after which a log line is split: a progress bar may write for hours without a newline."""
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class ApiCluster:
    """The cluster of a kubeconfig context or a service account. Thread-safe."""

    def __init__(self, transport: Transport, namespace: str) -> None:
        self._transport = transport
        self._namespace = namespace

    @property
    def namespace(self) -> str:
        return self._namespace

    @property
    def address(self) -> str:
        return self._transport.address

    def server_version(self) -> str:
        return text_at(self._transport.json("GET", "/version"), "gitVersion")

    def server_time(self) -> datetime:
        dates: list[str] = []
        self._transport.json("GET", "/version", on_headers=lambda headers: dates.append(headers["Date"]))
        return parsedate_to_datetime(dates[0])

    def get(self, kind: str, name: str) -> Object:
        return self._transport.json("GET", f"{self._path(kind)}/{quote(name)}")

    def get_metadata(self, kind: str, name: str) -> Object:
        return self._transport.json("GET", f"{self._path(kind)}/{quote(name)}", accept=METADATA_ONLY)

    def list(
        self, kind: str, labels: Mapping[str, str] | None = None, fields: str = "", *, all_namespaces: bool = False
    ) -> Iterator[Object]:
        query = {"limit": str(PAGE), "labelSelector": _selector(labels), "fieldSelector": fields}
        seen = set()
        while True:
            try:
                page = self._transport.json("GET", self._path(kind, all_namespaces), query)
            except GoneError as error:  # the continue token has expired; an empty `next_page` starts over
                query["continue"] = error.next_page
                continue
            for uid, item in self._items(page).items():
                if uid not in seen:
                    seen.add(uid)
                    yield item
            query["continue"] = text_at(page, "metadata", "continue")
            if not query["continue"]:
                return

    def create(
        self,
        kind: str,
        manifest: Object,
        *,
        dry_run: bool = False,
        on_warning: Callable[[str], None] = ignore_warning,
    ) -> Object:
        def report(headers: Mapping[str, str]) -> None:
            for warning in re.findall(r'\d{3} \S+ "((?:[^"\\]|\\.)*)"', headers.get("Warning", "")):
                on_warning(re.sub(r"\\(.)", r"\1", warning))

        query = {"fieldValidation": "Strict", "dryRun": "All" if dry_run else ""}
        return self._transport.json("POST", self._path(kind), query, manifest, on_headers=report)

    def delete(self, kind: str, name: str, uid: str) -> None:
        options = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        self._transport.json("DELETE", f"{self._path(kind)}/{quote(name)}", body=options)

    def watch(self, kind: str, labels: Mapping[str, str]) -> Iterator[tuple[Change, Object] | None]:
        known: dict[str, Object] = {}  # by uid
        version = ""
        while True:
            began = time.monotonic()
            try:
                if version:
                    for change, item in self._changes(kind, labels, version):
                        version = text_at(item, "metadata", "resourceVersion")
                        if change != "BOOKMARK":
                            yield from _record_change(known, change, item)
                else:
                    # not paged, so that the resourceVersion is that of all objects
                    answer = self._transport.json("GET", self._path(kind), {"labelSelector": _selector(labels)})
                    items = self._items(answer)
                    for uid in known.keys() - items.keys():
                        yield from _record_change(known, "DELETED", known[uid])
                    for item in items.values():
                        yield from _record_change(known, "ADDED", item)
                    version = text_at(answer, "metadata", "resourceVersion")
                    yield None
                    continue
            except GoneError:
                version = ""
            except UnreachableError:
                pass
            yield None
            if time.monotonic() - began < 1:  # do not flood a server that ends watches at once
                self._transport.pause(1)

    def _changes(
        self, kind: str, labels: Mapping[str, str], version: str
    ) -> Iterator[tuple[Change | Literal["BOOKMARK"], Object]]:
        query = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"}
        query |= {"labelSelector": _selector(labels), "timeoutSeconds": str(WATCH_SECONDS)}
        for line in self._transport.lines(self._path(kind), query):
            try:
                event = documents.from_json(line)
            except ValueError as error:
                raise UnreachableError(f"{self.address}: the watch was interrupted inside a line") from error
            change, item = event.get("type"), object_at(event, "object")
            if change == "ERROR":
                raise GoneError(text_at(item, "message"), "")
            if change != "BOOKMARK" and (change not in get_args(Change) or not text_at(item, "metadata", "uid")):
                raise UnreachableError(f"{self.address}: the watch sent an event without an object")
            yield cast("Change", change), item

    def logs(
        self, pod: str, container: str, *, follow: bool = False, previous: bool = False, since: str | None = None
    ) -> Iterator[tuple[str, str]]:
        query = {"container": container, "timestamps": "true", "sinceTime": since or ""}
        query |= {"follow": "true" if follow else "", "previous": "true" if previous else ""}
        stamp, continues = "", False
        try:
            for piece in self._transport.lines(
                f"{self._path('api/v1/pods')}/{quote(pod)}/log", query, longest=LONGEST_LINE
            ):
                text = piece.decode(errors="replace")
                if not continues:
                    stamp, _, text = text.partition(" ")
                continues = not piece.endswith(b"\n")
                yield stamp.rstrip("\n"), text.removesuffix("\n")
        except RejectedError as error:  # 400: the container is waiting to start, or has no previous log
            raise NotFoundError(f"{pod}: no log of {container}: {error.message}") from error

    def _items(self, answer: Object) -> dict[str, Object]:
        """Return the objects of a list by uid. Raises `UnreachableError` for another answer, as of a proxy."""
        if "items" not in answer:
            raise UnreachableError(f"{self.address}: the answer is not a list of objects")
        return {uid: item for item in objects_at(answer, "items") if (uid := text_at(item, "metadata", "uid"))}

    def _path(self, kind: str, all_namespaces: bool = False) -> str:
        group, _, plural = kind.rpartition("/")
        scope = "" if kind in CLUSTER_WIDE or all_namespaces else f"namespaces/{quote(self._namespace)}/"
        return f"/{group}/{scope}{plural}"


def connect(context: str | None = None, namespace: str | None = None) -> Cluster:
    """Connect to the cluster of the kubeconfig (`KUBECONFIG`, `~/.kube/config`), or to the one that this pod runs in.

    Raises `PreflightError` if there is neither.
    """
    files = os.environ.get("KUBECONFIG") or "~/.kube/config"
    in_pod = context is None and "KUBECONFIG" not in os.environ and (_SERVICE_ACCOUNT / "token").is_file()

    def load() -> ApiClient:
        if not in_pod:
            client: ApiClient = config.new_client_from_config(files, context)
            return client
        configuration = Configuration()
        config.load_incluster_config(configuration)
        return ApiClient(configuration)

    if not in_pod and not any(Path(file).expanduser().is_file() for file in files.split(os.pathsep) if file):
        raise PreflightError(
            f"cannot connect to a Kubernetes cluster: kubeconfig not found ({files})",
            hint="set KUBECONFIG to the kubeconfig that you got from the cluster's administrator",
        )
    try:
        if in_pod:
            default = (_SERVICE_ACCOUNT / "namespace").read_text().strip()
        else:
            chosen = KubeConfigLoader(KubeConfigMerger(files).config, active_context=context).current_context
            default = chosen["context"].get("namespace") or "default"
        return ApiCluster(Transport(load), namespace or default)
    except CONFIG_ERRORS as error:
        raise PreflightError(
            f"cannot connect to a Kubernetes cluster: {error}",
            hint="set KUBECONFIG, or choose one of its contexts with --context",
        ) from error


def _selector(labels: Mapping[str, str] | None) -> str:
    return ",".join(f"{key}={value}" for key, value in (labels or {}).items())


def _record_change(known: dict[str, Object], change: Change, item: Object) -> Iterator[tuple[Change, Object]]:
    """Record the change in `known`, and yield it unless the object is unchanged since the last list."""
    uid = text_at(item, "metadata", "uid")
    before = known.pop(uid, None)
    if change != "DELETED":
        known[uid] = item
    if change == "ADDED" and before is not None:
        if text_at(before, "metadata", "resourceVersion") == text_at(item, "metadata", "resourceVersion"):
            return
        change = "MODIFIED"
    yield change, item
