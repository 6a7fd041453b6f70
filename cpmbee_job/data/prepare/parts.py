"""One piece of the input becomes one part."""

import json
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from cpmbee_job import documents
from cpmbee_job.data.dataset.collate import Table
from cpmbee_job.data.dataset.index import PART, PartInfo
from cpmbee_job.data.dataset.pack import pack
from cpmbee_job.data.dataset.shards import ExampleWriter, RowWriter
from cpmbee_job.data.encode.encoder import Encoded, answer_order, encode_example
from cpmbee_job.data.encode.examples import Example
from cpmbee_job.data.encode.in_context import InContext, Samples
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.encode.truncate import truncate_context
from cpmbee_job.data.read.reformat import ErrorList
from cpmbee_job.data.read.sources import Kind, Piece, Rejection, read_piece
from cpmbee_job.errors import DataError, NotFoundError
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import Progress, Store, no_progress
from cpmbee_job.store.verified import file_sha256


@dataclass(frozen=True)
class PrepareSettings:
    """What, besides the input and the vocabulary, decides the content of a prepared data set."""

    max_length: int | None
    """Tokens in a row; None leaves the examples as they are (as `preprocess` does)."""
    format: str = "bee"
    on_error: Literal["fail", "skip"] = "fail"
    too_long: Literal["fail", "skip", "truncate-context"] = "fail"
    strict: bool = False
    """Refuse what would be mended: numbers as text, a `<` that begins no token."""
    in_context: tuple[float, ...] = (1.0,)
    """Relative frequencies of examples with 0, 1, 2, ... in-context samples."""

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"in_context": list(self.in_context)}


@dataclass(frozen=True)
class Job:
    """What a process must know to make parts; it travels to other processes."""

    kind: Kind
    input_url: str
    output_url: str
    storage: StorageSpec | None
    settings: PrepareSettings
    vocab: bytes | None
    digest: str
    part_name: str
    window: int
    """Tokens (without rows, characters) of a piece that are packed together."""


class _PartWriter(Protocol):
    num_rows: int
    num_tokens: int

    def add(self, example: Example, encoded: Encoded | None) -> None: ...

    def close(self) -> None: ...


class RowSink(Protocol):
    """Where packed rows go; a `RowWriter`, or what only counts them."""

    num_rows: int

    def write(self, table: Table) -> None: ...

    def close(self) -> None: ...


class RowPart:
    """Packs the examples of a piece (`number`) into rows, window by window."""

    def __init__(
        self, writer: RowSink, max_length: int, window: int, in_context: InContext | None, number: int
    ) -> None:
        self.num_rows = self.num_tokens = 0
        self._writer = writer
        self._max_length, self._window = max_length, window
        self._in_context, self._number = in_context, number
        self._raw: list[Example] = []
        self._examples: list[Encoded] = []
        self._tokens = 0

    def add(self, example: Example, encoded: Encoded | None) -> None:
        assert encoded is not None
        if self._in_context is not None:
            self._raw.append(example)
        self._examples.append(encoded)
        self._tokens += encoded.input_ids.size
        if self._tokens >= self._window:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._examples:
            self._write(self._with_samples())
        self._raw, self._examples, self._tokens = [], [], 0

    def _with_samples(self) -> list[Samples]:
        if self._in_context is None:
            return [(example,) for example in self._examples]
        return self._in_context.extend(self._raw, self._examples, (self._number, self.num_rows))

    def _write(self, examples: list[Samples]) -> None:
        lengths = [sum([sample.input_ids.size for sample in samples]) for samples in examples]
        rows = pack(lengths, self._max_length)
        order = np.argsort(rows, kind="stable")
        in_order = [examples[number] for number in order.tolist()]
        counts = np.array([len(samples) for samples in in_order])
        self._writer.write(Table.of(list(chain.from_iterable(in_order)), rows[order], counts))
        self.num_rows = self._writer.num_rows
        self.num_tokens += sum(lengths)


class _ExamplePart:
    """Writes examples as canonical JSON."""

    num_rows = 0

    def __init__(self, path: Path, window: int) -> None:
        self.num_tokens = 0
        self._writer = ExampleWriter(path)
        self._window = window
        self._texts: list[str] = []
        self._characters = 0

    def add(self, example: Example, encoded: Encoded | None) -> None:
        self.num_tokens += 0 if encoded is None else encoded.input_ids.size
        self._texts.append(json.dumps(example, ensure_ascii=False, separators=(",", ":")))
        self._characters += len(self._texts[-1])
        if self._characters >= self._window:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._texts:
            self._writer.write(self._texts)
        self._texts, self._characters = [], 0


