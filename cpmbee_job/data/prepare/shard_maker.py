"""Make the shard of one input piece."""

import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from cpmbee_job import documents
from cpmbee_job.data.dataset.index import SHARD_INFO, ShardInfo
from cpmbee_job.data.dataset.pack import Packer
from cpmbee_job.data.dataset.shards import ExampleWriter, PackedWriter
from cpmbee_job.data.encode.encoder import Encoded, answer_order, encode_example
from cpmbee_job.data.encode.examples import Example
from cpmbee_job.data.encode.in_context import InContext
from cpmbee_job.data.encode.tokenizer import LITERAL_WARNING, Tokenizer
from cpmbee_job.data.encode.truncate import truncate_context
from cpmbee_job.data.read.error_list import ErrorList
from cpmbee_job.data.read.reader import Reader, Rejection
from cpmbee_job.data.read.sources import SourceKind, SourcePiece
from cpmbee_job.errors import DataError, NotFoundError
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import Progress, Store, file_sha256, no_progress
from cpmbee_job.store.urls import open_store


@dataclass(frozen=True)
class PrepareSettings:
    """The settings that decide, with the input and the vocabulary, the content of a prepared dataset."""

    max_length: int | None
    """Tokens in a packed row; None stores the examples as JSON, as `preprocess` does."""
    format: str = "bee"
    on_error: Literal["fail", "skip"] = "fail"
    too_long: Literal["fail", "skip", "truncate-context"] = "fail"
    strict: bool = False
    """Treat input that would be corrected as an error: numbers as text, a `<` that begins no token."""
    in_context: tuple[float, ...] = (1.0,)
    """Relative frequencies of examples with 0, 1, 2, ... in-context samples."""

    def to_json(self) -> dict[str, Any]:
        """Return the settings as a JSON object."""
        return asdict(self) | {"in_context": list(self.in_context)}


@dataclass(frozen=True)
class ShardMaker:
    """Makes the shards of pieces, one after the other. Picklable, for worker processes."""

    kind: SourceKind
    input_url: str
    output_url: str
    storage: StorageSpec | None
    settings: PrepareSettings
    tokenizer: Tokenizer | None
    digest: str
    prefix: str
    window: int
    """Number of tokens (of characters for JSON) that are packed and written together."""

    @cached_property
    def _reader(self) -> Reader:
        return Reader(open_store(self.input_url, self.storage), self.kind, self.settings.format, self.settings.strict)

    @cached_property
    def _out(self) -> Store:
        return open_store(self.output_url, self.storage)

    def make(self, piece: SourcePiece, on_bytes: Progress = no_progress) -> ShardInfo:
        """Return the shard of a piece, and make it unless the store has it."""
        name = f"{self.prefix}-{piece.number:05d}"
        done = self._find(f"{name}.json")
        if done is not None:
            return done
        with tempfile.TemporaryDirectory(prefix="cpmbee-prepare-") as folder:
            path = Path(folder) / f"{name}.arrow"
            shard = self._write(piece, path, on_bytes)
            self._out.upload(path, shard.key)
        self._out.put(f"{name}.json", documents.to_json({"digest": self.digest, **asdict(shard)}))
        return shard

    def _find(self, key: str) -> ShardInfo | None:
        try:
            data = self._out.get(key)
            shard, digest = SHARD_INFO.validate_json(data, strict=True), documents.from_json(data).get("digest")
        except (NotFoundError, ValueError):  # a damaged document is replaced
            return None
        return shard if digest == self.digest else None

    def _write(self, piece: SourcePiece, path: Path, on_bytes: Progress) -> ShardInfo:
        settings = self.settings
        skipped: Counter[str] = Counter()
        warnings: Counter[str] = Counter()
        errors = ErrorList()
        in_context = self._in_context()
        sink = (
            ExampleWriter(path, self.window)
            if settings.max_length is None
            else Packer(PackedWriter(path), settings.max_length, self.window, in_context, piece.number)
        )
        num_examples = num_targets = 0
        for record in self._reader.read(piece, warnings, on_bytes):
            result = self._encode(record.content, warnings)
            if isinstance(result, Rejection):
                if (settings.too_long if result.kind == "too long" else settings.on_error) != "skip":
                    errors.add(result.error, record.location)
                skipped[result.kind] += 1
                continue
            example, encoded = result
            sink.add(example, encoded)
            num_examples += 1
            if encoded is not None:
                num_targets += encoded.num_targets
                if encoded.literals:
                    warnings[LITERAL_WARNING] += encoded.literals
        sink.close()
        errors.refuse("the data is not prepared")
        if in_context is not None and in_context.num_left_out:
            warnings["in-context samples that a row had no room for"] += in_context.num_left_out
        return ShardInfo(
            key=path.name,
            sha256=file_sha256(path),
            size=path.stat().st_size,
            rows=sink.num_rows,
            examples=num_examples,
            tokens=sink.num_tokens,
            target_tokens=num_targets,
            skipped=dict(sorted(skipped.items())),
            warnings=dict(sorted(warnings.items())),
        )

    def _in_context(self) -> InContext | None:
        tokenizer, settings = self.tokenizer, self.settings
        if tokenizer is None or settings.max_length is None or not any(settings.in_context[1:]):
            return None
        return InContext(tokenizer, settings.in_context, settings.max_length)

    def _encode(
        self, example: "Example | Rejection", warnings: Counter[str]
    ) -> tuple[Example, Encoded | None] | Rejection:
        tokenizer, settings = self.tokenizer, self.settings
        if isinstance(example, Rejection):
            return example
        if tokenizer is None:
            return example, None
        try:
            encoded = encode_example(tokenizer, example, answer_order=answer_order(example), strict=settings.strict)
        except DataError as error:
            return Rejection("not encodable", error)
        if settings.max_length is None or encoded.num_tokens <= settings.max_length:
            return example, encoded
        hint = "shorten it, raise train.max_length, or set data.too_long to skip or truncate-context"
        if settings.too_long == "truncate-context":
            shortened = truncate_context(tokenizer, encoded, settings.max_length)
            if shortened is not None:
                warnings["texts cut to fit into a row"] += 1
                return example, shortened
            hint = "its keys and its answer alone are too long: shorten them, or raise train.max_length"
        message = f"{encoded.num_tokens} tokens, but a packed row holds {settings.max_length}"
        return Rejection("too long", DataError(message, hint=hint))
