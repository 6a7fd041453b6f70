"""What `data check` finds out about a data set, in one pass over its records."""

import random
from collections import Counter
from collections.abc import Iterator

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cpmbee_job.data.check import lengths
from cpmbee_job.data.check.answers import AnswerCounter, Answers
from cpmbee_job.data.check.duplicates import Duplicates, Fingerprint, Fingerprints, Search, look
from cpmbee_job.data.check.unknown import Unknown, UnknownCounter
from cpmbee_job.data.check.view import View, view
from cpmbee_job.data.dataset.collate import Table
from cpmbee_job.data.encode.encoder import answer_order, encode_example
from cpmbee_job.data.encode.examples import ANSWER, Example
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.prepare.parts import RowPart
from cpmbee_job.data.read.reformat import ErrorList
from cpmbee_job.data.read.sources import LineCounts, Piece, Place, Record, Rejection, Source, read_piece
from cpmbee_job.errors import DataError
from cpmbee_job.store.base import Progress, no_progress

NUM_VIEWS = 3
_MOST_NAMED = 5


class Packing(BaseModel):
    """The rows that `prepare` makes of the examples that fit one."""

    model_config = ConfigDict(frozen=True)

    rows: int
    examples: int
    tokens: int
    capacity: int = Field(description="Tokens that the rows have room for.")
    efficiency: float = Field(description="`tokens` of `capacity`, from 0 to 1.")


class TooLong(BaseModel):
    model_config = ConfigDict(frozen=True)

    location: str = Field(description="`file:line`")
    tokens: int


class SetReport(BaseModel):
    """What `data check` finds in one data set."""

    model_config = ConfigDict(frozen=True)

    url: str
    rows: int = Field(description="Records read.")
    examples: int = Field(description="Those of them that can be used.")
    bad_rows: int = Field(description="The others.")
    max_length: int = Field(description="Tokens in a row of training.")
    too_long: int = Field(description="Examples of more tokens than that.")
    too_long_at: tuple[TooLong, ...] = Field(description="The first of them.")
    tokens: lengths.Lengths | None = Field(description="null without examples.")
    target_tokens: lengths.Lengths | None = Field(description="Those that are to be predicted, `</s>` included.")
    histogram: tuple[lengths.Bin, ...] = Field(description="Of the tokens of an example.")
    packing: Packing | None = Field(description="null where no example fits a row.")
    unknown: Unknown
    answers: Answers
    duplicates: Duplicates
    views: tuple[View, ...] = Field(description="Examples as the model sees them, drawn at random, always the same.")
    warnings: dict[str, int] = Field(description="What was mended, by kind; `--strict` makes errors of it.")
    num_errors: int
    errors: tuple[str, ...] = Field(description="The first of them.")


class CheckReport(SetReport):
    """What `cpmbee-job data check --json` prints: on the set of --input, and on that of --eval beside it."""

    eval: SetReport | None = Field(description="null without --eval.")
    leakage: Duplicates | None = Field(description="Evaluation examples that stand in the training data.")


class _RowCounter:
    """Where rows go that nobody wants to keep."""

    def __init__(self) -> None:
        self.num_rows = 0

    def write(self, table: Table) -> None:
        self.num_rows += int(table.rows[-1]) + 1

    def close(self) -> None:
        pass


