"""A `FakeCluster` with live watches and logs, and streams that are interrupted."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from cpmbee_job.errors import NotFoundError, UnreachableError
from cpmbee_job.launch.kube.naming import NAME_LABEL, PREPARE_CONTAINER, RUN_LABEL, TRAIN_CONTAINER
from cpmbee_job.launch.kube.protocol import INDEX_LABEL, PODS, Change, Object
from tests.fake_cluster import FakeCluster, has_labels

TICK = 0.002


class LiveCluster(FakeCluster):
    """`breaks`: the numbers of lines after which the next streams of (pod, container) are interrupted. `streams`: the
    maximum number of open streams. `over` ends all streams."""

    def __init__(self) -> None:
        super().__init__()
        self.breaks: dict[tuple[str, str], list[int]] = {}
        self.open = self.streams = 0
        self.over = False

    def watch(self, kind: str, labels: Mapping[str, str]) -> Iterator[tuple[Change, Object] | None]:
        known: dict[str, Object] = {}
        while not self.over:
            present = {item["metadata"]["uid"]: item for item in list(self.objects.get(kind, {}).values())}
            present = {uid: item for uid, item in present.items() if has_labels(item, labels)}
            for uid in known.keys() - present.keys():
                yield "DELETED", known[uid]
            for uid, item in present.items():
                if known.get(uid) != item:
                    yield "MODIFIED" if uid in known else "ADDED", item
            known = present
            yield None
            time.sleep(TICK)

    def logs(
        self, pod: str, container: str, *, follow: bool = False, previous: bool = False, since: str | None = None
    ) -> Iterator[tuple[str, str]]:
        self._called("logs", f"{pod}/{container}")
        key = (pod, container, "previous") if previous else (pod, container)
        if key not in self.lines:
            raise NotFoundError(f"{pod}: no log of {container}")
        breaks = self.breaks.get((pod, container)) or []
        left = breaks.pop(0) if breaks else None
        lines, position = self.lines[key], 0
        uid = self.objects[PODS][pod]["metadata"]["uid"]
        self.open += 1
        self.streams = max(self.streams, self.open)
        try:
            while True:
                goes_on = follow and not self.over and self._runs(pod, uid, container) and lines is self.lines.get(key)
                for stamp, text in lines[position:]:
                    if since is None or stamp[:19] >= since[:19]:  # kubelet knows seconds only
                        if left == 0:
                            raise UnreachableError("the stream was interrupted")
                        left = None if left is None else left - 1
                        yield stamp, text
                    position += 1
                if left == 0:
                    raise UnreachableError("the stream was interrupted")
                if not goes_on:
                    return
                time.sleep(TICK)
        finally:
            self.open -= 1

    def _runs(self, pod: str, uid: str, container: str) -> bool:
        item = self.objects[PODS].get(pod)
        if item is None or item["metadata"]["uid"] != uid:
            return False
        statuses = item["status"]["containerStatuses"] + item["status"]["initContainerStatuses"]
        return any(one["name"] == container and "running" in one["state"] for one in statuses)


STATES: dict[str, tuple[str, dict[str, Any]]] = {
    "waiting": ("Pending", {"waiting": {"reason": "PodInitializing"}}),
    "running": ("Running", {"running": {}}),
    "restarting": ("Running", {"waiting": {"reason": "CrashLoopBackOff"}}),
    "ended": ("Succeeded", {"terminated": {"exitCode": 0}}),
}


def worker(index: int, state: str = "running", *, restarts: int = 0, uid: str = "") -> Object:
    """Worker `index` of the run `ccpm/abc`. Its init container has completed unless `state` is `waiting`."""
    phase, main = STATES[state]
    name = f"ccpm-abc-worker-{index}"
    prepared = {"waiting": {}} if state == "waiting" else {"terminated": {"exitCode": 0}}
    return {
        "metadata": {
            "name": name,
            "uid": uid or f"{name}-1",
            "labels": {NAME_LABEL: "ccpm", RUN_LABEL: "abc", INDEX_LABEL: str(index)},
        },
        "spec": {"initContainers": [{"name": PREPARE_CONTAINER}], "containers": [{"name": TRAIN_CONTAINER}]},
        "status": {
            "phase": phase,
            "initContainerStatuses": [{"name": PREPARE_CONTAINER, "state": prepared}],
            "containerStatuses": [
                {
                    "name": TRAIN_CONTAINER,
                    "state": main,
                    "restartCount": restarts,
                    "lastState": {"terminated": {"exitCode": 1}} if restarts else {},
                }
            ],
        },
    }


def line(second: float, text: str) -> tuple[str, str]:
    return f"2026-01-31T12:00:{second:012.9f}Z", text
