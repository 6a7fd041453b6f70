"""Explain why a container does not run: kubelet's reason, the registry's error, the last output of the program."""

import re
import signal
from collections.abc import Sequence
from datetime import datetime

from cpmbee_job.launch.kube.fields import integer, object_at, objects_at, one_line, text_at, time_at
from cpmbee_job.launch.kube.protocol import Object
from cpmbee_job.launch.runs.durations import duration

IMAGE_REASONS = set(
    "ErrImagePull ImagePullBackOff InvalidImageName ErrImageNeverPull ImageInspectError RegistryUnavailable "
    "SignatureValidationFailed".split()
)
CONFIG_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreStartHookError"}
START_REASONS = {"StartError", "ContainerCannotRun"}
LAST_LINES = 3
LINE_CHARACTERS = 300
_SIGNALS = {number.value: number.name for number in signal.Signals}


def why_no_image(status: Object, events: Sequence[Object]) -> str:
    """Name the image and the registry's error. `events`: warnings of the pod."""
    image = text_at(status, "image")
    reason, message = text_at(status, "state", "waiting", "reason"), one_line(status, "state", "waiting", "message")
    if reason == "InvalidImageName":
        detail = after_colon(message.rpartition("InvalidImageName: ")[2])
        return f"`image` {image} is not a valid image name (InvalidImageName){detail}"
    if reason == "ErrImageNeverPull":
        return f"image {image} is not on the node, and cluster.image_pull_policy is Never (ErrImageNeverPull)"
    error = _registry_error(message, image)
    if not error:  # older kubelets state only that they wait before the next pull; the event has the error
        failures = [one_line(event, "message") for event in events if text_at(event, "reason") == "Failed"]
        error = next((_registry_error(one, image) for one in failures if one.startswith("Failed to pull")), "")
    hint, lower = "", error.lower()
    if any(sign in lower for sign in ("unauthorized", "denied", "forbidden", "authorization failed", "no basic auth")):
        hint = " (a private registry requires cluster.image_pull_secrets)"
    elif any(sign in lower for sign in ("not found", "does not exist", "manifest unknown")):
        hint = " (check `image`)"
    # The reason alternates between these two; one of them keeps pods in the same situation on one line.
    shown = "ImagePullBackOff" if reason == "ErrImagePull" else reason
    return f"cannot pull image {image} ({shown}){after_colon(error)}{hint}"


def is_out_of_memory(ended: Object) -> bool:
    """Return whether the container ran out of memory. On cgroup v1 the kernel may kill one rank and not the container:
    then only the termination message shows it."""
    return text_at(ended, "reason") == "OOMKilled" or "out of memory" in text_at(ended, "message").lower()


def why_ended(what: str, ended: Object, pod: Object, status: Object) -> str:
    """Explain how the container that does `what` ended, with its last lines. `ended`: its `terminated` state."""
    code, reason, message = integer(ended, "exitCode"), text_at(ended, "reason"), text_at(ended, "message")
    if reason in START_REASONS:
        return f"cannot start {what} ({reason}){after_colon(one_line(ended, 'message')[-LINE_CHARACTERS:])}"
    if reason == "OOMKilled" or (code == 137 and is_out_of_memory(ended)):
        limit = _memory_limit(pod, text_at(status, "name"))
        how = "OOMKilled" if reason == "OOMKilled" else "exit code 137"
        end = f"{what} ran out of memory ({how}{f', limit {limit}, workers.memory' if limit else ''})"
    elif code is None:
        end = f"{what} ended{after_colon(reason)}"
    elif reason == "ContainerStatusUnknown":
        end = f"{what} was lost with its node (ContainerStatusUnknown)"
    elif code - 128 in _SIGNALS:
        end = f"{what} was terminated by {_SIGNALS[code - 128]}"
        end += ", possibly because memory ran out" if code == 137 else ""
    else:
        end = f"{what} failed with exit code {code}" if code else f"{what} exited with code 0"
    return end + after_colon(" | ".join(last_lines(message)))


def last_lines(message: str) -> list[str]:
    """Return the last lines of a termination message: the end of the log unless the program wrote a message."""
    plain = re.sub(r"\x1b?\[[0-9;]*m", "", message)  # colors; the escape character itself may already be removed
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    return [line if len(line) <= LINE_CHARACTERS else f"{line[:LINE_CHARACTERS]}…" for line in lines[-LAST_LINES:]]


def next_restart(status: Object, now: datetime) -> str:
    """Return when kubelet restarts the container, "" if it does not tell."""
    message = text_at(status, "state", "waiting", "message")
    found = re.search(r"back-off (?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)? restarting", message)
    ended = time_at(status, "lastState", "terminated", "finishedAt")
    if not found or ended is None:
        return ""
    hours, minutes, seconds = (int(group or 0) for group in found.groups())
    left = hours * 3600 + minutes * 60 + seconds - (now - ended).total_seconds()
    restart = (integer(status, "restartCount") or 0) + 1
    return f"CrashLoopBackOff, restart {restart} {'is due' if left < 1 else f'in {duration(left)}'}"


def after_colon(detail: str) -> str:
    return f": {detail}" if detail else ""


def _memory_limit(pod: Object, container: str) -> str:
    for one in [*objects_at(pod, "spec", "containers"), *objects_at(pod, "spec", "initContainers")]:
        if text_at(one, "name") == container:
            return text_at(object_at(one, "resources", "limits"), "memory")
    return ""


def _registry_error(message: str, image: str) -> str:
    """Strip what kubelet and containerd put before the registry's error."""
    error = re.sub(r'^Back-off pulling image "[^"]*"(: (ErrImagePull: )?)?', "", message)
    error = re.sub(r'^Failed to pull image "[^"]*": ', "", error)
    error = re.sub(r"rpc error: code = \w+ desc = ", "", error)
    error = re.sub(r'failed to (?:pull and unpack image|resolve reference|pull image) "[^"]*": ', "", error)
    return error.removeprefix(f"{image}: ")
