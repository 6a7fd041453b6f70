"""Which faults strike a run, when, and in which order: a function of their number and a seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Moment = Literal["preparing", "starting", "training", "evaluating", "checkpointing", "publishing", "ending"]

ANY: tuple[Moment, ...] = ("preparing", "starting", "training", "evaluating", "checkpointing", "publishing", "ending")
WITH_RANKS: tuple[Moment, ...] = ("starting", "training", "evaluating", "checkpointing", "publishing", "ending")
EARLY: tuple[Moment, ...] = ("preparing", "starting")
IN_THE_LOOP: tuple[Moment, ...] = ("training", "evaluating", "checkpointing", "publishing")
READING: tuple[Moment, ...] = ("preparing", "training", "evaluating", "checkpointing")

REQUESTS: dict[Moment, Sequence[str]] = {
    "preparing": ("GET /spec.yaml",),
    "starting": ("PUT /attempts/",),
    "checkpointing": ("PUT /rows/", "PUT /state.", "PUT /manifest.", "PUT /LATEST", "PUT /metrics.jsonl"),
    "publishing": ("PUT /delta/", "PUT /BEST"),
    "ending": ("PUT /LAST", "PUT /result.json", "PUT /tensorboard/"),
}
"""It is that moment while one of these is under way: a method, and a part of an object's name."""
FIRST_REQUEST = "PUT /prepared/"


@dataclass(frozen=True)
class Kind:
    name: str
    moments: Sequence[Moment]
    interrupts: bool = True
    """Whether the attempt ends."""
    ends_pod: bool = False
    """Another pod takes its place, with another number of processes."""
    seconds: Sequence[float] = (0.0,)
    """For how long it lasts, one of them."""
    least_size: int = 1
    variants: Sequence[str] = ("",)


KINDS = (
    Kind("SIGKILL of a rank", WITH_RANKS),
    Kind("SIGKILL of torchrun", WITH_RANKS),
    Kind("SIGKILL of the entrypoint", ANY, ends_pod=True),
    Kind("SIGKILL of everything", ANY, ends_pod=True),
    Kind("SIGTERM to a rank", IN_THE_LOOP),
    Kind("SIGTERM to the entrypoint", ANY, ends_pod=True),
    Kind("hang of a rank", WITH_RANKS, least_size=2),
    Kind("zombie", IN_THE_LOOP, ends_pod=True),
    Kind("5xx burst", ANY, interrupts=False, seconds=(1, 2, 4)),
    Kind("outage", ANY, interrupts=False, seconds=(2, 4, 8)),
    Kind("dropped answers to PUT", ANY, interrupts=False, seconds=(1, 2, 4)),
    Kind("slow reads", READING, seconds=(4, 8)),
    Kind("truncated reads", READING, seconds=(4, 8)),
    Kind("altered reads", READING, seconds=(4, 8)),
    Kind(
        "damaged checkpoint",
        ("training", "evaluating"),
        ends_pod=True,
        variants=("altered", "cut", "no state", "no manifest", "LATEST"),
    ),
    Kind("clock skew", ANY, interrupts=False, seconds=(2, 4)),
    Kind("expired credentials", ANY, interrupts=False, seconds=(2, 4)),
    Kind("full disk", ("training", "checkpointing", "publishing"), seconds=(3, 6)),
)

SUDDEN = ("SIGKILL of everything", "SIGTERM to the entrypoint", "damaged checkpoint")
"""After these the next pod is only just there."""

LONG_OUTAGE = 60.0
FAULTS_WITH_A_LONG_OUTAGE = 20
"""Fewer than these have none, so that they end soon."""

CHECKPOINT_INTERVAL, EVAL_INTERVAL = 4, 10
PACE = 0.25
"""Seconds that a step lasts at least, as long as faults come."""
_STEPS_BETWEEN = (1, 8)
_SLACK = 3
_TAIL = 5 * CHECKPOINT_INTERVAL
"""Undisturbed steps in the end, after which no damaged checkpoint is kept."""


@dataclass(frozen=True)
class Fault:
    number: int
    kind: Kind
    moment: Moment
    steps: int
    """Since the recovery of the one before."""
    request: str
    """Of `REQUESTS`; empty where the moment has none."""
    before: bool
    """The request has not reached the store yet; else it was carried out, and its answer is under way."""
    rank: int
    size: int
    """Of the world that comes after it, where it ends the pod."""
    seconds: float
    variant: str

    def text(self) -> str:
        when = f"while {self.moment}"
        if self.request:
            when += f", {'before' if self.before else 'after'} {self.request}"
        what = f"{self.kind.name} ({self.variant})" if self.variant else self.kind.name
        return f"{what}{f' for {self.seconds:g} s' if self.seconds else ''} {when}"


@dataclass(frozen=True)
class Plan:
    seed: str
    first_size: int
    faults: Sequence[Fault]

    @property
    def steps(self) -> int:
        """That a run must have for all of them."""
        waits = {"evaluating": EVAL_INTERVAL, "publishing": EVAL_INTERVAL, "checkpointing": CHECKPOINT_INTERVAL}
        each = (f.steps + waits.get(f.moment, 0) + round(f.seconds / PACE) + _SLACK for f in self.faults)
        return sum(each) + _TAIL


def draw(seed: str, count: int, kinds: Sequence[Kind] = KINDS) -> Plan:
    """`count` faults: every kind comes once before one comes again. The first strikes while the data is prepared, the
    last while the run publishes its end."""
    random_ = random.Random(seed)
    size = first_size = random_.randint(1, 3)
    deck: list[Kind] = []
    faults: list[Fault] = []
    while len(faults) < count:
        if not any(_moments(kind, faults, count, size) for kind in deck):
            deck += random_.sample(kinds, len(kinds))
        kind = next(kind for kind in deck if _moments(kind, faults, count, size))
        deck.remove(kind)
        moment = random_.choice(_moments(kind, faults, count, size))
        fault = Fault(
            number=len(faults) + 1,
            kind=kind,
            moment=moment,
            steps=random_.randint(*_STEPS_BETWEEN),
            request=random_.choice(REQUESTS.get(moment, [""])) if faults else FIRST_REQUEST,
            before=random_.random() < 0.5,
            rank=random_.randrange(size),
            size=random_.choice([1, 1, 2, 2, 2, 3, 3, 4]) if kind.ends_pod else size,
            seconds=random_.choice(kind.seconds),
            variant=random_.choice(kind.variants),
        )
        if kind.name == "outage" and _has_no_long_one(faults) and count >= FAULTS_WITH_A_LONG_OUTAGE:
            fault = Fault(**vars(fault) | {"seconds": LONG_OUTAGE})
        faults.append(fault)
        size = fault.size
    return Plan(seed, first_size, faults)


def _moments(kind: Kind, before: Sequence[Fault], count: int, size: int) -> list[Moment]:
    """At which the next fault can be of that kind."""
    if size < kind.least_size:
        return []
    possible = IN_THE_LOOP
    if not before:
        possible = ("preparing",)
    elif len(before) == count - 1:
        possible = ("ending",)
    elif before[-1].kind.name in SUDDEN and set(kind.moments) & set(EARLY):
        possible = EARLY
    return [moment for moment in kind.moments if moment in possible]


def _has_no_long_one(faults: Sequence[Fault]) -> bool:
    return all(fault.seconds < LONG_OUTAGE for fault in faults)
