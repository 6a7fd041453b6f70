"""A run's best delta becomes the one that a folder stands for, where it is better than the one before.

The order makes that nothing is ever half there: files, manifest, pointer. The pointer moves by conditional put, so of
two that promote at once the second finds the first's delta, and has to be better than that.
"""

import hashlib
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cpmbee_job import documents
from cpmbee_job.errors import (
    ConflictError,
    DamagedError,
    JobFailedError,
    NotFoundError,
    RefusedError,
    UnfinishedError,
    UsageError,
)
from cpmbee_job.launch.local_inputs import Bar, no_bar
from cpmbee_job.run import keys
from cpmbee_job.run.deltas import StoredDelta, copy_scores, read_delta
from cpmbee_job.run.pointers import read_delta_pointer, read_delta_pointer_with_etag, replace_pointer
from cpmbee_job.run.run import Run
from cpmbee_job.store.base import Store
from cpmbee_job.store.verified import download_verified


@dataclass(frozen=True)
class Verdict:
    """Whether a delta may take another's place. Losses are None where there is no such score (or no incumbent)."""

    better: bool
    why: str
    eval_digest: str | None
    candidate: float | None
    incumbent: float | None
    hint: str | None = None

    @property
    def gain(self) -> float | None:
        """By how much the candidate's loss is lower."""
        return None if self.candidate is None or self.incumbent is None else self.incumbent - self.candidate


@dataclass(frozen=True)
class Promotion:
    """What a promote has led to."""

    promoted: bool
    """Whether the folder stands for the delta now; also where it did before."""
    changed: bool
    run: str
    to: str
    delta: str
    """URL of the delta's folder there."""
    incumbent: str | None
    """The run of the delta that was there before, None for an empty folder."""
    verdict: Verdict

    def record(self) -> dict[str, Any]:
        """As JSON."""
        verdict = asdict(self.verdict)
        return {
            "promoted": self.promoted,
            "changed": self.changed,
            "run": self.run,
            "to": self.to,
            "delta": self.delta,
            "why": verdict["why"],
            "eval_digest": verdict["eval_digest"],
            "gain": self.verdict.gain,
            "candidate": {"run": self.run, "eval_loss": verdict["candidate"]},
            "incumbent": None if self.incumbent is None else {"run": self.incumbent, "eval_loss": verdict["incumbent"]},
        }

    def require_promoted(self) -> None:
        """Raises `RefusedError`, with both scores, for one that was refused."""
        if not self.promoted:
            raise RefusedError(f"{self.to}: not promoted: {self.verdict.why}", hint=self.verdict.hint)


def promote(
    run: Run,
    target: Store,
    *,
    min_gain: float = 0.0,
    eval_digest: str | None = None,
    bar: Bar = no_bar,
) -> Promotion:
    """Let `target` stand for the run's best delta, if its loss is below that of the delta it stands for, by `min_gain`
    at least, on the same examples: those that the run was evaluated on, or those of `eval_digest`.

    Raises `UnfinishedError`, `JobFailedError` for a run that has not succeeded, `NotFoundError` where it has no delta,
    `DamagedError` where a hash does not hold.
    """
    _require_success(run)
    if target.info(keys.SPEC) is not None:
        raise RefusedError(f"{target.url}: a run's folder", hint="deltas are promoted to a folder of their own")
    candidate = read_delta(run.store, read_delta_pointer(run.store, keys.BEST))
    prefix = f"delta/{hashlib.sha256(candidate.text).hexdigest()[:16]}/"
    copied = False
    while True:
        incumbent, etag = _incumbent(target)
        ends: dict[str, Any] = {"run": run.url, "to": target.url, "delta": f"{target.url}/{prefix}"}
        ends["incumbent"] = None if incumbent is None else incumbent.run
        if incumbent is not None and incumbent.prefix == prefix:
            copy_scores(candidate, target, prefix)
            same = judge(candidate, None, min_gain, eval_digest)
            verdict = Verdict(True, "it is the one there already", same.eval_digest, same.candidate, same.candidate)
            return Promotion(True, False, verdict=verdict, **ends)
        verdict = judge(candidate, incumbent, min_gain, eval_digest)
        if not verdict.better:
            return Promotion(False, False, verdict=verdict, **ends)
        if not copied:
            _copy(candidate, target, prefix, bar)
            copied = True
        pointer = {
            "prefix": prefix,
            "run": run.url,
            "promoted_at": documents.now(),
            "eval_digest": verdict.eval_digest,
            "eval_loss": verdict.candidate,
            "before": None if incumbent is None else incumbent.prefix,
        }
        try:
            replace_pointer(target, keys.BEST, pointer, etag)
        except ConflictError:
            continue  # somebody else has promoted meanwhile
        return Promotion(True, True, verdict=verdict, **ends)