class Check:
    """One data set: `read` it, then `report`. What it holds is bounded, but for the 16 bytes an example of
    `fingerprints`.
    """

    def __init__(
        self, source: Source, tokenizer: Tokenizer, *, format_name: str, max_length: int, strict: bool = False
    ) -> None:
        self.source = source
        self.errors = ErrorList()
        self.fingerprints = Fingerprints()
        self._tokenizer, self._format, self._max_length, self._strict = tokenizer, format_name, max_length, strict
        self._num_examples = self._num_rejected = self._num_too_long = 0
        self._num_packed_rows = self._num_packed_tokens = 0
        self._lengths: Counter[int] = Counter()
        self._target_lengths: Counter[int] = Counter()
        self._too_long: list[tuple[Place | str, int]] = []
        self._unknown = UnknownCounter(tokenizer)
        self._answers = AnswerCounter()
        self._warnings: Counter[str] = Counter()
        self._random = random.Random(0)
        self._drawn: list[tuple[int, Record]] = []

    @property
    def num_rows(self) -> int:
        """Records read so far."""
        return self._num_examples + self._num_rejected

    def read(self, on_bytes: Progress = no_progress) -> None:
        """Look at every record. What can't be read or used goes to `errors`; only the store's failures are raised."""
        line_counts: LineCounts = {}
        for piece in self.source.pieces:
            part = RowPart(_RowCounter(), self._max_length, self.source.piece_bytes, None, piece.number)
            for record in self._records(piece, line_counts, self._warnings, self.errors, on_bytes):
                self._add(record, part)
            part.close()
            self._num_packed_rows += part.num_rows
            self._num_packed_tokens += part.num_tokens
        if not self._num_examples and not self.errors.count:
            self.errors.add(DataError(f"{self.source.url}: no examples there"))
        self.fingerprints.close()

    def examples_again(self, on_bytes: Progress = no_progress) -> Iterator[tuple[Place | str, Example]]:
        """The set's examples, read once more."""
        line_counts: LineCounts = {}
        for piece in self.source.pieces:
            for record in self._records(piece, line_counts, Counter(), ErrorList(), on_bytes):
                if not isinstance(record.content, Rejection):
                    yield record.place, record.content

    def report(self, duplicates: Duplicates) -> SetReport:
        return SetReport(
            url=self.source.url,
            rows=self.num_rows,
            examples=self._num_examples,
            bad_rows=self._num_rejected,
            max_length=self._max_length,
            too_long=self._num_too_long,
            too_long_at=tuple(TooLong(location=str(place), tokens=length) for place, length in self._too_long),
            tokens=lengths.summary(self._lengths),
            target_tokens=lengths.summary(self._target_lengths),
            histogram=lengths.histogram(self._lengths),
            packing=self._packing(),
            unknown=self._unknown.report(),
            answers=self._answers.report(),
            duplicates=duplicates,
            views=tuple(self._view(record) for _, record in sorted(self._drawn, key=lambda item: item[0])),
            warnings=dict(sorted(self._warnings.items())),
            num_errors=self.errors.count,
            errors=tuple(error.message for error in self.errors.named),
        )

    def _add(self, record: Record, part: RowPart) -> None:
        example = record.content
        if isinstance(example, Rejection):
            self._reject(record, example.error)
            return
        try:
            encoded = encode_example(self._tokenizer, example, strict=self._strict)
        except DataError as error:
            self._reject(record, error)
            return
        self._num_examples += 1
        self._draw(record)
        length = encoded.input_ids.size
        self._lengths[length] += 1
        self._target_lengths[length - int(np.count_nonzero(encoded.context))] += 1
        if length <= self._max_length:
            part.add(example, encoded)
        else:
            self._num_too_long += 1
            if len(self._too_long) < _MOST_NAMED:
                self._too_long.append((record.place, length))
        self._unknown.add(encoded, record.place)
        self._answers.add(example[ANSWER])
        self.fingerprints.add(Fingerprint.of(example))
        if encoded.literals:
            self._warnings["'<' taken as text"] += encoded.literals

    def _packing(self) -> Packing | None:
        capacity = self._num_packed_rows * self._max_length
        if not capacity:
            return None
        return Packing(
            rows=self._num_packed_rows,
            examples=self._num_examples - self._num_too_long,
            tokens=self._num_packed_tokens,
            capacity=capacity,
            efficiency=round(self._num_packed_tokens / capacity, 4),
        )

    def _records(
        self,
        piece: Piece,
        line_counts: LineCounts,
        warnings: Counter[str],
        errors: ErrorList,
        on_bytes: Progress,
    ) -> Iterator[Record]:
        """The records of a piece; one that can't be read on is left at that."""
        try:
            yield from read_piece(
                self.source.store,
                self.source.kind,
                piece,
                self._format,
                warnings,
                strict=self._strict,
                on_bytes=on_bytes,
                line_counts=line_counts,
            )
        except DataError as error:
            errors.add(error)

    def _reject(self, record: Record, error: DataError) -> None:
        self._num_rejected += 1
        self.errors.add(error, record.location)

    def _draw(self, record: Record) -> None:
        """Keep a few examples, each with the same chance."""
        if len(self._drawn) < NUM_VIEWS:
            self._drawn.append((self._num_examples, record))
        elif (number := self._random.randrange(self._num_examples)) < NUM_VIEWS:
            self._drawn[number] = (self._num_examples, record)

    def _view(self, record: Record) -> View:
        assert not isinstance(record.content, Rejection)
        encoded = encode_example(
            self._tokenizer, record.content, answer_order=answer_order(record.content), strict=self._strict
        )
        return view(self._tokenizer, encoded, record.location)


def report_on(train: Check, evaluation: Check | None = None, *, on_bytes: Progress = no_progress) -> CheckReport:
    """What was found in the sets that were read. Where there are duplicates, the sets are read again to name some."""
    searches = [Search.within(train.fingerprints)]
    leakage: list[Search] = []
    if evaluation is not None:
        searches.append(Search.within(evaluation.fingerprints))
        leakage.append(Search.leakage(train.fingerprints, evaluation.fingerprints))
        look(evaluation.examples_again(on_bytes), begin=[*searches[1:], *leakage], end=searches[1:])
    look(train.examples_again(on_bytes), begin=searches[:1], end=[*searches[:1], *leakage])
    reports = [
        one.report(search.named())
        for one, search in zip((train, evaluation), searches, strict=False)
        if one is not None
    ]
    return CheckReport(
        **dict(reports[0]),
        eval=reports[1] if evaluation is not None else None,
        leakage=leakage[0].named() if leakage else None,
    )