class PartMaker:
    """Makes the parts of pieces, one after the other."""

    def __init__(self, job: Job, store: Store, out: Store) -> None:
        self._job, self._store, self._out = job, store, out
        self._tokenizer = None if job.vocab is None else Tokenizer.from_bytes(job.vocab)

    def make(self, piece: Piece, on_bytes: Progress = no_progress) -> PartInfo:
        """The part of a piece, from the store if it is there."""
        name = f"{self._job.part_name}-{piece.number:05d}"
        done = self._find(f"{name}.json")
        if done is not None:
            return done
        with tempfile.TemporaryDirectory(prefix="cpmbee-prepare-") as folder:
            path = Path(folder) / f"{name}.arrow"
            part = self._write(piece, path, on_bytes)
            self._out.upload(path, part.key)
        self._out.put(f"{name}.json", documents.to_json({"digest": self._job.digest, **asdict(part)}))
        return part

    def _find(self, key: str) -> PartInfo | None:
        try:
            data = self._out.get(key)
            part, job = PART.validate_json(data, strict=True), documents.from_json(data).get("digest")
        except (NotFoundError, ValueError):  # what is damaged is made again
            return None
        return part if job == self._job.digest else None

    def _write(self, piece: Piece, path: Path, on_bytes: Progress) -> PartInfo:
        settings = self._job.settings
        counts: Counter[str] = Counter()
        skipped: Counter[str] = Counter()
        warnings: Counter[str] = Counter()
        errors = ErrorList()
        in_context = self._in_context()
        writer: _PartWriter = (
            _ExamplePart(path, self._job.window)
            if settings.max_length is None
            else RowPart(RowWriter(path), settings.max_length, self._job.window, in_context, piece.number)
        )
        records = read_piece(
            self._store, self._job.kind, piece, settings.format, warnings, strict=settings.strict, on_bytes=on_bytes
        )
        for record in records:
            content = self._encode(record.content, warnings)
            if isinstance(content, Rejection):
                if (settings.too_long if content.kind == "too long" else settings.on_error) != "skip":
                    errors.add(content.error, record.location)
                skipped[content.kind] += 1
                continue
            example, encoded = content
            writer.add(example, encoded)
            counts["examples"] += 1
            if encoded is not None:
                counts["target_tokens"] += encoded.input_ids.size - int(np.count_nonzero(encoded.context))
                if encoded.literals:
                    warnings["'<' taken as text"] += encoded.literals
        writer.close()
        errors.refuse("the data are not prepared")
        if in_context is not None and in_context.num_left_out:
            warnings["in-context samples that a row had no room for"] += in_context.num_left_out
        return PartInfo(
            key=path.name,
            sha256=file_sha256(path),
            size=path.stat().st_size,
            rows=writer.num_rows,
            examples=counts["examples"],
            tokens=writer.num_tokens,
            target_tokens=counts["target_tokens"],
            skipped=dict(sorted(skipped.items())),
            warnings=dict(sorted(warnings.items())),
        )

    def _in_context(self) -> InContext | None:
        settings = self._job.settings
        if self._tokenizer is None or settings.max_length is None or not any(settings.in_context[1:]):
            return None
        return InContext(self._tokenizer, settings.in_context, settings.max_length)

    def _encode(
        self, content: "Example | Rejection", warnings: Counter[str]
    ) -> tuple[Example, Encoded | None] | Rejection:
        if isinstance(content, Rejection):
            return content
        if self._tokenizer is None:
            return content, None
        settings = self._job.settings
        try:
            encoded = encode_example(
                self._tokenizer, content, answer_order=answer_order(content), strict=settings.strict
            )
        except DataError as error:
            return Rejection("not encodable", error)
        if settings.max_length is None or encoded.input_ids.size <= settings.max_length:
            return content, encoded
        message = f"{encoded.input_ids.size} tokens, where a row holds {settings.max_length}"
        if settings.too_long == "truncate-context":
            shortened = truncate_context(self._tokenizer, encoded, settings.max_length)
            if shortened is not None:
                warnings["texts cut to fit into a row"] += 1
                return content, shortened
            hint = "its keys and its answer alone are too long: shorten them, or raise train.max_length"
            return Rejection("too long", DataError(message, hint=hint))
        hint = "shorten it, raise train.max_length, or set data.too_long to skip or truncate-context"
        return Rejection("too long", DataError(message, hint=hint))
