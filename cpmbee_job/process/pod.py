"""What a process of ours knows of the container around it, and how it leaves a last word there.

Outside a cluster there is less to know: no launcher, no limits, nobody who reads a last word.
"""

import contextlib
import os
from pathlib import Path

import cpmbee_job
from cpmbee_job.errors import InvalidError
from cpmbee_job.process import contract

CGROUPS = Path("/sys/fs/cgroup")
TERMINATION_LOG = "/dev/termination-log"
"""Where the kubelet puts the file whose content becomes the pod's status."""
TERMINATION_LOG_ENV = "CPMBEE_TERMINATION_LOG"
LAST_WORD_BYTES = 4096
"""What Kubernetes keeps of it."""


def require_contract() -> None:
    """Raise `InvalidError` where the launcher that started this pod agrees on other things than this image."""
    theirs = os.environ.get(contract.VERSION_ENV)
    if theirs is None or theirs == str(contract.VERSION):
        return
    launcher = os.environ.get(contract.LAUNCHER_ENV, "of an unknown version")
    older = "image" if theirs.isdigit() and int(theirs) > contract.VERSION else "launcher"
    raise InvalidError(
        f"the image does not fit the launcher: the image (cpmbee-job {cpmbee_job.__version__}) has contract "
        f"{contract.VERSION}, the launcher (cpmbee-job {launcher}) has {theirs}; the {older} is the older one",
        hint=f"use the image of cpmbee-job {launcher}, or the launcher of {cpmbee_job.__version__}",
    )


def num_cpus() -> int:
    """CPUs that this process may keep busy: those it may run on, and not more than its container's share."""
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    if contract.CPUS_ENV in os.environ:
        limits.append(int(os.environ[contract.CPUS_ENV]))
    with contextlib.suppress(OSError, ValueError):
        quota, period = (CGROUPS / "cpu.max").read_text(encoding="ascii").split()
        limits.append(round(int(quota) / int(period)))  # "max" is no number
    return max(1, min(limits))


def oom_kills() -> int:
    """How many processes of this container the kernel has killed because its memory was used up."""
    for name in ("memory.events", "memory.oom_control"):  # of cgroup v2; v1
        for line in _memory_file(name).splitlines():
            words = line.split()
            if words[:1] == ["oom_kill"]:
                return int(words[1])
    return 0


def memory_limit() -> int | None:
    """The container's limit in bytes, None where it has none."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        text = _memory_file(name).strip()
        if text.isdigit() and int(text) < 1 << 60:  # v1 says "none" by a huge number
            return int(text)
    return None


def last_word(text: str) -> None:
    """Leave `text` as the container's termination message, where there is a place for one."""
    place = Path(os.environ.get(TERMINATION_LOG_ENV, TERMINATION_LOG))
    if place.is_file():
        with contextlib.suppress(OSError):
            place.write_text(text.encode()[:LAST_WORD_BYTES].decode(errors="ignore"), encoding="utf-8")


def _memory_file(name: str) -> str:
    """Content of a file of the control group that holds this process; empty where there is no such file.

    A container sees its own group at the root of the hierarchy, under another path than the kernel's.
    """
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
