"""What each kind of fault does to the run, its pod, its store and its disk."""

import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cpmbee_job.errors import DamagedError, NotFoundError
from cpmbee_job.run import keys
from cpmbee_job.run.attempts import newest_attempt
from cpmbee_job.run.checkpoints import StoredCheckpoint, read_state, resumable_checkpoints, stored_checkpoints
from cpmbee_job.run.run import Run
from tests.chaos.plan import Fault
from tests.chaos.pod import Pod, send
from tests.integration.faults import METHODS, FaultProxy, Held, Kind
from tests.integration.jobs import descendants, is_alive

MANY = 1 << 30
READS: dict[str, tuple[Kind, int]] = {
    "slow reads": ("trickle", 4),
    "truncated reads": ("truncate", MANY),
    "altered reads": ("alter", 4),
}
"""What becomes of them, and of how many: a slow one takes seconds, and what is never read unaltered is damaged."""
OBJECTS = "/runs/"
"""What is altered: a list has no checksum in S3, nor has a range of the model."""
LONGEST_GRACE = 60.0
"""Seconds that a pod has between SIGTERM and SIGKILL."""
ZOMBIE_SECONDS = 3.0
"""Seconds that it continues until its kubelet learns that the pod is deleted."""


class Wait(Protocol):
    def __call__(self, condition: Callable[[], object], longest: float = ...) -> bool:
        """Tend the run until the condition holds; False when it took longer."""


@dataclass
class Target:
    """A run under faults."""

    run: Run
    """Seen on the way that has none."""
    proxy: FaultProxy
    disk: Path
    pod: Pod
    replace_pod: Callable[[int], None]
    """With one of that many processes."""
    wait: Wait


def strike(fault: Fault, target: Target, held: Held | None) -> None:
    """Inject the fault, undo temporary changes, and return when it is over."""
    _STRIKES[fault.kind.name](fault, target, held)


def newest_valid(run: Run) -> int:
    """Return the step of the newest valid checkpoint, 0 without one. The run must not resume from an earlier step."""
    for manifest in resumable_checkpoints(run.store):
        with suppress(DamagedError, NotFoundError):
            read_state(run.store, manifest)
            return manifest.step
    return 0


def _release(held: Held | None, *, drop: bool = False) -> None:
    if held is not None:
        held.release(drop=drop)


def _to_rank(number: int) -> Callable[[Fault, Target, Held | None], None]:
    def strike(fault: Fault, target: Target, held: Held | None) -> None:
        send(_rank(fault, target), number)
        _release(held, drop=number == signal.SIGKILL)

    return strike


def _rank(fault: Fault, target: Target) -> int:
    target.wait(target.pod.ranks)
    ranks = target.pod.ranks()
    return ranks[fault.rank % len(ranks)]


def _kill_torchrun(fault: Fault, target: Target, held: Held | None) -> None:
    target.wait(target.pod.torchrun)
    pid = target.pod.torchrun()
    assert pid is not None
    send(pid, signal.SIGKILL)
    _release(held, drop=True)


def _kill_entrypoint(fault: Fault, target: Target, held: Held | None) -> None:
    """Kill the entrypoint only; its child processes must end too."""
    pod, below = target.pod, descendants(target.pod.process.pid)
    pod.process.kill()
    _release(held, drop=True)
    pod.process.wait()
    target.replace_pod(fault.size)
    target.wait(lambda: not any(map(is_alive, below)))
    pod.kill()


def _kill_everything(fault: Fault, target: Target, held: Held | None) -> None:
    target.pod.kill()
    _release(held, drop=True)
    target.replace_pod(fault.size)


def _stop_pod(fault: Fault, target: Target, held: Held | None) -> None:
    pod, process = target.pod, target.pod.process
    process.terminate()
    _release(held)
    target.wait(lambda: process.poll() is not None, LONGEST_GRACE)
    pod.kill()
    if target.run.result() is None:
        target.replace_pod(fault.size)


