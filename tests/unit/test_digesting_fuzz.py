"""Damaged `.digests` files: an error of ours, nothing wrong returned, no more memory than the file
is long."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from standby import digesting
from standby.digesting import LEAVES_PER_PAGE, PAGE, ZERO_LEAF, DigestFile, DigestWriter
from standby.errors import DiskCorrupt, DiskUnsupported
from standby.units import MiB

SETTINGS = settings(
    deadline=None,
    derandomize=True,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SIZE = 5 * PAGE
HEADER, FIRST_PAGE, ENTRY, FOOTER = 64, 4096, 32, 64
REFUSED = (DiskCorrupt, DiskUnsupported)


def original(folder: Path, complete: bool) -> bytes:
    leaves = np.arange(LEAVES_PER_PAGE, dtype=np.uint64)
    with DigestWriter(folder / "made", SIZE, complete) as writer:
        writer.add(1, leaves)
        writer.add(2, np.full(LEAVES_PER_PAGE, ZERO_LEAF))
        writer.add(4, leaves[::-1])
        nodes = digesting.page_nodes(np.stack([leaves, leaves[::-1]]))
        writer.finish(digesting.root_of_pages(SIZE, np.array([1, 4]), nodes))
    return (folder / "made").read_bytes()


def read_all(path: Path) -> list[tuple[int, bytes]]:
    with DigestFile.open(path) as file:
        assert (file.page_numbers[1:] > file.page_numbers[:-1]).all()
        return [(n, file.leaves(n).tobytes()) for n in file.page_numbers.tolist()]


patches = st.lists(
    st.tuples(
        st.one_of(
            st.integers(0, HEADER - 1),
            st.integers(FIRST_PAGE, FIRST_PAGE + 200),
            st.integers(-FOOTER - 3 * ENTRY, -1),
        ),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def patched(data: bytes, changes: list[tuple[int, bytes]]) -> bytearray:
    out = bytearray(data)
    for offset, patch in changes:
        offset %= len(data)
        out[offset : offset + len(patch)] = patch
    return out[: len(data)]


@given(st.booleans(), patches)
@SETTINGS
def test_damage_is_found_or_harmless(tmp_path: Path, complete: bool, changes):
    data = original(tmp_path, complete)
    wanted = read_all(tmp_path / "made")
    (tmp_path / "damaged").write_bytes(patched(data, changes))
    with contextlib.suppress(*REFUSED):
        assert read_all(tmp_path / "damaged") == wanted


@given(st.booleans(), patches)
@SETTINGS
def test_lies_with_a_fitting_checksum_end_in_an_error_or_a_sound_index(
    tmp_path: Path, complete: bool, changes
):
    data = patched(original(tmp_path, complete), changes)
    index_at = struct.unpack_from("<Q", data, len(data) - FOOTER)[0]
    check = xxhash.xxh3_128_digest(
        bytes(data[:HEADER]) + bytes(data[index_at:-FOOTER]) + bytes(data[-FOOTER:-32])
    )
    data[-32:-16] = check
    (tmp_path / "damaged").write_bytes(data)
    with contextlib.suppress(*REFUSED):
        read_all(tmp_path / "damaged")


@given(st.integers(0, 80_000), st.booleans())
@SETTINGS
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, length: int, complete: bool):
    data = original(tmp_path, complete)
    (tmp_path / "damaged").write_bytes(data[: min(length, len(data) - 1)])
    try:
        read_all(tmp_path / "damaged")
    except REFUSED:
        return
    raise AssertionError("a cut file was read")


@given(st.binary(max_size=5000))
@SETTINGS
def test_random_bytes_are_refused(tmp_path: Path, data: bytes):
    (tmp_path / "damaged").write_bytes(b"STBYDIGS\1\0\0\0" + data)
    try:
        read_all(tmp_path / "damaged")
    except REFUSED:
        return
    raise AssertionError("random bytes were read")


def test_a_sparse_index_of_a_huge_disk_takes_bounded_memory(tmp_path: Path):
    """100 000 entries, each the only one below its level-5 node: 3 MiB of file."""
    count = 100_000
    index = np.zeros(count, [("page", "<u8"), ("offset", "<u8"), ("node", "u1", 16)])
    index["page"] = np.arange(count) * 40_000
    index["offset"] = 0
    index["node"] = np.frombuffer(digesting.zero_node(2), np.uint8)
    header = b"STBYDIGS" + struct.pack("<IIQ", 1, 0, 1 << 56) + bytes(40)
    footer = struct.pack("<QQ", 4096, count) + bytes(16)
    check = xxhash.xxh3_128_digest(header + index.tobytes() + footer)
    data = header.ljust(4096, b"\0") + index.tobytes() + footer + check + b"STBYDEND" + bytes(8)
    (tmp_path / "a").write_bytes(data)
    tracemalloc.start()
    try:
        with DigestFile.open(tmp_path / "a") as file:
            digesting.root_of_pages(file.virtual_size, file.page_numbers, file.nodes)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * MiB
