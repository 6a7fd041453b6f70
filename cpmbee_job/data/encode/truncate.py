"""Shorten examples that are too long for a packed row."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cpmbee_job.data.encode.encoder import Encoded
from cpmbee_job.data.encode.tokenizer import Tokenizer


def truncate_context(tokenizer: Tokenizer, encoded: Encoded, max_length: int) -> Encoded | None:
    """Cut the middle out of the longest given texts until the example has `max_length` tokens.

    Returns None if that is not enough. The start of a text often names its subject and the end asks the question, so
    both stay. Keys, answers and special tokens stay too: an answer may refer to a `<mask_3>` of the text.
    """
    given = ~encoded.is_key[encoded.segment_ids] & (encoded.context == 1)
    removable = given & ~np.isin(encoded.input_ids, tokenizer.special_ids)
    lengths = np.bincount(encoded.segment_ids[removable], minlength=encoded.num_segments)
    excess = encoded.num_tokens - max_length
    if excess > lengths.sum():
        return None
    keep = np.ones(encoded.num_tokens, dtype=np.bool_)
    for segment, cut in enumerate(_cuts(lengths, excess).tolist()):
        if cut:
            tokens = np.flatnonzero(removable & (encoded.segment_ids == segment))
            first = (tokens.size - cut + 1) // 2
            keep[tokens[first : first + cut]] = False
    names = ("input_ids", "input_id_subs", "context", "segment_ids")
    return replace(encoded, **{name: getattr(encoded, name)[keep] for name in names})


def _cuts(lengths: NDArray[np.int64], excess: int) -> NDArray[np.int64]:
    """Return how much to cut off each length, `excess` in total, so that the longest remainder is as short as possible.

    A binary search finds the highest cap under which enough is cut off.
    """
    low, high = 0, int(lengths.max())
    while low < high:
        cap = (low + high + 1) // 2
        low, high = (cap, high) if np.maximum(lengths - cap, 0).sum() >= excess else (low, cap - 1)
    cuts: NDArray[np.int64] = np.maximum(lengths - low, 0)
    spare = int(cuts.sum()) - excess
    cuts[np.flatnonzero(cuts)[:spare]] -= 1
    return cuts
