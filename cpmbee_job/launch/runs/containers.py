"""Why a container does not run, in words: kubelet's reasons, a registry's errors, what the program said last."""

import re
import signal
from collections.abc import Sequence
from datetime import datetime, timedelta

from cpmbee_job.launch.kube.fields import integer, one_line, part, parts, text, time_at
from cpmbee_job.launch.kube.protocol import Object

IMAGE_REASONS = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
}
CONFIG_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreStartHookError"}
START_REASONS = {"StartError", "ContainerCannotRun"}
LAST_LINES = 3
LINE_CHARACTERS = 300


def why_no_image(status: Object, events: Sequence[Object]) -> str:
    """Which image, and the registry's words."""
    image = text(status, "image")
    reason, said = text(status, "state", "waiting", "reason"), one_line(status, "state", "waiting", "message")
    if reason == "InvalidImageName":
        return f"`image` {image} is no valid name{after_colon(said.rpartition('InvalidImageName: ')[2])}"
    if reason == "ErrImageNeverPull":
        return f"image {image} is not on the node, and cluster.image_pull_policy is Never"
    words = _registry_words(said, image)
    if not words:  # it tells only that kubelet waits before it tries again; an event has the error
        failures = [one_line(one, "message") for one in events if text(one, "reason") == "Failed"]
        words = next((_registry_words(one, image) for one in failures if one.startswith("Failed to pull")), "")
    lower = words.lower()
    hint = ""
    if any(sign in lower for sign in ("unauthorized", "denied", "forbidden", "authorization failed", "no basic auth")):
        hint = " (a private registry needs cluster.image_pull_secrets)"
    elif "not found" in lower or "does not exist" in lower or "manifest unknown" in lower:
        hint = " (check `image`)"
    return f"image {image} can't be pulled{after_colon(words)}{hint}"


def why_not_set_up(status: Object) -> str:
    """A Secret, a key, a ConfigMap that is missing; a root user where none may be."""
    said = one_line(status, "state", "waiting", "message")
    reason = text(status, "state", "waiting", "reason")
    return f"container {text(status, 'name')} can't be set up: {said or reason}"


def is_out_of_memory(ended: Object) -> bool:
    """Kubelet says so, or (on cgroup v1 it may not: one rank is killed, not the container) the program did."""
    return text(ended, "reason") == "OOMKilled" or "out of memory" in text(ended, "message").lower()


def why_ended(what: str, ended: Object, pod: Object, status: Object) -> str:
    """How the container `what` ended, with its last lines."""
    code, reason, message = integer(ended, "exitCode"), text(ended, "reason"), text(ended, "message")
    lines = last_lines(message)
    if reason in START_REASONS:
        return f"{what} can't be started: {one_line(ended, 'message')[-LINE_CHARACTERS:] or reason}"
    if reason == "OOMKilled" or (code == 137 and "out of memory" in message.lower()):
        limit = _limit(pod, text(status, "name"))
        words = f"{what} was killed: out of memory" + (f" (limit {limit}, workers.memory)" if limit else "")
    elif code == 0:
        words = f"{what} has ended"
    elif code is None:
        words = f"{what} has ended{after_colon(reason)}"
    elif reason == "ContainerStatusUnknown":
        words = f"{what} was lost with its node"
    elif code > 128 and code - 128 in {number.value for number in signal.Signals}:
        name = signal.Signals(code - 128).name
        words = f"{what} was ended by {name}" + (", as the kernel does when memory runs out" if code == 137 else "")
    else:
        words = f"{what} failed with exit code {code}"
    return words + after_colon(" | ".join(lines))


def last_lines(message: str) -> list[str]:
    """The last lines of a termination message, which holds the end of the log where the program wrote none."""
    plain = re.sub(r"\x1b?\[[0-9;]*m", "", message)  # colours; the escape itself may be gone already
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    return [line if len(line) <= LINE_CHARACTERS else f"{line[:LINE_CHARACTERS]}…" for line in lines[-LAST_LINES:]]


def next_start(status: Object, now: datetime) -> str:
    """When kubelet starts the container again, "" where it does not say."""
    said = text(status, "state", "waiting", "message")
    found = re.search(r"back-off (?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)? restarting", said)
    ended = time_at(status, "lastState", "terminated", "finishedAt")
    if not found or ended is None:
        return ""
    hours, minutes, seconds = (int(group or 0) for group in found.groups())
    due = (ended + timedelta(hours=hours, minutes=minutes, seconds=seconds) - now).total_seconds()
    times = integer(status, "restartCount") or 0
    return f"start {times + 2} {'is due' if due < 1 else f'in {duration(due)}'}"


def duration(seconds: float) -> str:
    """Like `40 s`, `12 min`, `3 h 20 min`, `5 d`."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{round(seconds)} s"
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // (24 * 60)} d"


def after_colon(words: str) -> str:
    return f": {words}" if words else ""


def _limit(pod: Object, container: str) -> str:
    for one in [*parts(pod, "spec", "containers"), *parts(pod, "spec", "initContainers")]:
        if text(one, "name") == container:
            return text(part(one, "resources", "limits"), "memory")
    return ""


def _registry_words(said: str, image: str) -> str:
    """Without the wrappings of kubelet and containerd."""
    words = re.sub(r'^Back-off pulling image "[^"]*"(: (ErrImagePull: )?)?', "", said)
    words = re.sub(r'^Failed to pull image "[^"]*": ', "", words)
    words = re.sub(r"rpc error: code = \w+ desc = ", "", words)
    words = re.sub(r'failed to (?:pull and unpack image|resolve reference|pull image) "[^"]*": ', "", words)
    return words.removeprefix(f"{image}: ")
