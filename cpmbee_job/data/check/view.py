"""Show an example as the model sees it: segments of tokens, and the tokens that it predicts."""

from cpmbee_job.data.check.report import ExampleView, Segment
from cpmbee_job.data.encode.encoder import Encoded
from cpmbee_job.data.encode.tokenizer import Tokenizer, is_special

_MOST_TOKENS = 48
_MOST_SEGMENTS = 40


def view(tokenizer: Tokenizer, encoded: Encoded, location: str) -> ExampleView:
    """Return the view of an encoded example."""
    names = _names(tokenizer, encoded)
    levels = encoded.segment_rel[: encoded.num_segments].tolist()  # buckets of the paths down from the root
    shown = list(range(encoded.num_segments))
    if len(shown) > _MOST_SEGMENTS:
        shown = shown[: _MOST_SEGMENTS // 2] + shown[-(_MOST_SEGMENTS // 2) :]

    def segment(number: int) -> Segment:
        own = encoded.segment_ids == number
        is_target = not encoded.context[own].any()
        pairs = list(zip(encoded.input_ids[own].tolist(), encoded.input_id_subs[own].tolist(), strict=True))
        # Omit the `<s>` before each segment and the `</s>` after it. For a target, `</s>` is the last token to predict.
        pairs = [*pairs[1:], (tokenizer.eos_id, 0)] if is_target else pairs[1:-1]
        return Segment(
            level=max(levels[number] - 1, 0),  # bucket 1 is for in-context samples
            target=is_target,
            tokens=tuple(names.get(pair) or tokenizer.decode(pair[:1]) for pair in pairs[:_MOST_TOKENS]),
            more_tokens=max(len(pairs) - _MOST_TOKENS, 0),
        )

    return ExampleView(
        location=location,
        tokens=encoded.num_tokens,
        target_tokens=encoded.num_targets,
        segments=tuple(map(segment, shown)),
        more_segments=encoded.num_segments - len(shown),
    )


def _names(tokenizer: Tokenizer, encoded: Encoded) -> dict[tuple[int, int], str]:
    """Return the tokens missing from the vocabulary by id and sub number."""
    names = {}
    for base, numbers in encoded.token_id_table.items():
        base_id = tokenizer.token_id(base)
        assert base_id is not None
        for token_id, number in numbers.items():
            token = encoded.ext_table[token_id]
            names[base_id, number] = token if is_special(token) else f"<unk:{token}>"
    return names
