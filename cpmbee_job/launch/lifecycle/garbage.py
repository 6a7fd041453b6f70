"""What lies under an output and no run needs (`gc`), and how it goes.

Nothing goes that was written a short while ago: whoever writes now has written there lately. Of the rest these go:

- checkpoints beyond `train.keep_checkpoints` of their run (counted are those that are whole), and halves of checkpoints
- deltas beyond it that neither BEST nor LAST nor a run's spec names, and halves of deltas
- prepared data that no run is bound to, other than runs that have succeeded
- uploads that no run's spec names, whatever has become of the run
- what inferences have left that never ended; their results are somebody's and stay
- uploads of single objects that were cut and not gone on with

Prepared data and uploads are shared by the runs of an output. They stay while a run has begun that is not bound to its
data yet, or while a run can't be read; both are looked at again before each folder goes. Deltas stay too while a run
can't be read, as it might begin with one. An inference that was begun a short while ago and has not ended needs its
inputs as a run does.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from cpmbee_job.errors import CpmbeeError, DamagedError, NotFoundError
from cpmbee_job.run import keys
from cpmbee_job.run.checkpoints import stored_checkpoints, superseded
from cpmbee_job.run.deltas import DeltaFolder, delta_folders, pointed_deltas
from cpmbee_job.run.inferences import InferenceRequest, read_request
from cpmbee_job.run.pointers import read_checkpoint_pointer
from cpmbee_job.run.run import Run
from cpmbee_job.spec import StorageSpec
from cpmbee_job.spec.types import RESERVED_NAMES
from cpmbee_job.store.base import Leftover, ObjectInfo, Store
from cpmbee_job.store.urls import open_store

Kind = Literal["checkpoint", "delta", "prepared", "upload", "inference", "cut upload"]
SHARED: dict[Kind, tuple[str, str]] = {
    "prepared": ("prepared", "no run goes on with it"),
    "upload": ("uploads", "no run's spec names it"),
    "inference": ("inference", "it left no result"),
}
"""What lies beside the runs: in which folder of the output, and why it goes."""


@dataclass(frozen=True)
class Garbage:
    """Objects that go together."""

    kind: Kind
    url: str
    why: str
    objects: tuple[ObjectInfo, ...] = ()
    leftover: Leftover | None = None
    store: Store = field(repr=False, kw_only=True)

    @property
    def num_bytes(self) -> int:
        return sum(entry.size for entry in self.objects) + (self.leftover.size if self.leftover else 0)


@dataclass(frozen=True)
class Findings:
    """What may go, and what was left alone because it could not be looked at."""

    garbage: tuple[Garbage, ...]
    notes: tuple[str, ...]
    before: float
    """When it was last written, in seconds since 1970, at the latest."""


def find_garbage(output: str, storage: StorageSpec, before: float) -> Findings:
    """What no run under `output` needs, of what was last written `before` a time (seconds since 1970)."""
    store = open_store(output, storage)
    needs = _Needs.of(store, storage, before)
    notes = [*needs.unreadable, *needs.undecided]
    garbage: list[Garbage] = []
    for run in needs.runs:
        garbage += _checkpoints(run, before)
        if needs.unreadable:
            continue  # it might name a delta
        try:
            garbage += [one for one in _deltas(run, before) if not any(url.startswith(one.url) for url in needs.inputs)]
        except DamagedError as error:
            notes.append(f"{error.message}; its deltas are left alone")
    for kind, (folder, why) in SHARED.items():
        for place, entries in _by_folder(store.list(f"{folder}/"), 2).items():
            if needs.let_go(kind, place) and _all_before(entries, before):
                garbage.append(Garbage(kind, f"{store.url}/{place}/", why, tuple(entries), store=store))
    for leftover in store.leftovers():
        if leftover.modified < before:
            why = "it was cut, and nobody goes on with it"
            garbage.append(Garbage("cut upload", f"{store.url}/{leftover.key}", why, leftover=leftover, store=store))
    return Findings(tuple(garbage), tuple(notes), before)


def collect(findings: Findings, storage: StorageSpec, done: Callable[[Garbage], None]) -> list[Garbage]:
    """Delete what was found, but for what somebody has come to need since; returns what is gone."""
    gone = []
    for one in findings.garbage:
        if one.kind in SHARED:
            place = one.url.removeprefix(f"{one.store.url}/").rstrip("/")
            if not _Needs.of(one.store, storage, findings.before).let_go(one.kind, place):
                continue
        if one.leftover is not None:
            one.store.discard(one.leftover)
        # First what makes the others count: half of it must look like nothing.
        for entry in sorted(one.objects, key=lambda entry: (not _names_others(entry.key), entry.key)):
            one.store.delete(entry.key)
        gone.append(one)
        done(one)
    return gone


def _names_others(key: str) -> bool:
    return re.search(r"/(manifest(\.\d+)?|index|part-\d+)\.json$", key) is not None


@dataclass(frozen=True)
class _Needs:
    """What the runs and inferences of an output need of what they share."""

    runs: tuple[Run, ...]
    """Those that can be read."""
    unreadable: tuple[str, ...]
    undecided: tuple[str, ...]
    """Runs that are about to be bound to some prepared data."""
    prepared: frozenset[str]
    inputs: frozenset[str]
    """What runs' specs name, and inferences that may go on; each with a slash behind it."""
    given_up: frozenset[str]
    """Folders of inferences that have left no result."""

    def let_go(self, kind: Kind, folder: str) -> bool:
        """Whether it is known that nobody needs this folder."""
        if kind == "inference":
            return folder in self.given_up
        used = self.prepared if kind == "prepared" else self._uploads
        return not self.unreadable and not self.undecided and folder.rpartition("/")[2] not in used

    @property
    def _uploads(self) -> set[str]:
        return {url.partition("/uploads/")[2].partition("/")[0] for url in self.inputs if "/uploads/" in url}

    @classmethod
    def of(cls, store: Store, storage: StorageSpec, before: float) -> "_Needs":
        """`before`: what was last written before that is not being written."""
        runs, unreadable, undecided = [], [], []
        prepared: set[str] = set()
        inputs: set[str] = set()
        given_up: set[str] = set()
        for name in store.folders():
            for run_id in store.folders(name) if name not in RESERVED_NAMES else ():
                place = f"{name}/{run_id}"
                try:
                    run = Run.open(f"{store.url}/{place}", storage)
                    result = run.result()
                    if run.store.info(keys.DATA) is not None:
                        if result is None or result["state"] != "succeeded":
                            prepared |= {one["prepared"] for split in _splits(run) for one in split["sets"]}
                    elif result is None:
                        undecided.append(f"{place} is not bound to its data yet; prepared data and uploads stay")
                except NotFoundError:
                    continue  # no run's folder
                except CpmbeeError as error:
                    unreadable.append(f"{place} can't be read; it, deltas, prepared data and uploads stay: {error}")
                    continue
                inputs |= {f"{url.rstrip('/')}/" for url in run.spec.inputs.values()}
                runs.append(run)
        for folder, entries in _by_folder(store.list("inference/"), 2).items():
            names = {entry.key.rpartition("/")[2] for entry in entries}
            if names.intersection(keys.INFERENCE_RESULTS.values()):
                continue
            try:
                request = _request(store, folder)
            except CpmbeeError as error:
                unreadable.append(f"{folder} can't be read; it, deltas, prepared data and uploads stay: {error}")
                continue
            if _all_before(entries, before):
                given_up.add(folder)
            elif request is not None:
                named = (request.model, request.delta, request.data)
                inputs |= {f"{url.rstrip('/')}/" for url in named if url is not None}
        return cls(
            tuple(runs),
            tuple(unreadable),
            tuple(undecided),
            frozenset(prepared),
            frozenset(inputs),
            frozenset(given_up),
        )


