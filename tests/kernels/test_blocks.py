"""Every CPU variant of the block kernels against the plain-Python twins."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import twins
from standby._kernels import blocks

PIECE = twins.PIECE
GUARD = 0x5A

settings.register_profile(
    "kernels",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
KERNELS = settings.get_profile("kernels")


@pytest.fixture(params=blocks.variants(), autouse=True)
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    before = blocks.variant()
    blocks.select(request.param)
    yield request.param
    blocks.select(before)


def noise(length: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(length)


def leaves_of(data: bytes) -> list[int]:
    out = np.zeros(-(-len(data) // PIECE), np.uint64)
    blocks.leaves(data, out)
    return [int(leaf) for leaf in out]


def scanned(data: bytes, stored: list[int]) -> tuple[list[int], list[list[int]]]:
    count = len(stored)
    leaves = np.zeros(count, np.uint64)
    runs = np.full((count + 1, 3), -7, np.int64)
    found = blocks.scan(data, np.array(stored, np.uint64), leaves, runs)
    assert (runs[found:] == -7).all()
    return [int(leaf) for leaf in leaves], runs[:found].tolist()


images = st.lists(
    st.tuples(
        st.sampled_from(["zero", "noise", "last byte", "first byte", "ones"]), st.integers(0, 255)
    ),
    max_size=9,
).flatmap(
    lambda parts: st.tuples(st.just(parts), st.sampled_from([0, 1, 7, 8, 511, 512, 513, 4095]))
)
"""(what each piece holds, bytes cut from the end)."""


def image(drawn: tuple[list[tuple[str, int]], int]) -> bytes:
    parts, cut = drawn
    data = bytearray()
    for content, seed in parts:
        piece = bytearray(PIECE)
        if content == "noise":
            piece[:] = noise(PIECE, seed)
        elif content == "last byte":
            piece[-1] = seed
        elif content == "first byte":
            piece[0] = seed
        elif content == "ones":
            piece[:] = b"\xff" * PIECE
        data += piece
    return bytes(data[: max(0, len(data) - cut)])


def test_leaf_equals_the_published_algorithm_and_the_xxhash_package():
    data = noise(PIECE)
    assert leaves_of(data) == [twins.xxh3_64(data)] == [xxhash.xxh3_64_intdigest(data)]


@given(
    st.integers(0, 255),
    st.lists(st.tuples(st.integers(0, PIECE - 64), st.binary(max_size=64)), max_size=20),
)
@settings(KERNELS, max_examples=60)
def test_leaf_of_any_piece_equals_xxhash(fill: int, patches: list[tuple[int, bytes]]):
    piece = bytearray([fill]) * PIECE
    for place, patch in patches:
        piece[place : place + len(patch)] = patch
    data = bytes(piece)
    assert leaves_of(data) == [xxhash.xxh3_64_intdigest(data)]


def test_leaves_of_structured_pieces_equal_xxhash():
    bits = np.zeros((512, PIECE), np.uint8)
    for i in range(512):
        bits[i, i * 8 + i % 8] = 1 << (i % 8)
    extremes = bytes(PIECE) + b"\xff" * PIECE + b"\x80" * PIECE + b"\0\0\0\0\xff\xff\xff\xff" * 512
    data = bits.tobytes() + extremes
    assert leaves_of(data) == twins.leaves(data)


def test_leaves_at_any_alignment_equal_xxhash():
    room = np.frombuffer(noise(3 * PIECE + 64), np.uint8)
    for start in range(64):
        data = room[start : start + 3 * PIECE - 5]
        out = np.zeros(3, np.uint64)
        blocks.leaves(data, out)
        assert [int(leaf) for leaf in out] == twins.leaves(data.tobytes())


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 511, 512, 4095, 4096, 4097, 8191, 12289])
def test_short_last_piece_is_padded_with_zeros(length: int):
    assert leaves_of(noise(length)) == twins.leaves(noise(length))
    assert leaves_of(bytes(length)) == [blocks.ZERO_LEAF] * -(-length // PIECE)


def test_zero_leaf_is_the_digest_of_zeros():
    assert blocks.ZERO_LEAF == twins.xxh3_64(bytes(PIECE)) == xxhash.xxh3_64_intdigest(bytes(PIECE))


@given(st.integers(1, 5), st.integers(0, 1000))
@settings(KERNELS, max_examples=20)
def test_nodes_over_leaves_equal_xxhash(count: int, seed: int):
    children = np.frombuffer(noise(count * 512, seed), np.uint64).reshape(count, 64)
    out = np.zeros((count, 16), np.uint8)
    blocks.join_leaves(children, out)
    wanted = [xxhash.xxh3_128_digest(row.astype("<u8").tobytes()) for row in children]
    assert [row.tobytes() for row in out] == wanted
    assert wanted[0] == twins.xxh3_128(children[0].astype("<u8").tobytes())


@given(st.integers(1, 5), st.integers(0, 1000))
@settings(KERNELS, max_examples=20)
def test_nodes_over_nodes_equal_xxhash(count: int, seed: int):
    children = np.frombuffer(noise(count * 1024, seed), np.uint8).reshape(count, 1024)
    out = np.zeros((count, 16), np.uint8)
    blocks.join_nodes(children, out)
    wanted = [xxhash.xxh3_128_digest(row.tobytes()) for row in children]
    assert [row.tobytes() for row in out] == wanted
    assert wanted[0] == twins.xxh3_128(children[0].tobytes())


@given(images, st.randoms(use_true_random=False))
@settings(KERNELS, max_examples=60)
def test_scan_equals_its_twin(drawn, random):
    data = image(drawn)
    stored = [random.choice([leaf, leaf, 0, blocks.ZERO_LEAF]) for leaf in twins.leaves(data)]
    assert scanned(data, stored) == twins.scan(data, stored)


@given(images, st.sampled_from([1, 3, 512, 4095, 4096, 65536]))
@settings(KERNELS, max_examples=60)
def test_zero_runs_equal_their_twin(drawn, granularity: int):
    data = image(drawn)[:9000]
    out = np.full((-(-len(data) // granularity) + 1, 3), -7, np.int64)
    found = blocks.zero_runs(data, granularity, out)
    assert out[:found].tolist() == twins.zero_runs(data, granularity)
    assert (out[found:] == -7).all()


@given(images, st.sampled_from([1, 512, 4096, 65536]), st.lists(st.integers(0, 8999), max_size=9))
@settings(KERNELS, max_examples=60)
def test_differing_equals_its_twin(drawn, granularity: int, places: list[int]):
    a = image(drawn)[:9000]
    b = bytearray(a)
    for place in places:
        if place < len(b):
            b[place] ^= 1
    out = np.zeros((-(-len(a) // granularity) // 2 + 1, 2), np.int64)
    found = blocks.differing(a, b, granularity, out)
    assert out[:found].tolist() == twins.differing(a, bytes(b), granularity)


@given(images, st.randoms(use_true_random=False))
@settings(KERNELS, max_examples=60)
def test_compact_equals_its_twin(drawn, random):
    data = image(drawn)
    marks = [random.choice([None, 0, 1]) for _ in twins.pieces(data)]
    runs = twins.runs_of(marks)
    moved = bytearray(data)
    kept = blocks.compact(moved, np.array(runs, np.int64).reshape(-1, 3))
    assert bytes(moved[:kept]) == twins.compact(data, runs)


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40))
@settings(KERNELS, max_examples=60)
def test_changed_equals_its_twin(first: list[int], second: list[int]):
    count = min(len(first), len(second))
    a, b = np.array(first[:count], np.uint64), np.array(second[:count], np.uint64)
    out = np.zeros(((count + 1) // 2, 2), np.int64)
    found = blocks.changed(a, b, out)
    marks = [1 if x != y else None for x, y in zip(a, b, strict=True)]
    assert out[:found].tolist() == [run[:2] for run in twins.runs_of(marks)]


@pytest.mark.parametrize("length", [0, 1, 7, 8, 63, 64, 511, 512, 513, 4096, 5000])
def test_is_zero_finds_a_bit_wherever_it_is(length: int):
    data = bytearray(length)
    assert blocks.is_zero(data)
    for place in range(length):
        data[place] = 1
        assert not blocks.is_zero(data)
        data[place] = 0


def test_writes_stay_within_the_arrays_it_is_given():
    data = noise(5 * PIECE)
    leaves = np.full(7, GUARD, np.uint64)
    runs = np.full((7, 3), GUARD, np.int64)
    blocks.scan(data, np.zeros(5, np.uint64), leaves[1:6], runs[1:6])
    assert leaves[0] == leaves[6] == GUARD
    assert (runs[[0, 6]] == GUARD).all()
    nodes = np.full((4, 16), GUARD, np.uint8)
    blocks.join_nodes(np.frombuffer(data[:2048], np.uint8).reshape(2, 1024), nodes[1:3])
    assert (nodes[[0, 3]] == GUARD).all()


def test_scan_of_alternating_pieces_fills_one_run_per_piece():
    data = b"".join(noise(PIECE, i) if i % 2 else bytes(PIECE) for i in range(64))
    _, runs = scanned(data, [0] * 64)
    assert runs == [[i, i + 1, i % 2] for i in range(64)]
