"""The digest tree against a slow one built from the description in FORMAT.md."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from standby import digesting
from standby.digesting import BLOCK, LEAVES_PER_PAGE, PAGE, PIECE, ZERO_LEAF, zero_node
from standby.units import GiB, TiB

NOTHING = np.empty(0, np.int64), np.empty((0, 16), np.uint8)


def described_root(virtual_size: int, pages: dict[int, bytes]) -> bytes:
    """The root by recursion over the whole disk's top nodes, as FORMAT.md says it."""

    def node(level: int, number: int) -> bytes:
        if level == 2:
            return pages.get(number, zero_node(2))
        width = 64 ** (level - 2)
        if not any(number * width <= page < (number + 1) * width for page in pages):
            return zero_node(level)
        below = b"".join(node(level - 1, number * 64 + i) for i in range(64))
        return xxhash.xxh3_128_digest(below)

    tops = -(-virtual_size // (4 * TiB))
    return xxhash.xxh3_128_digest(
        virtual_size.to_bytes(8, "little") + b"".join(node(5, i) for i in range(tops))
    )


def root(virtual_size: int, pages: dict[int, bytes]) -> bytes:
    numbers = sorted(pages)
    nodes = np.frombuffer(b"".join(pages[n] for n in numbers), np.uint8).reshape(-1, 16)
    return digesting.root_of_pages(virtual_size, np.array(numbers, np.int64), nodes)


def test_zero_nodes_are_what_zeros_hash_to():
    node = xxhash.xxh3_128_digest(int(ZERO_LEAF).to_bytes(8, "little") * 64)
    for level in range(1, 6):
        assert zero_node(level) == node
        node = xxhash.xxh3_128_digest(node * 64)
    for level in (0, 6):
        with pytest.raises(ValueError, match="levels go from 1 to 5"):
            zero_node(level)


def test_leaves_of_a_short_tail_are_those_of_the_padded_piece():
    data = np.random.default_rng(1).bytes(3 * PIECE + 1)
    padded = data.ljust(4 * PIECE, b"\0")
    assert digesting.leaves(data).tolist() == digesting.leaves(padded).tolist()
    assert len(digesting.leaves(b"")) == 0


def test_leaves_fill_the_array_they_are_given():
    out = np.empty(2, np.uint64)
    assert digesting.leaves(bytes(8192), out) is out
    assert (out == ZERO_LEAF).all()
    with pytest.raises(ValueError, match="one leaf per piece"):
        digesting.leaves(bytes(8192), out[:1])


def test_page_nodes_join_block_nodes():
    leaves = np.random.default_rng(2).integers(0, 1 << 63, (3, LEAVES_PER_PAGE)).astype(np.uint64)
    nodes = digesting.page_nodes(leaves)
    assert nodes.shape == (3, 16)
    for page, node in zip(leaves, nodes, strict=True):
        blocks = digesting.block_nodes(page)
        assert blocks.shape == (PAGE // BLOCK, 16)
        assert blocks[7].tobytes() == xxhash.xxh3_128_digest(page[448:512].astype("<u8").tobytes())
        assert node.tobytes() == xxhash.xxh3_128_digest(blocks.tobytes())


def test_a_page_of_zero_leaves_has_the_zero_node():
    assert digesting.page_nodes(np.full((1, 4096), ZERO_LEAF)).tobytes() == zero_node(2)


@pytest.mark.parametrize("size", [0, 1, PAGE, 4 * TiB - 1, 4 * TiB, 4 * TiB + 1, 64 * TiB])
def test_root_of_a_disk_of_zeros(size: int):
    assert digesting.root_of_pages(size, *NOTHING) == described_root(size, {})


@pytest.mark.parametrize(
    ("size", "numbers"),
    [
        (1, [0]),
        (PAGE, [0]),
        (PAGE + 1, [0, 1]),
        (GiB, [0, 63]),
        (GiB + 1, [63, 64]),
        (65 * GiB, [0, 4095, 4096, 4159]),
        (4 * TiB, [0, 262143]),
        (4 * TiB + 1, [262143, 262144]),
        (64 * TiB, [1, 262144, 1000000, 4194303]),
    ],
)
def test_root_equals_the_described_one(size: int, numbers: list[int]):
    pages = {n: n.to_bytes(16, "little") for n in numbers}
    assert root(size, pages) == described_root(size, pages)


@given(st.sets(st.integers(0, 300_000), max_size=12), st.integers(0, 3 * TiB))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_root_of_any_pages_equals_the_described_one(numbers: set[int], more: int):
    size = 300_001 * PAGE + more
    pages = {n: (n + 1).to_bytes(16, "big") for n in numbers}
    assert root(size, pages) == described_root(size, pages)


def test_a_named_page_of_zeros_changes_nothing():
    assert root(TiB, {5: zero_node(2)}) == digesting.root_of_pages(TiB, *NOTHING)


def test_root_tells_sizes_apart():
    assert digesting.root_of_pages(4096, *NOTHING) != digesting.root_of_pages(8192, *NOTHING)


def test_root_of_a_sparse_disk_goes_through_many_parents_in_slices():
    numbers = np.arange(0, 20_000 * 64, 64, dtype=np.int64)
    nodes = np.random.default_rng(3).integers(0, 256, (len(numbers), 16), np.uint8)
    size = 20_000 * 64 * PAGE
    parents = [xxhash.xxh3_128_digest(node.tobytes() + zero_node(2) * 63) for node in nodes]
    parents += [zero_node(3)] * (-len(parents) % 64)
    while len(parents) > -(-size // (4 * TiB)):
        level = [b"".join(parents[i : i + 64]) for i in range(0, len(parents), 64)]
        parents = [xxhash.xxh3_128_digest(children) for children in level]
        parents += [zero_node(4)] * (-len(parents) % 64) if len(parents) > 64 else []
    wanted = xxhash.xxh3_128_digest(size.to_bytes(8, "little") + b"".join(parents))
    assert digesting.root_of_pages(size, numbers, nodes) == wanted


@pytest.mark.parametrize("numbers", [[1, 0], [0, 0], [-1, 0], [0, 2]])
def test_root_refuses_pages_out_of_order_or_behind_the_disk(numbers: list[int]):
    with pytest.raises(ValueError, match="ascend"):
        digesting.root_of_pages(2 * PAGE, np.array(numbers), np.zeros((2, 16), np.uint8))
    with pytest.raises(ValueError, match="2 page numbers, but 1 nodes"):
        digesting.root_of_pages(2 * PAGE, np.array([0, 1]), np.zeros((1, 16), np.uint8))


def test_leaves_digest_tells_leaves_apart():
    leaves = np.arange(5, dtype=np.uint64)
    wanted = xxhash.xxh3_128_digest(b"".join(i.to_bytes(8, "little") for i in range(5)))
    assert digesting.leaves_digest(leaves) == wanted != digesting.leaves_digest(leaves[::-1])
