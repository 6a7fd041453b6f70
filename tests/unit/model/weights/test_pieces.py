import random

import torch

from cpmbee_job.model.weights.pieces import (
    CHUNK,
    LARGEST_PIECE,
    READERS,
    cut,
    digest,
    read_pieces,
    share_out,
)
from cpmbee_job.model.weights.tensor_table import StoredTensor
from cpmbee_job.model.weights.weight_file import MemoryFile, tensor_bytes


def stored(*tensors: torch.Tensor, gap: int = 0) -> list[StoredTensor]:
    """Tensors in a file, one after the other with `gap` bytes between."""
    content = b""
    starts = []
    for tensor in tensors:
        starts.append(len(content))
        content += bytes(tensor_bytes(tensor)) + bytes(gap)
    file = MemoryFile("memory", torch.frombuffer(bytearray(content), dtype=torch.uint8))
    return [
        StoredTensor(f"t{number}", tensor.dtype, tuple(tensor.shape), file, starts[number])
        for number, tensor in enumerate(tensors)
    ]


def contents(table: list[StoredTensor], pieces=None) -> dict[str, torch.Tensor]:
    read: dict[str, list[torch.Tensor]] = {}
    for done in read_pieces(cut(table) if pieces is None else pieces):
        for part, content in done.contents:
            assert part.begin == sum(earlier.nbytes for earlier in read.get(part.tensor.name, []))
            read.setdefault(part.tensor.name, []).append(content.clone())
    shapes = {tensor.name: tensor.shape for tensor in table}
    return {name: torch.cat(parts).view(shapes[name]) for name, parts in read.items()}


def test_content_is_read_as_stored():
    tensors = [torch.rand(700_000), torch.rand(5, 3).half(), torch.rand(1), torch.rand(400, 1000).bfloat16()]
    for gap in (0, 1, 5000):
        found = contents(stored(*tensors, gap=gap))
        assert all(torch.equal(found[f"t{number}"], tensor) for number, tensor in enumerate(tensors)), gap


def test_more_pieces_than_readers():
    tensor = torch.rand((2 * READERS + 3) * CHUNK // 4)
    assert torch.equal(contents(stored(tensor))["t0"], tensor)


def test_tensors_that_share_bytes():
    (whole,) = stored(torch.rand(1000))
    part = StoredTensor("part", torch.float32, (10,), whole.file, 400)
    found = contents([part, whole])
    assert torch.equal(found["part"], found["t0"][100:110])


def test_pieces_are_small_compared_to_the_model():
    table = [StoredTensor(f"t{n}", torch.float16, (1 << 29,), MemoryFile("a", torch.empty(0)), 0) for n in range(4)]
    assert {piece.nbytes for piece in cut(table)} == {LARGEST_PIECE}
    small = cut(stored(*(torch.zeros(100) for _ in range(50))))
    assert len(small) == 1
    total = sum(tensor.nbytes for tensor in stored(torch.zeros(1 << 25)))
    assert max(piece.nbytes for piece in cut(stored(torch.zeros(1 << 25)))) * 64 <= total


def test_pieces_are_assigned_evenly_and_to_ranks_that_have_them():
    pieces = cut(stored(torch.zeros(12 * CHUNK // 4)))
    nowhere = [False] * 12
    owners = share_out(pieces, [nowhere] * 3)
    assert [owners.count(rank) for rank in range(3)] == [4, 4, 4]
    has = [index in (0, 1, 2, 7) for index in range(12)]
    owners = share_out(pieces, [nowhere, has, nowhere])
    assert all(owners[index] == 1 for index in (0, 1, 2, 7))
    assert [owners.count(rank) for rank in range(3)] == [4, 4, 4]


def test_the_digest_does_not_depend_on_file_or_pieces():
    tensors = [torch.rand(3 * CHUNK // 4 + 17), torch.rand(50), torch.rand(CHUNK // 2)]

    def digest_of(table, pieces):
        sums = [part for done in read_pieces(pieces) for part in done.sums]
        random.shuffle(sums)
        return digest({tensor.name: tensor for tensor in table}, sums)

    together, apart = stored(*tensors), stored(*tensors, gap=10_000)
    first = digest_of(together, cut(together))
    assert digest_of(apart, cut(apart)) == first
    assert digest_of(together, [piece for tensor in together for piece in cut([tensor])]) == first
    tensors[0][CHUNK // 2] += 1
    assert digest_of(stored(*tensors), cut(stored(*tensors))) != first