def judge(candidate: StoredDelta, incumbent: StoredDelta | None, min_gain: float, eval_digest: str | None) -> Verdict:
    """Whether the candidate is better. Raises `UsageError` where it is not clear on which examples."""
    digest = eval_digest or _only_digest(candidate)
    score = None if digest is None else candidate.scores.get(digest)
    if incumbent is None:
        return Verdict(True, "nothing was there before", digest, None if score is None else score.loss, None)
    if digest is None or score is None:
        hint = (
            "train with data.eval, or `cpmbee-job evaluate --record` the run's delta and the incumbent on the same rows"
        )
        where = "" if digest is None else f" on the examples of eval digest {digest}"
        why = f"{candidate.run} has no score{where}; {_known('the incumbent', incumbent)}"
        return Verdict(False, why, digest, None, None, hint)
    there = incumbent.scores.get(digest)
    if there is None:
        why = (
            f"{candidate.run} has loss {score.loss:.6f} on the examples of eval digest {digest}, on which the "
            f"incumbent was never scored; {_known('the incumbent', incumbent)}"
        )
        return Verdict(False, why, digest, score.loss, None, _mend(candidate, incumbent))
    gain = there.loss - score.loss
    words = f"loss {score.loss:.6f} of {candidate.run}, {there.loss:.6f} of the incumbent {incumbent.run}"
    words += f", on the same examples (eval digest {digest})"
    if gain > 0 and gain >= min_gain:
        return Verdict(True, words, digest, score.loss, there.loss)
    least = f"; a gain of {min_gain:g} at least is asked for" if min_gain else ""
    return Verdict(False, f"{words}: a gain of {gain:.6f}{least}", digest, score.loss, there.loss)


def _only_digest(candidate: StoredDelta) -> str | None:
    """Of the examples that decide where nobody says which: the run's own, else the only ones with a score."""
    if candidate.trained_digest is not None:
        return candidate.trained_digest
    if len(candidate.scores) > 1:
        raise UsageError(
            f"{candidate.url} has scores on several sets of examples",
            hint=f"--eval-digest {' or '.join(candidate.scores)}",
        )
    return next(iter(candidate.scores), None)


def _known(who: str, delta: StoredDelta) -> str:
    """The scores of a delta in words."""
    if not delta.scores:
        return f"{who} ({delta.run}) has no score at all"
    scores = ", ".join(f"{score.loss:.6f} on {digest}" for digest, score in delta.scores.items())
    return f"{who} ({delta.run}) has {scores}"


def _mend(candidate: StoredDelta, incumbent: StoredDelta) -> str:
    hint = (
        "evaluate the incumbent on this data (data.eval of the run's spec), then promote again: `cpmbee-job evaluate "
        f"--model MODEL --delta {incumbent.store.url} --data EVAL --record`"
    )
    shared = [digest for digest in candidate.scores if digest in incumbent.scores]
    return hint + (f"; or decide by --eval-digest {shared[0]}, on which both have a score" if shared else "")


def _require_success(run: Run) -> None:
    result = run.result()
    if result is None:
        raise UnfinishedError(f"{run.url} has not ended", hint="`cpmbee-job wait` waits for it")
    if result["state"] != "succeeded":
        raise JobFailedError(f"{run.url} has {result['state']}: {result['reason']}", hint="`resume` lets it go on")


def _incumbent(target: Store) -> tuple[StoredDelta | None, str | None]:
    """The delta that the folder stands for, and the tag of the pointer that says so."""
    if target.info(keys.BEST) is None:
        return None, None
    try:
        prefix, etag = read_delta_pointer_with_etag(target, keys.BEST)
        return read_delta(target, prefix), etag
    except (DamagedError, NotFoundError) as error:
        raise DamagedError(
            f"{target.url}/{keys.BEST}: names no delta that is there",
            hint="put back what it names, or delete it to begin anew",
        ) from error


def _copy(delta: StoredDelta, target: Store, prefix: str, bar: Bar) -> None:
    """The delta's folder, its hashes checked; where its manifest is there, all of it is."""
    copy_scores(delta, target, prefix)
    if target.info(prefix + keys.DELTA_MANIFEST) is not None:
        return
    with bar("copy", sum(file.size for file in delta.files.values())) as progress:
        for name, file in delta.files.items():
            with tempfile.TemporaryDirectory(prefix="cpmbee-promote-") as folder:
                path = Path(folder) / name
                download_verified(delta.store, delta.prefix + name, path, file.size, file.sha256, progress)
                target.upload(path, prefix + name, sha256=file.sha256)
    target.put(prefix + keys.DELTA_MANIFEST, delta.text)
