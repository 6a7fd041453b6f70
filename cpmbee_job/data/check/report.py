"""The report of `data check`: the JSON that `cpmbee-job data check --json` prints."""

from pydantic import BaseModel, ConfigDict, Field


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class Lengths(_Model):
    """Numbers of tokens: of all examples together, and per example."""

    total: int
    min: int
    mean: float
    p50: int = Field(description="Half of the examples have at most this many tokens; p90, p95, p99 likewise.")
    p90: int
    p95: int
    p99: int
    max: int


class Bin(_Model):
    """A bar of the histogram."""

    first: int = Field(description="The examples have from `first` to `last` tokens.")
    last: int
    examples: int


class Packing(_Model):
    """The packed rows that `prepare` would make of the examples that fit."""

    rows: int
    examples: int
    tokens: int
    capacity: int = Field(description="Number of tokens that fit into the rows.")
    efficiency: float = Field(description="`tokens` divided by `capacity`, from 0 to 1.")


class TooLong(_Model):
    """An example with more than `max_length` tokens."""

    location: str = Field(description="`file:line`")
    tokens: int


class UnknownCharacter(_Model):
    """A character that is missing from the vocabulary."""

    character: str
    code_point: str = Field(description="`U+1F642`")
    count: int
    first: str = Field(description="Location of its first occurrence, `file:line`.")


class Unknown(_Model):
    """Characters that begin no vocabulary entry. Adjacent ones form a piece, which the model sees as `<unk>`."""

    characters: int
    pieces: int
    examples: int = Field(description="Number of examples that contain any.")
    different: int = Field(description="Number of different characters, at most 10,000.")
    most_frequent: tuple[UnknownCharacter, ...]


class ConstantAnswer(_Model):
    """An answer that never varies."""

    place: str = Field(description="`<ans>`, or the path of a text inside it.")
    text: str = Field(description="The beginning of the answer.")
    examples: int


class Answers(_Model):
    """The answers of a dataset."""

    empty: int = Field(description="Number of examples without any text under `<ans>`.")
    constant: tuple[ConstantAnswer, ...] = Field(description="Texts that are the same in all examples that have them.")
    classes: dict[str, dict[str, int]] = Field(
        description="By path: the count of each answer, the most frequent first. Only for answers that are special "
        "tokens (`<option_0>`) or few short labels."
    )


class Duplicates(_Model):
    """Duplicates within a dataset; for leakage, evaluation examples that the training data contains."""

    repeated: int = Field(
        description="Number of examples equal to an earlier one (for leakage: to a training example), regardless "
        "of key order."
    )
    contradicting: int = Field(
        description="Number of different examples that share their question with an earlier one (for leakage: with a "
        "training example) but not their answer."
    )
    repeated_at: tuple[tuple[str, str], ...] = Field(
        (),
        description="Locations (`file:line`) of some of them: the earlier one first; for leakage, the evaluation "
        "example first.",
    )
    contradicting_at: tuple[tuple[str, str], ...] = Field((), description="Likewise.")

    @property
    def any(self) -> bool:
        return bool(self.repeated or self.contradicting)


class Segment(_Model):
    """A key or a text, which the model sees between `<s>` and `</s>`."""

    level: int = Field(description="Number of keys above it; 7 stands for all deeper levels too.")
    target: bool = Field(description="Whether the model predicts it, token by token, up to `</s>`.")
    tokens: tuple[str, ...] = Field(
        description="The first tokens. `<unk:…>` is text that is missing from the vocabulary."
    )
    more_tokens: int = Field(description="Number of tokens omitted.")


class ExampleView(_Model):
    """An example as the model sees it."""

    location: str = Field(description="`file:line`")
    tokens: int
    target_tokens: int
    segments: tuple[Segment, ...] = Field(description="In the model's order; the first and the last ones if many.")
    more_segments: int = Field(description="Number of segments omitted in the middle.")


class SetReport(_Model):
    """The report on one dataset."""

    url: str
    rows: int = Field(description="Number of records read.")
    examples: int = Field(description="Number of records that can be used.")
    bad_rows: int = Field(description="Number of invalid records.")
    max_length: int = Field(description="Tokens in a packed row of training.")
    too_long: int = Field(description="Number of examples with more than `max_length` tokens.")
    too_long_at: tuple[TooLong, ...] = Field(description="The first of them.")
    tokens: Lengths | None = Field(description="null without examples.")
    target_tokens: Lengths | None = Field(description="Tokens that the model predicts, including `</s>`.")
    histogram: tuple[Bin, ...] = Field(description="Of the tokens per example.")
    packing: Packing | None = Field(description="null if no example fits into a packed row.")
    unknown: Unknown
    answers: Answers
    duplicates: Duplicates
    views: tuple[ExampleView, ...] = Field(description="Randomly drawn examples; the same in every run.")
    warnings: dict[str, int] = Field(description="Automatic corrections by kind; `--strict` treats them as errors.")
    num_errors: int
    errors: tuple[str, ...] = Field(description="The first of them.")


class CheckReport(SetReport):
    """What `cpmbee-job data check --json` prints: the report on --input, with the report on --eval inside it."""

    eval: SetReport | None = Field(description="null without --eval.")
    leakage: Duplicates | None = Field(description="Evaluation examples that the training data contains.")
