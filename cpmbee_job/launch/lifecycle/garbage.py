"""Find and delete objects below an output that no run needs (`gc`).

Recently written objects are kept, since they may belong to an active writer. Of the others, these are garbage:

- checkpoints beyond the `train.keep_checkpoints` newest complete ones of their run, and incomplete checkpoints
- deltas beyond them that neither BEST, LAST nor the spec of a run names, and incomplete deltas
- prepared data, unless an unsuccessful run is bound to it
- uploads, unless the spec of any run names them
- folders of inferences that never finished; results are kept
- interrupted uploads of single objects

The runs of an output share prepared data and uploads. Both are kept while a run is not bound to its data yet, or cannot
be read. Deltas are also kept while a run cannot be read, since it may start from one. A recent unfinished inference
protects its inputs like a run. `collect` checks all this again before it deletes a shared folder.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from cpmbee_job.documents import Document
from cpmbee_job.errors import CpmbeeError, DamagedError, NotFoundError
from cpmbee_job.run import keys
from cpmbee_job.run.attempts import read_checkpoint_pointer
from cpmbee_job.run.checkpoints import stored_checkpoints, superseded
from cpmbee_job.run.deltas import DeltaFolder, delta_folders, pointed_deltas
from cpmbee_job.run.run import Run, may_resume
from cpmbee_job.spec import StorageSpec
from cpmbee_job.spec.types import RESERVED_NAMES
from cpmbee_job.store.base import Leftover, ObjectInfo, Store
from cpmbee_job.store.urls import open_store

Kind = Literal["checkpoint", "delta", "prepared", "upload", "inference", "cut upload"]
SHARED: dict[Kind, tuple[str, str]] = {
    "prepared": ("prepared", "no run can resume with it"),
    "upload": ("uploads", "no run's spec names it"),
    "inference": ("inference", "it has no result"),
}
"""What the runs share: its folder in the output, and why it is garbage."""
MANIFEST = re.compile(r"/(manifest(\.\d+)?|index|part-\d+)\.json$")
"""Keys of manifests and indexes."""


class InferenceRequest(Document):
    """The request that an inference in a pod leaves in its folder, as far as it is read here."""

    command: keys.InferenceCommand
    model: str
    delta: str | None
    data: str


@dataclass(frozen=True)
class Garbage:
    """Objects that are deleted together."""

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
class GarbageReport:
    """The garbage of an output."""

    garbage: tuple[Garbage, ...]
    notes: tuple[str, ...]
    """What was kept because it could not be decided, and why."""
    before: float
    """The latest time of modification, in seconds since 1970."""


def find_garbage(output: str, storage: StorageSpec, before: float) -> GarbageReport:
    """Find the garbage under `output` among objects modified before `before` (seconds since 1970)."""
    store = open_store(output, storage)
    needs = _Needs(store, storage, before)
    garbage: list[Garbage] = []
    for run in needs.runs:
        garbage += _checkpoints(run, before)
        if needs.unreadable:
            continue  # that run might start from one of the deltas
        try:
            garbage += [one for one in _deltas(run, before) if not any(url.startswith(one.url) for url in needs.inputs)]
        except DamagedError as error:
            needs.undecided.append(f"{error.message}; its deltas are kept")
    for kind, (folder, why) in SHARED.items():
        for place, entries in _by_folder(store.list(f"{folder}/")).items():
            if needs.is_garbage(kind, place) and _all_before(entries, before):
                garbage.append(Garbage(kind, f"{store.url}/{place}/", why, tuple(entries), store=store))
    for leftover in store.leftovers():
        if leftover.modified < before:
            url = f"{store.url}/{leftover.key}"
            garbage.append(Garbage("cut upload", url, "the upload was interrupted", leftover=leftover, store=store))
    return GarbageReport(tuple(garbage), (*needs.unreadable, *needs.undecided), before)


def collect(report: GarbageReport, storage: StorageSpec, done: Callable[[Garbage], None]) -> list[Garbage]:
    """Delete the garbage, except what has been needed again since. Returns what was deleted."""
    deleted = []
    for one in report.garbage:
        if one.kind in SHARED:
            place = one.url.removeprefix(f"{one.store.url}/").rstrip("/")
            if not _Needs(one.store, storage, report.before).is_garbage(one.kind, place):
                continue
        if one.leftover is not None:
            one.store.discard(one.leftover)
        # Manifests and indexes first, so that an interrupted deletion leaves nothing that looks complete.
        for entry in sorted(one.objects, key=lambda entry: (not MANIFEST.search(entry.key), entry.key)):
            one.store.delete(entry.key)
        deleted.append(one)
        done(one)
    return deleted


class _Needs:
    """What the runs and the inferences of an output need. Objects modified before `before` have no active writer."""

    def __init__(self, store: Store, storage: StorageSpec, before: float) -> None:
        self.runs: list[Run] = []
        """The readable runs."""
        self.unreadable: list[str] = []
        """Notes about other runs and inferences."""
        self.undecided: list[str] = []
        """Notes about runs that are not bound to their data yet."""
        self.inputs: set[str] = set()
        """URLs with a trailing slash: the inputs of runs and unfinished inferences."""
        self._prepared: set[str] = set()
        self._never_finished: set[str] = set()
        """Folders of old inferences without a result."""
        for name in store.folders():
            for run_id in store.folders(name) if name not in RESERVED_NAMES else ():
                with self._note_unreadable(f"{name}/{run_id}"):
                    self._add_run(f"{name}/{run_id}", f"{store.url}/{name}/{run_id}", storage)
        for folder, entries in _by_folder(store.list("inference/")).items():
            if not {entry.key.rpartition("/")[2] for entry in entries}.intersection(keys.INFERENCE_RESULTS.values()):
                with self._note_unreadable(folder):
                    self._add_unfinished(store, folder, is_old=_all_before(entries, before))

    def is_garbage(self, kind: Kind, folder: str) -> bool:
        """Return whether a shared folder is not needed."""
        if kind == "inference":
            return folder in self._never_finished
        uploads = {url.partition("/uploads/")[2].partition("/")[0] for url in self.inputs if "/uploads/" in url}
        used = self._prepared if kind == "prepared" else uploads
        return not self.unreadable and not self.undecided and folder.rpartition("/")[2] not in used

    @contextmanager
    def _note_unreadable(self, place: str) -> Iterator[None]:
        try:
            yield
        except CpmbeeError as error:
            self.unreadable.append(f"{place} cannot be read; keeping it, deltas, prepared data and uploads: {error}")

    def _add_run(self, place: str, url: str, storage: StorageSpec) -> None:
        try:
            run = Run.open(url, storage)
            result = run.result()
            if run.store.info(keys.DATA) is not None:
                if result is None or may_resume(result["state"]):
                    data = run.data()
                    splits = [data[split] for split in ("train", "eval") if data[split] is not None]
                    self._prepared |= {one["prepared"] for split in splits for one in split["sets"]}
            elif result is None:
                self.undecided.append(f"{place} is not bound to its data yet; keeping prepared data and uploads")
        except NotFoundError:
            return  # not a run's folder
        self._add_inputs(run.spec.inputs.values())
        self.runs.append(run)

    def _add_unfinished(self, store: Store, folder: str, *, is_old: bool) -> None:
        key = f"{folder}/{keys.REQUEST}"
        try:
            request = InferenceRequest.parse(store.get(key), f"{store.url}/{key}")
        except NotFoundError:
            request = None
        if is_old:
            self._never_finished.add(folder)
        elif request is not None:
            self._add_inputs([request.model, request.data, *([request.delta] if request.delta else [])])

    def _add_inputs(self, urls: Iterable[str]) -> None:
        self.inputs |= {f"{url.rstrip('/')}/" for url in urls}


def _checkpoints(run: Run, before: float) -> Iterator[Garbage]:
    entries: dict[tuple[int, int], list[ObjectInfo]] = defaultdict(list)
    for entry in run.store.list("checkpoints/"):
        match = re.fullmatch(r"checkpoints/(\d+)/(?:manifest|state)\.(\d+)\.\w+", entry.key)
        if match:
            entries[int(match[1]), int(match[2])].append(entry)
    keep = run.spec.train.keep_checkpoints
    complete = [one for one in stored_checkpoints(run.store) if len(entries[one.step, one.attempt]) == 2]
    beyond = {(one.step, one.attempt) for one in superseded(complete, keep)}
    latest = _latest(run.store)
    for (step, attempt), objects in sorted(entries.items()):
        is_incomplete = len(objects) < 2
        if (is_incomplete or (step, attempt) in beyond) and (step, attempt) != latest and _all_before(objects, before):
            why = "incomplete checkpoint" if is_incomplete else f"not among the newest {keep}"
            url = f"{run.url}/checkpoints/{step}/ (attempt {attempt})"
            yield Garbage("checkpoint", url, why, tuple(objects), store=run.store)


def _latest(store: Store) -> tuple[int, int] | None:
    try:
        latest = read_checkpoint_pointer(store, keys.LATEST)
        return latest.step, latest.attempt
    except (NotFoundError, DamagedError):
        return None


def _deltas(run: Run, before: float) -> Iterator[Garbage]:
    """Raises `DamagedError` for a corrupt pointer."""
    listed = list(run.store.list("delta/"))
    pointed = pointed_deltas(run.store)
    entries: dict[DeltaFolder, list[ObjectInfo]] = {
        folder: [entry for entry in listed if entry.key.startswith(folder.prefix)]
        for folder in delta_folders(entry.key for entry in listed)
    }
    complete = [folder for folder, found in entries.items() if folder.manifest_key in {one.key for one in found}]
    kept = set(complete[: run.spec.train.keep_checkpoints])
    for folder, objects in entries.items():
        if folder not in kept and folder.prefix not in pointed and _all_before(objects, before):
            why = "neither the best nor among the newest" if folder in complete else "incomplete delta"
            yield Garbage("delta", f"{run.url}/{folder.prefix}", why, tuple(objects), store=run.store)


def _by_folder(entries: Iterable[ObjectInfo]) -> dict[str, list[ObjectInfo]]:
    """Group objects by the first two parts of their keys."""
    found: dict[str, list[ObjectInfo]] = defaultdict(list)
    for entry in entries:
        found["/".join(entry.key.split("/")[:2])].append(entry)
    return found


def _all_before(entries: Iterable[ObjectInfo], before: float) -> bool:
    return all(entry.modified is not None and entry.modified < before for entry in entries)
