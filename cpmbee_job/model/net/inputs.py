"""The model's input: a batch of examples in one flat stream of tokens without padding.

Tensor names end in their shape: N tokens, E examples, T targets, X extra output columns, B examples of one group,
L padded length of a group, R entries of all segment tables.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LENGTH_SPREAD = 1.25
"""Maximum ratio of longest to shortest example in a group. Padding costs at most its square."""
_LENGTH_MULTIPLE = 8
"""Padded lengths are a multiple of this: fused attention kernels require it of a bias."""
_MAX_GROUP_AREA = 2**22
"""Maximum B x L x L of a group with several examples (one example of 2048 tokens reaches it)."""


@dataclass(frozen=True)
class AttentionGroup:
    """Examples of similar length, padded to one length."""

    gather_BL: Tensor  # noqa: N815
    """int64 index into the token stream; padding repeats the example's first token."""
    valid_BL: Tensor  # noqa: N815
    """bool, False for padding."""


@dataclass(frozen=True)
class ModelInputs:
    """One batch. All tensors are on one device; `lengths` stays on the host. Fields are named as in `collate`."""

    ids: Tensor
    """(N,) int32 tokens of the vocabulary."""
    subs: Tensor
    """(N,) int32: number of a special token among its kind (`<option_2>`), 0 for plain tokens."""
    positions: Tensor
    """(N,) int32 position inside the example."""
    context: Tensor
    """(N,) bool: given, not predicted."""
    segments: Tensor
    """(N,) int32 node of the example's tree that the token belongs to."""
    samples: Tensor
    """(N,) int32: 0 for the example itself, 1 and more for its in-context samples."""
    num_segments: Tensor
    """(N,) int32 size of the tree of the token's sample."""
    rel_offset: Tensor
    """(N,) int32 start of the table of the token's sample in `segment_rel`."""
    segment_rel: Tensor
    """(R,) int32 tables (num_segments x num_segments, flat) of relations between segments."""
    target_positions: Tensor
    """(T,) int32 tokens of the stream that predict a target."""
    targets: Tensor
    """(T,) int32 what they predict: a token of the vocabulary, or vocab_size + an extra column."""
    ext_ids: Tensor
    """(X,) int32 token of each extra column."""
    ext_subs: Tensor
    """(X,) int32 sub-token of each extra column."""
    columns: Tensor
    """(T, X) bool: the extra columns that compete for each target."""
    rows: Tensor
    """(E,) int32 row of the batch that each example belongs to."""
    lengths: tuple[int, ...]
    """(E,) tokens of each example, in the stream's order."""
    groups: tuple[AttentionGroup, ...]
    restore: Tensor
    """(N,) int64 index of each token in the concatenated padded tokens of all groups."""

    @classmethod
    def from_numpy(cls, *, lengths: Any, **arrays: Any) -> "ModelInputs":
        """Create from arrays named like the fields; `groups` and `restore` are derived from `lengths`."""
        host_lengths = tuple(int(length) for length in lengths)
        groups, restore = plan_groups(host_lengths)
        # Memory-mapped arrays may be read-only, which torch does not support.
        tensors = {name: torch.from_numpy(np.require(array, requirements=["C", "W"])) for name, array in arrays.items()}
        if sum(host_lengths) != len(tensors["ids"]):
            raise ValueError(f"{len(tensors['ids'])} tokens, but lengths that sum to {sum(host_lengths)}")
        return cls(lengths=host_lengths, groups=groups, restore=restore, **tensors)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "ModelInputs":
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def prefetched(self, device: torch.device) -> "ModelInputs":
        """Return the batch on `device`. To a GPU it is copied on a side stream, and the copy is complete on return."""
        if device.type != "cuda":
            return self
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            moved = self._each(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))
        stream.synchronize()

        def used_by_main_stream(tensor: Tensor) -> Tensor:
            """Keep its memory from being reused before the main stream has read it."""
            tensor.record_stream(torch.cuda.default_stream(device))
            return tensor

        return moved._each(used_by_main_stream)

    def _each(self, move: Callable[[Tensor], Tensor]) -> "ModelInputs":
        moved: dict[str, Any] = {name: move(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        groups = tuple(AttentionGroup(move(g.gather_BL), move(g.valid_BL)) for g in self.groups)
        return replace(self, groups=groups, **moved)


def plan_groups(lengths: Sequence[int]) -> tuple[tuple[AttentionGroup, ...], Tensor]:
    """Group examples of similar length. Returns the groups, and the index (N,) of each token in them."""
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    restore = np.empty(starts[-1], dtype=np.int64)
    groups: list[AttentionGroup] = []
    offset = 0
    for members in _similar_lengths(lengths):
        lengths_B = np.array([lengths[e] for e in members])
        starts_B = starts[members]
        length = _padded(int(lengths_B.max()))
        column_L = np.arange(length)
        valid_BL = column_L < lengths_B[:, None]
        gather_BL = starts_B[:, None] + np.where(valid_BL, column_L, 0)
        restore[gather_BL[valid_BL]] = offset + np.flatnonzero(valid_BL)
        offset += gather_BL.size
        groups.append(AttentionGroup(torch.from_numpy(gather_BL), torch.from_numpy(valid_BL)))
    return tuple(groups), torch.from_numpy(restore)


def _similar_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """Group the indices of the examples, shortest first."""
    groups: list[list[int]] = []
    for example in sorted((e for e in range(len(lengths)) if lengths[e]), key=lambda e: lengths[e]):
        length = _padded(lengths[example])
        if groups:
            group = groups[-1]
            fits = length <= _padded(int(lengths[group[0]] * _LENGTH_SPREAD))
            if fits and (len(group) + 1) * length**2 <= _MAX_GROUP_AREA:
                group.append(example)
                continue
        groups.append([example])
    return groups


def _padded(length: int) -> int:
    return -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