def _request(store: Store, folder: str) -> InferenceRequest | None:
    try:
        return read_request(store, folder)
    except NotFoundError:
        return None


def _splits(run: Run) -> list[dict[str, list[dict[str, str]]]]:
    data = run.data()
    return [data[split] for split in ("train", "eval") if data[split] is not None]


def _checkpoints(run: Run, before: float) -> Iterator[Garbage]:
    entries: dict[tuple[int, int], list[ObjectInfo]] = defaultdict(list)
    for entry in run.store.list("checkpoints/"):
        match = re.fullmatch(r"checkpoints/(\d+)/(?:manifest|state)\.(\d+)\.\w+", entry.key)
        if match:
            entries[int(match[1]), int(match[2])].append(entry)
    whole = [found for found in stored_checkpoints(run.store) if len(entries[found.step, found.attempt]) == 2]
    beyond = {(found.step, found.attempt) for found in superseded(whole, run.spec.train.keep_checkpoints)}
    latest = _latest(run.store)
    for (step, attempt), parts in sorted(entries.items()):
        is_half = len(parts) < 2
        if (is_half or (step, attempt) in beyond) and (step, attempt) != latest and _all_before(parts, before):
            why = "half of a checkpoint" if is_half else f"not of the newest {run.spec.train.keep_checkpoints}"
            url = f"{run.url}/checkpoints/{step}/ (attempt {attempt})"
            yield Garbage("checkpoint", url, why, tuple(parts), store=run.store)


def _latest(store: Store) -> tuple[int, int] | None:
    try:
        latest = read_checkpoint_pointer(store, keys.LATEST)
        return latest.step, latest.attempt
    except (NotFoundError, DamagedError):
        return None


def _deltas(run: Run, before: float) -> Iterator[Garbage]:
    listed = list(run.store.list("delta/"))
    pointed = pointed_deltas(run.store)
    entries: dict[DeltaFolder, list[ObjectInfo]] = {
        folder: [entry for entry in listed if entry.key.startswith(folder.prefix)]
        for folder in delta_folders(entry.key for entry in listed)
    }
    whole = [folder for folder, parts in entries.items() if folder.manifest_key in {p.key for p in parts}]
    kept = set(whole[: run.spec.train.keep_checkpoints])
    for folder, parts in entries.items():
        if folder not in kept and folder.prefix not in pointed and _all_before(parts, before):
            why = "neither the best nor of the newest" if folder in whole else "half of a delta"
            yield Garbage("delta", f"{run.url}/{folder.prefix}", why, tuple(parts), store=run.store)


def _by_folder(entries: Iterable[ObjectInfo], depth: int) -> dict[str, list[ObjectInfo]]:
    """The objects by the first `depth` parts of their keys."""
    found: dict[str, list[ObjectInfo]] = defaultdict(list)
    for entry in entries:
        found["/".join(entry.key.split("/")[:depth])].append(entry)
    return found


def _all_before(entries: Iterable[ObjectInfo], before: float) -> bool:
    return all(entry.modified is not None and entry.modified < before for entry in entries)
