"""An example as the model sees it: segments of tokens, and what is to be predicted."""

from pydantic import BaseModel, ConfigDict, Field

from cpmbee_job.data.encode.encoder import Encoded
from cpmbee_job.data.encode.tokenizer import Tokenizer, is_special

_MOST_TOKENS = 48
_MOST_SEGMENTS = 40


class Segment(BaseModel):
    """A key or a text, which the model sees between `<s>` and `</s>`."""

    model_config = ConfigDict(frozen=True)

    level: int = Field(description="Keys above it; 7 stands for all that are deeper.")
    target: bool = Field(description="Whether the model is to predict it, token by token, up to `</s>`.")
    tokens: tuple[str, ...] = Field(description="`<unk:…>` is text that the vocabulary lacks; of many the first.")
    more_tokens: int = Field(description="How many are left out.")


class View(BaseModel):
    """One example."""

    model_config = ConfigDict(frozen=True)

    location: str = Field(description="`file:line`")
    tokens: int
    target_tokens: int
    segments: tuple[Segment, ...] = Field(description="In the model's order; of many those at both ends.")
    more_segments: int = Field(description="How many are left out, in the middle.")


def view(tokenizer: Tokenizer, encoded: Encoded, location: str) -> View:
    """What the model sees of an encoded example."""
    names = _names(tokenizer, encoded)
    levels = encoded.segment_rel[: encoded.num_segments].tolist()  # buckets of the ways down from the root
    shown = list(range(encoded.num_segments))
    if len(shown) > _MOST_SEGMENTS:
        shown = shown[: _MOST_SEGMENTS // 2] + shown[-(_MOST_SEGMENTS // 2) :]

    def segment(number: int) -> Segment:
        own = encoded.segment_ids == number
        is_target = not encoded.context[own].any()
        pairs = list(zip(encoded.input_ids[own].tolist(), encoded.input_id_subs[own].tolist(), strict=True))
        # `<s>` stands before each; `</s>` behind the others, while it is the last thing to predict of a target.
        pairs = [*pairs[1:], (tokenizer.eos_id, 0)] if is_target else pairs[1:-1]
        return Segment(
            level=max(levels[number] - 1, 0),  # bucket 1 is for in-context samples
            target=is_target,
            tokens=tuple(names.get(pair) or tokenizer.decode(pair[:1]) for pair in pairs[:_MOST_TOKENS]),
            more_tokens=max(len(pairs) - _MOST_TOKENS, 0),
        )

    return View(
        location=location,
        tokens=encoded.input_ids.size,
        target_tokens=int((encoded.context == 0).sum()),
        segments=tuple(map(segment, shown)),
        more_segments=encoded.num_segments - len(shown),
    )


def _names(tokenizer: Tokenizer, encoded: Encoded) -> dict[tuple[int, int], str]:
    """The tokens that the vocabulary lacks, by id and sub number."""
    names = {}
    for base, numbers in encoded.token_id_table.items():
        base_id = tokenizer.token_id(base)
        assert base_id is not None
        for token_id, number in numbers.items():
            token = encoded.ext_table[token_id]
            names[base_id, number] = token if is_special(token) else f"<unk:{token}>"
    return names
