"""The container around this process: its limits, and its termination message."""

import contextlib
import os
import re
from pathlib import Path

import cpmbee_job
from cpmbee_job.errors import InvalidError
from cpmbee_job.process import contract

CGROUPS = Path("/sys/fs/cgroup")
TERMINATION_LOG = "/dev/termination-log"
"""File whose content becomes the container's termination message."""
TERMINATION_LOG_ENV = "CPMBEE_TERMINATION_LOG"
TERMINATION_MESSAGE_BYTES = 4096
"""Kubernetes truncates longer messages."""


def require_contract() -> None:
    """Raise `InvalidError` if the launcher that started this pod has another contract version than this image."""
    theirs = os.environ.get(contract.VERSION_ENV)
    if theirs is None or theirs == str(contract.VERSION):
        return
    launcher = os.environ.get(contract.LAUNCHER_ENV, "of an unknown version")
    older = "image" if theirs.isdigit() and int(theirs) > contract.VERSION else "launcher"
    raise InvalidError(
        f"image and launcher are incompatible: the image (cpmbee-job {cpmbee_job.__version__}) has contract "
        f"{contract.VERSION}, the launcher (cpmbee-job {launcher}) has {theirs}; the {older} is older",
        hint=f"use the image of cpmbee-job {launcher}, or the launcher of {cpmbee_job.__version__}",
    )


def num_cpus() -> int:
    """Return the number of CPUs for this process: its affinity mask, and the limit of its container."""
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    if contract.CPUS_ENV in os.environ:
        limits.append(int(os.environ[contract.CPUS_ENV]))
    with contextlib.suppress(OSError, ValueError):
        quota, period = (CGROUPS / "cpu.max").read_text(encoding="ascii").split()
        limits.append(round(int(quota) / int(period)))  # "max" is not a number
    return max(1, min(limits))


def oom_kills() -> int:
    """Return how many processes of this container the kernel killed because it was out of memory."""
    events = _memory_file("memory.events") or _memory_file("memory.oom_control")  # of cgroup v2, else v1
    found = re.search(r"^oom_kill (\d+)$", events, re.MULTILINE)
    return 0 if found is None else int(found[1])


def memory_limit() -> int | None:
    """Return the container's memory limit in bytes, None without one."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        text = _memory_file(name).strip()
        if text.isdigit() and int(text) < 1 << 60:  # v1 has a huge number for no limit
            return int(text)
    return None


def write_termination_message(text: str) -> None:
    """Write the container's termination message; do nothing outside a pod."""
    path = Path(os.environ.get(TERMINATION_LOG_ENV, TERMINATION_LOG))
    if path.is_file():
        with contextlib.suppress(OSError):
            path.write_text(text.encode()[:TERMINATION_MESSAGE_BYTES].decode(errors="ignore"), encoding="utf-8")


def _memory_file(name: str) -> str:
    """Return the content of a file of this process's memory control group, "" if it does not exist. A container sees
    its own group at the root of the hierarchy, not under the path that the kernel reports."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root = CGROUPS / "memory" if controllers else CGROUPS
            for group in (root / path.lstrip("/"), root):
                if (group / name).is_file():
                    return (group / name).read_text(encoding="ascii")
    return ""
