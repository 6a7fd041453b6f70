"""Drive one run through a plan of faults and record the outcome of each."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cpmbee_job.run.attempts import newest_attempt
from cpmbee_job.run.run import Run
from tests.chaos.plan import PACE, Fault, Plan
from tests.chaos.pod import Pod
from tests.chaos.record import Record
from tests.chaos.strikes import Target, newest_valid, strike
from tests.integration.faults import FaultProxy, Held

POLL = 0.01
"""Seconds between two looks."""
STEPS_FOR_A_MOMENT = 12
"""Where the moment has not come after so many steps (no evaluation was a better one), the fault strikes without."""


class RunEndedError(Exception):
    """Its result is there, and its pod has ended."""


class OutOfTimeError(Exception):
    """The time limit has passed."""


@dataclass
class Struck:
    """A fault that was carried out, and what it cost."""

    fault: Fault
    at: float
    """Seconds since the begin of the chaos run."""
    step: int
    """Steps done by then."""
    valid_step: int
    """Of the newest valid checkpoint by then."""
    attempts_before: int
    attempts_recorded: int
    """Of them, those that had done a step."""
    log_begin: int
    """Where the pods' log was, in bytes; `log_end` the same at its recovery."""
    came: bool
    """Whether its moment had come."""
    damaged_step: int = 0
    """Of the newest valid checkpoint before it was damaged."""
    recovered_after: float | None = None
    """Seconds until a step came that had not been done before."""
    log_end: int = 0
    restarts: int = 0
    """Attempts until then."""
    lost: int = 0
    """Steps that were done again."""


class Driver:
    def __init__(
        self,
        plan: Plan,
        run: Run,
        proxy: FaultProxy,
        environment: Mapping[str, str],
        folder: Path,
        disk: Path,
        seconds: float,
        report: Callable[[str], None],
    ) -> None:
        """`run` as it is seen without faults, `environment` what leads its pods through the proxy."""
        self.plan, self.run, self.struck = plan, run, list[Struck]()
        self.problems: list[str] = []
        self.log = folder / "pods.log"
        self.log.touch()
        self.record = Record(folder / "record")
        self.pods = 0
        self._report = report
        self._begun_at = time.monotonic()
        self._seconds = seconds
        self._disk = disk
        places = [str(Path(__file__).with_name("recording")), os.environ.get("PYTHONPATH", "")]
        own = {"CHAOS_RECORD": str(self.record.path), "PYTHONPATH": os.pathsep.join(filter(None, places))}
        self._environment = {**environment, **own}
        self._target = Target(run, proxy, disk, self._new_pod(plan.first_size), self._replace_pod, self.wait)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._begun_at

    def drive(self) -> None:
        """Until the run has ended. Raises `OutOfTimeError`."""
        try:
            self.record.pace(PACE)
            for fault in self.plan.faults:
                self._play(fault)
            self.record.pace(None)
            self.wait(lambda: False)
        except RunEndedError:
            for struck in self._open():
                self._recovered(struck)
        finally:
            self._target.pod.kill()

    def wait(self, condition: Callable[[], object], longest: float = float("inf")) -> bool:
        """Tend the run until the condition holds; False when it took longer."""
        end = time.monotonic() + longest
        while not condition():
            self._look()
            if time.monotonic() > end:
                return False
            time.sleep(POLL)
        return True

    def _look(self) -> None:
        if self.elapsed > self._seconds:
            raise OutOfTimeError
        if not self._target.pod.tend(lambda: self.run.result() is not None):
            raise RunEndedError
        before = self.record.step
        for resumption in self.record.read():
            self._resumed(resumption.after, resumption.lost)
        if self.record.step > before:
            for struck in self._open():
                has_restarted = self.record.attempts > struck.attempts_recorded
                if self.record.step > struck.step and (has_restarted or not struck.fault.kind.interrupts):
                    self._recovered(struck)

    def _play(self, fault: Fault) -> None:
        proxy = self._target.proxy
        held, came = self._reach(fault)
        valid = newest_valid(self.run)
        struck = Struck(
            fault=fault,
            at=self.elapsed,
            step=self.record.step,
            valid_step=valid,
            attempts_before=newest_attempt(self.run.store),
            attempts_recorded=self.record.attempts,
            log_begin=self.log.stat().st_size,
            came=came,
        )
        self.struck.append(struck)
        try:
            strike(fault, self._target, held)
            if fault.kind.name == "damaged checkpoint":
                struck.damaged_step, struck.valid_step = valid, newest_valid(self.run)
            following = self.plan.faults[fault.number : fault.number + 1]
            if not following or following[0].moment not in ("preparing", "starting"):
                self.wait(lambda: struck.recovered_after is not None)
        finally:
            proxy.clear()
            (self._disk / "filler").unlink(missing_ok=True)
            if held is not None:
                proxy.let_go(held)

    def _reach(self, fault: Fault) -> tuple[Held | None, bool]:
        """Wait for the fault's moment: the request that is held for it, and whether it came."""
        if fault.moment not in ("preparing", "starting", "ending"):
            begin = self.record.step
            self.wait(lambda: self.record.step >= begin + fault.steps)
        begin, evaluations = self.record.step, self.record.evaluations
        held = None
        if fault.request:
            method, _, key = fault.request.partition(" ")
            held = self._target.proxy.hold(key, method=method, before=fault.before)

        def has_come() -> bool:
            if fault.moment == "evaluating":
                return self.record.evaluations > evaluations
            return held is None or held.reached.is_set()

        def is_late() -> bool:
            return fault.moment != "ending" and self.record.step > begin + STEPS_FOR_A_MOMENT

        if fault.moment == "ending":
            self.record.pace(None)
        self.wait(lambda: has_come() or is_late())
        return held, has_come()

    def _open(self) -> list[Struck]:
        return [struck for struck in self.struck if struck.recovered_after is None]

    def _resumed(self, after: int, lost: int) -> None:
        """Record that an attempt resumed after that step and repeated `lost` steps."""
        struck = self._open() or self.struck[-1:]
        for one in struck:
            one.step = max(one.step, after + lost)  # what it had done by its end
        struck[0].lost += lost
        least = min(one.valid_step for one in struck)
        if after < least:
            message = f"went on after step {after}, though the checkpoint of step {least} was whole"
            self.problems.append(f"fault {struck[-1].fault.number}: {message}")

    def _recovered(self, struck: Struck) -> None:
        struck.recovered_after = self.elapsed - struck.at
        struck.log_end = self.log.stat().st_size
        struck.restarts = newest_attempt(self.run.store) - struck.attempts_before
        message = struck.fault.text() if struck.came else f"{struck.fault.text()} (which did not come)"
        self._report(
            f"{struck.fault.number}/{len(self.plan.faults)}  {message}, at step {struck.step}: "
            f"recovered in {struck.recovered_after:.0f} s, {struck.lost} steps lost"
        )

    def _new_pod(self, size: int) -> Pod:
        self.pods += 1
        return Pod(self.run.url, size, self._environment, self._disk / f"pod-{self.pods}", self.log)

    def _replace_pod(self, size: int) -> None:
        self._target.pod = self._new_pod(size)