def _zombie(fault: Fault, target: Target, held: Held | None) -> None:
    """All of a pod stands still, another takes over, and the first one wakes up in the midst of its work."""
    zombie, before = target.pod, newest_attempt(target.run.store)
    frozen = zombie.freeze()
    try:
        target.replace_pod(fault.size)
        target.wait(lambda: newest_attempt(target.run.store) > before)
        _release(held)
        for pid in frozen:
            send(pid, signal.SIGCONT)
        target.wait(lambda: zombie.process.poll() is not None, ZOMBIE_SECONDS)
    finally:
        zombie.kill()


def _failing(*faults: tuple[Kind, tuple[str, ...]]) -> Callable[[Fault, Target, Held | None], None]:
    """Requests fail for the fault's seconds."""

    def strike(fault: Fault, target: Target, held: Held | None) -> None:
        for kind, methods in faults:
            for method in methods:
                target.proxy.fail(kind, MANY, method=method)
        _release(held, drop=True)
        target.wait(lambda: False, fault.seconds)
        target.proxy.clear()

    return strike


def _burst(fault: Fault, target: Target, held: Held | None) -> None:
    _failing(*(("error" if (fault.rank + i) % 2 else "slow_down", (m,)) for i, m in enumerate(METHODS)))(
        fault, target, held
    )


def _reading(fault: Fault, target: Target, held: Held | None) -> None:
    """A world that begins reads most."""
    target.proxy.clear()
    kind, times = READS[fault.kind.name]
    target.proxy.fail(kind, times, key=OBJECTS if kind == "alter" else "")
    if fault.moment != "preparing":
        send(_rank(fault, target), signal.SIGKILL)
    _release(held, drop=True)
    target.wait(lambda: target.proxy.hits)
    target.wait(lambda: False, fault.seconds)
    target.proxy.clear()


def _damage(fault: Fault, target: Target, held: Held | None) -> None:
    target.pod.kill()
    store = target.run.store
    found = stored_checkpoints(store)
    if found:
        _damage_checkpoint(fault.variant, target.run, found[0])
    target.replace_pod(fault.size)


def _damage_checkpoint(how: str, run: Run, manifest: StoredCheckpoint) -> None:
    state = run.store.get(manifest.state_key)
    if how == "altered":
        middle = len(state) // 2
        run.store.put(manifest.state_key, state[:middle] + bytes([state[middle] ^ 1]) + state[middle + 1 :])
    elif how == "cut":
        run.store.put(manifest.state_key, state[: len(state) // 2])
    elif how == "no state":
        run.store.delete(manifest.state_key)
    elif how == "no manifest":
        run.store.delete(manifest.key)
    else:
        run.store.put(keys.LATEST, b'{"step": ')


def _fill_disk(fault: Fault, target: Target, held: Held | None) -> None:
    filler = target.disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):  # no space left
        while True:
            file.write(bytes(1 << 16))
    send(_rank(fault, target), signal.SIGKILL)
    _release(held)
    target.wait(lambda: False, fault.seconds)
    filler.unlink()


_STRIKES: dict[str, Callable[[Fault, Target, Held | None], None]] = {
    "SIGKILL of a rank": _to_rank(signal.SIGKILL),
    "SIGKILL of torchrun": _kill_torchrun,
    "SIGKILL of the entrypoint": _kill_entrypoint,
    "SIGKILL of everything": _kill_everything,
    "SIGTERM to a rank": _to_rank(signal.SIGTERM),
    "SIGTERM to the entrypoint": _stop_pod,
    "hang of a rank": _to_rank(signal.SIGSTOP),
    "zombie": _zombie,
    "5xx burst": _burst,
    "outage": _failing(("drop", METHODS)),
    "dropped answers to PUT": _failing(("drop_answer", ("PUT",))),
    "slow reads": _reading,
    "truncated reads": _reading,
    "altered reads": _reading,
    "damaged checkpoint": _damage,
    "clock skew": _failing(("skew", METHODS)),
    "expired credentials": _failing(("expired", METHODS)),
    "full disk": _fill_disk,
}
