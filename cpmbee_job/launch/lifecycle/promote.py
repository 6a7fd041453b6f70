"""Promote a run's best delta to a folder, if it is better than the delta that the folder contains.

The order of the writes (files, manifest, pointer) keeps the folder consistent. The pointer is replaced by a conditional
put: of two concurrent promotes, the second one is compared with the delta of the first.
"""

import hashlib
import tempfile
from dataclasses import dataclass
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
from cpmbee_job.run.attempts import replace_pointer
from cpmbee_job.run.deltas import StoredDelta, copy_scores, read_delta, read_delta_pointer, read_delta_pointer_with_etag
from cpmbee_job.run.run import Run
from cpmbee_job.store.base import Store, download_verified


@dataclass(frozen=True)
class PromotionVerdict:
    """Whether a delta may replace another one. Losses are None without a score, or without an incumbent."""

    better: bool
    why: str
    eval_digest: str | None
    candidate: float | None
    incumbent: float | None
    hint: str | None = None

    @property
    def gain(self) -> float | None:
        """The difference between the incumbent's and the candidate's loss."""
        return None if self.candidate is None or self.incumbent is None else self.incumbent - self.candidate


@dataclass(frozen=True)
class Promotion:
    """The outcome of a promote."""

    promoted: bool
    """Whether the folder now contains the delta, even if it did before."""
    changed: bool
    run: str
    to: str
    delta: str
    """URL of the delta's folder in it."""
    incumbent: str | None
    """The run of the previous delta, None for an empty folder."""
    verdict: PromotionVerdict

    def record(self) -> dict[str, Any]:
        """Return the JSON of `promote --json`."""
        verdict = self.verdict
        return {
            "promoted": self.promoted,
            "changed": self.changed,
            "run": self.run,
            "to": self.to,
            "delta": self.delta,
            "why": verdict.why,
            "eval_digest": verdict.eval_digest,
            "gain": verdict.gain,
            "candidate": {"run": self.run, "eval_loss": verdict.candidate},
            "incumbent": None if self.incumbent is None else {"run": self.incumbent, "eval_loss": verdict.incumbent},
        }

    def require_promoted(self) -> None:
        """Raise `RefusedError` with both scores if the delta is not promoted."""
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
    """Copy the run's best delta to `target` and point its `delta/BEST` there, if the loss is lower than the current
    delta's, by at least `min_gain`, on the same examples: those of the run's evaluation, or of `eval_digest`.

    Raises `UnfinishedError` or `JobFailedError` if the run has not succeeded, `NotFoundError` if it has no delta,
    `DamagedError` if a file differs from its manifest.
    """
    _require_success(run)
    if target.info(keys.SPEC) is not None:
        raise RefusedError(f"{target.url}: is a run's folder", hint="promote to a separate folder")
    candidate = read_delta(run.store, read_delta_pointer(run.store, keys.BEST))
    prefix = f"delta/{hashlib.sha256(candidate.text).hexdigest()[:16]}/"
    copied = False
    while True:
        incumbent, etag = _incumbent(target)
        is_same = incumbent is not None and incumbent.prefix == prefix
        verdict = judge(candidate, None if is_same else incumbent, min_gain, eval_digest)
        if is_same:
            copy_scores(candidate, target, prefix)
            why, loss = "the folder already contains it", verdict.candidate
            verdict = PromotionVerdict(True, why, verdict.eval_digest, loss, loss)
        elif verdict.better and not copied:
            _copy(candidate, target, prefix, bar)
            copied = True
        changes = verdict.better and not is_same
        if changes:
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
                continue  # another promote was faster
        before = None if incumbent is None else incumbent.run
        return Promotion(verdict.better, changes, run.url, target.url, f"{target.url}/{prefix}", before, verdict)


def judge(
    candidate: StoredDelta, incumbent: StoredDelta | None, min_gain: float, eval_digest: str | None
) -> PromotionVerdict:
    """Decide whether the candidate is better. Raises `UsageError` if it is ambiguous on which examples."""
    digest = eval_digest or _only_digest(candidate)
    score = None if digest is None else candidate.scores.get(digest)
    if incumbent is None:
        return PromotionVerdict(True, "the folder was empty", digest, None if score is None else score.loss, None)
    if digest is None or score is None:
        where = "" if digest is None else f" on the examples of eval digest {digest}"
        why = f"{candidate.run} has no score{where}; {_scores(incumbent)}"
        hint = "train with data.eval, or run `cpmbee-job evaluate --record` for both deltas on the same examples"
        return PromotionVerdict(False, why, digest, None, None, hint)
    there = incumbent.scores.get(digest)
    if there is None:
        why = (
            f"{candidate.run} has loss {score.loss:.6f} on the examples of eval digest {digest}, for which the "
            f"incumbent has no score; {_scores(incumbent)}"
        )
        return PromotionVerdict(False, why, digest, score.loss, None, _how_to_compare(candidate, incumbent))
    gain = there.loss - score.loss
    why = (
        f"loss {score.loss:.6f} of {candidate.run}, {there.loss:.6f} of the incumbent {incumbent.run}, on the same "
        f"examples (eval digest {digest})"
    )
    better = gain > 0 and gain >= min_gain
    if not better:
        why += f": a gain of {gain:.6f}" + (f", less than --min-gain {min_gain:g}" if min_gain else "")
    return PromotionVerdict(better, why, digest, score.loss, there.loss)


def _only_digest(candidate: StoredDelta) -> str | None:
    """Return the eval digest of the run's own evaluation, else the only one with a score."""
    if candidate.trained_digest is not None:
        return candidate.trained_digest
    if len(candidate.scores) > 1:
        raise UsageError(
            f"{candidate.url} has scores on several sets of examples",
            hint=f"--eval-digest {' or '.join(candidate.scores)}",
        )
    return next(iter(candidate.scores), None)


def _scores(incumbent: StoredDelta) -> str:
    scores = ", ".join(f"{score.loss:.6f} on {digest}" for digest, score in incumbent.scores.items())
    return f"the incumbent ({incumbent.run}) has {scores or 'no scores'}"


def _how_to_compare(candidate: StoredDelta, incumbent: StoredDelta) -> str:
    hint = (
        "evaluate the incumbent on this data (data.eval of the run's spec), then promote again: `cpmbee-job evaluate "
        f"--model MODEL --delta {incumbent.store.url} --data EVAL --record`"
    )
    shared = [digest for digest in candidate.scores if digest in incumbent.scores]
    return hint + (f"; or use --eval-digest {shared[0]}, for which both have a score" if shared else "")


def _require_success(run: Run) -> None:
    result = run.result()
    if result is None:
        raise UnfinishedError(f"{run.url} has not ended", hint="wait with `cpmbee-job wait`")
    if result["state"] != "succeeded":
        raise JobFailedError(f"{run.url} has {result['state']}: {result['reason']}", hint="`cpmbee-job resume` it")


def _incumbent(target: Store) -> tuple[StoredDelta | None, str | None]:
    """Return the delta that the folder contains, and the ETag of its pointer."""
    if target.info(keys.BEST) is None:
        return None, None
    try:
        prefix, etag = read_delta_pointer_with_etag(target, keys.BEST)
        return read_delta(target, prefix), etag
    except (DamagedError, NotFoundError) as error:
        raise DamagedError(
            f"{target.url}/{keys.BEST}: does not point to a delta",
            hint="restore the delta that it names, or delete it to start with an empty folder",
        ) from error


def _copy(delta: StoredDelta, target: Store, prefix: str, bar: Bar) -> None:
    """Copy a delta's verified files, then its manifest. An existing manifest means that all files exist."""
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
