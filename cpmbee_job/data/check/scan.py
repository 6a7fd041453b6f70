"""Check datasets in one pass over their records."""

import random
from collections import Counter
from operator import itemgetter

from cpmbee_job.data.check import lengths
from cpmbee_job.data.check.answers import AnswerCounter
from cpmbee_job.data.check.duplicates import Fingerprints, leakage, within
from cpmbee_job.data.check.report import CheckReport, ExampleView, Packing, SetReport, TooLong
from cpmbee_job.data.check.unknown import UnknownCounter
from cpmbee_job.data.check.view import view
from cpmbee_job.data.dataset.pack import Packer
from cpmbee_job.data.encode.encoder import answer_order, encode_example
from cpmbee_job.data.encode.examples import ANSWER, Example
from cpmbee_job.data.encode.tokenizer import LITERAL_WARNING, Tokenizer
from cpmbee_job.data.read.error_list import ErrorList
from cpmbee_job.data.read.locations import Location
from cpmbee_job.data.read.reader import InputRecord, Reader, Rejection
from cpmbee_job.data.read.sources import DataSource
from cpmbee_job.errors import DataError
from cpmbee_job.store.base import Progress, no_progress

_NUM_VIEWS = 3
_MOST_NAMED = 5


class Check:
    """Checks one dataset: `read` it, then `report`. Memory is bounded, except for `fingerprints`."""

    def __init__(
        self, source: DataSource, tokenizer: Tokenizer, *, format_name: str, max_length: int, strict: bool = False
    ) -> None:
        self.source = source
        self.errors = ErrorList()
        self.fingerprints = Fingerprints()
        self._reader = Reader(source.store, source.kind, format_name, strict)
        self._tokenizer, self._max_length, self._strict = tokenizer, max_length, strict
        self._num_examples = self._num_rejected = self._num_too_long = 0
        self._num_packed_rows = self._num_packed_tokens = 0
        self._lengths: Counter[int] = Counter()
        self._target_lengths: Counter[int] = Counter()
        self._too_long: list[TooLong] = []
        self._unknown = UnknownCounter(tokenizer)
        self._answers = AnswerCounter()
        self._warnings: Counter[str] = Counter()
        self._random = random.Random(0)
        self._drawn: list[tuple[int, Location, Example]] = []

    @property
    def num_records(self) -> int:
        """Number of records read so far."""
        return self._num_examples + self._num_rejected

    def read(self, on_bytes: Progress = no_progress) -> None:
        """Read all records. Invalid data is added to `errors`; only errors of the store are raised."""
        for piece in self.source.pieces:
            packer = Packer(None, self._max_length, self.source.piece_bytes)
            try:
                for record in self._reader.read(piece, self._warnings, on_bytes):
                    self._add(record, packer)
            except DataError as error:  # the rest of the piece can't be read
                self.errors.add(error)
            packer.close()
            self._num_packed_rows += packer.num_rows
            self._num_packed_tokens += packer.num_tokens
        if not self._num_examples and not self.errors.count:
            self.errors.add(DataError(f"{self.source.url}: no examples"))

    def report(self) -> SetReport:
        drawn = sorted(self._drawn, key=itemgetter(0))  # in input order
        return SetReport(
            url=self.source.url,
            rows=self.num_records,
            examples=self._num_examples,
            bad_rows=self._num_rejected,
            max_length=self._max_length,
            too_long=self._num_too_long,
            too_long_at=tuple(self._too_long),
            tokens=lengths.summary(self._lengths),
            target_tokens=lengths.summary(self._target_lengths),
            histogram=lengths.histogram(self._lengths),
            packing=self._packing(),
            unknown=self._unknown.report(),
            answers=self._answers.report(),
            duplicates=within(self.fingerprints),
            views=tuple(self._view(location, example) for _, location, example in drawn),
            warnings=dict(sorted(self._warnings.items())),
            num_errors=self.errors.count,
            errors=tuple(error.message for error in self.errors.named),
        )

    def _add(self, record: InputRecord, packer: Packer) -> None:
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
        self._draw(record.location, example)
        self._lengths[encoded.num_tokens] += 1
        self._target_lengths[encoded.num_targets] += 1
        if encoded.num_tokens <= self._max_length:
            packer.add(example, encoded)
        else:
            self._num_too_long += 1
            if len(self._too_long) < _MOST_NAMED:
                self._too_long.append(TooLong(location=str(record.location), tokens=encoded.num_tokens))
        self._unknown.add(encoded, record.location)
        self._answers.add(example[ANSWER])
        self.fingerprints.add(example, record.location)
        if encoded.literals:
            self._warnings[LITERAL_WARNING] += encoded.literals

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

    def _reject(self, record: InputRecord, error: DataError) -> None:
        self._num_rejected += 1
        self.errors.add(error, record.location)

    def _draw(self, location: Location, example: Example) -> None:
        """Sample a few examples uniformly (reservoir sampling)."""
        drawn = self._num_examples, location, example
        if len(self._drawn) < _NUM_VIEWS:
            self._drawn.append(drawn)
        elif (number := self._random.randrange(self._num_examples)) < _NUM_VIEWS:
            self._drawn[number] = drawn

    def _view(self, location: Location, example: Example) -> ExampleView:
        encoded = encode_example(self._tokenizer, example, answer_order=answer_order(example), strict=self._strict)
        return view(self._tokenizer, encoded, str(location))


def report_on(train: Check, evaluation: Check | None = None) -> CheckReport:
    """Report on a dataset that was read, with the report on its evaluation set."""
    return CheckReport(
        **dict(train.report()),
        eval=None if evaluation is None else evaluation.report(),
        leakage=None if evaluation is None else leakage(train.fingerprints, evaluation.fingerprints),
    )
