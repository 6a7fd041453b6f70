"""Examples that are too long for a row, shortened where it costs least."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cpmbee_job.data.encode.encoder import Encoded
from cpmbee_job.data.encode.tokenizer import Tokenizer


def truncate_context(tokenizer: Tokenizer, encoded: Encoded, max_length: int) -> Encoded | None:
    """The example with the middle cut out of its longest given texts, so that it has `max_length` tokens; None where
    that is not enough. The start of a text often says what it is about, its end what is asked.

    Keys, answers and special tokens stay: the answer may name a `<mask_3>` of the text.
    """
    texts = ~encoded.is_key[encoded.segment_ids] & (encoded.context == 1)
    removable = texts & ~np.isin(encoded.input_ids, tokenizer.special_ids)
    lengths = np.bincount(encoded.segment_ids[removable], minlength=encoded.num_segments)
    excess = encoded.input_ids.size - max_length
    if excess > lengths.sum():
        return None
    keep = np.ones(encoded.input_ids.size, dtype=np.bool_)
    for segment, cut in enumerate(_cuts(lengths, excess).tolist()):
        if cut:
            places = np.flatnonzero(removable & (encoded.segment_ids == segment))
            first = (places.size - cut + 1) // 2
            keep[places[first : first + cut]] = False
    return replace(
        encoded,
        input_ids=encoded.input_ids[keep],
        input_id_subs=encoded.input_id_subs[keep],
        context=encoded.context[keep],
        segment_ids=encoded.segment_ids[keep],
    )


def _cuts(lengths: NDArray[np.int64], excess: int) -> NDArray[np.int64]:
    """How much to cut off each of the lengths, `excess` in all, so that the longest that remains is shortest."""
    low, high = 0, int(lengths.max())
    while low < high:  # the highest cap under which enough is cut off
        cap = (low + high + 1) // 2
        low, high = (cap, high) if np.maximum(lengths - cap, 0).sum() >= excess else (low, cap - 1)
    cuts: NDArray[np.int64] = np.maximum(lengths - low, 0)
    spare = int(cuts.sum()) - excess
    cuts[np.flatnonzero(cuts)[:spare]] -= 1
    return cuts
