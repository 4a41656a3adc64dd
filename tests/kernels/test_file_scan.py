"""Reading and scanning in one call, against a disk put together and looked at in plain Python."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import twins
from standby import comparing
from standby._kernels import blocks
from standby.errors import DiskIO
from standby.files import File

pytestmark = pytest.mark.skipif(not blocks.READS_FILES, reason="no pread on this system")

PIECE = twins.PIECE
DISK = 300 * PIECE
FILE_SIZES = (400 * PIECE, 200 * PIECE)
ZERO_LEAF = blocks.ZERO_LEAF

SETTINGS = settings(
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[File, ...]]:
    """Two files of noise with zero pieces."""
    folder = tmp_path_factory.mktemp("files")
    opened = []
    for number, size in enumerate(FILE_SIZES):
        data = np.random.default_rng(number).integers(0, 256, size, np.uint8)
        data.reshape(-1, PIECE)[:: 5 + number] = 0
        (folder / str(number)).write_bytes(data.tobytes())
        opened.append(File(folder / str(number)))
    yield tuple(opened)
    for file in opened:
        file.close()


@dataclass(frozen=True, slots=True)
class Case:
    size: int
    segments: list[tuple[int, int, int, int]]
    windows: list[tuple[int, int]]
    changed: frozenset[int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    size = draw(st.integers(1, DISK // 512)) * 512
    borders = draw(st.lists(st.integers(0, size // 512), max_size=24, unique=True))
    edges = sorted(border * 512 for border in borders)
    segments = []
    for start, stop in itertools.pairwise(edges):
        index = draw(st.integers(0, 2))
        if index < 2:
            place = draw(st.integers(0, (FILE_SIZES[index] - (stop - start)) // 512)) * 512
            if stop - start <= FILE_SIZES[index]:
                segments.append((start, stop - start, place, index))
    pieces = -(-size // PIECE)
    cuts = sorted(draw(st.sets(st.integers(0, pieces), max_size=8))) or [0, pieces]
    windows = [
        (first * PIECE, min(stop * PIECE, size))
        for first, stop in itertools.pairwise(cuts)
        if draw(st.booleans())
    ]
    return Case(size, segments, windows, frozenset(draw(st.sets(st.integers(0, pieces - 1)))))


def content_of(case: Case, files: tuple[File, ...]) -> tuple[bytes, set[int]]:
    """The disk, and the pieces of which something is stored."""
    disk = bytearray(case.size)
    held: set[int] = set()
    for start, length, place, index in case.segments:
        disk[start : start + length] = files[index].read(place, length)
        held |= set(range(start // PIECE, -(-(start + length) // PIECE)))
    return bytes(disk), held


def leaves_of(data: bytes) -> np.ndarray:
    out = np.zeros(-(-len(data) // PIECE), np.uint64)
    blocks.leaves(data, out)
    return out


def arrays(case: Case) -> tuple[np.ndarray, np.ndarray]:
    windows = [(first, stop, first // PIECE) for first, stop in case.windows]
    return (
        np.array(windows, np.int64).reshape(-1, 3),
        np.array(case.segments, np.int64).reshape(-1, 4),
    )


def run_all(
    scan: comparing.FileScan, slot: np.ndarray, row_count: int, *, keeps: bool
) -> tuple[list[list[int]], list[int], bytes, int]:
    """Rows, leaves, data and bytes read of all calls, as one."""
    rows, kept = np.empty((row_count, 3), np.int64), np.empty(len(slot) // PIECE + 1, np.uint64)
    found: list[list[int]] = []
    leaves: list[int] = []
    data = b""
    read = 0
    for _ in range(10_000):
        is_done = scan.run(slot, rows, kept, keeps=keeps)
        filled, made, leaf_count = scan.made
        assert is_done or made
        found += rows[:made].tolist()
        leaves += kept[:leaf_count].tolist()
        data += slot[:filled].tobytes()
        read += scan.read[0]
        if is_done:
            return found, leaves, data, read
    raise AssertionError("it does not end")


def pieces_of(rows: list[list[int]]) -> dict[int, tuple[int, int]]:
    """Length and kind of every piece that the rows name; each once."""
    found: dict[int, tuple[int, int]] = {}
    for offset, length, kind in rows:
        assert offset % PIECE == 0
        for at in range(offset, offset + length, PIECE):
            assert at not in found
            found[at] = (min(PIECE, offset + length - at), kind)
    return found


@pytest.mark.parametrize("variant", blocks.variants())
@SETTINGS
@given(case=cases(), room=st.sampled_from([1, 2, 16]), keeps=st.booleans())
def test_equals_reading_and_comparing_piece_by_piece(variant, files, case, room, keeps):
    disk, held = content_of(case, files)
    new = leaves_of(disk)
    stored = new.copy()
    for piece in case.changed:
        stored[piece] ^= np.uint64(1)
    leaves = np.zeros_like(stored)
    scan = comparing.FileScan(*arrays(case), files, stored, leaves)
    slot = comparing.aligned_buffer(room * comparing.READ_CHUNK)
    before = blocks.variant()
    blocks.select(variant)
    try:
        rows, kept, data, read = run_all(scan, slot, 64 * room, keeps=keeps)
    finally:
        blocks.select(before)

    looked_at = {
        piece for first, stop in case.windows for piece in range(first // PIECE, -(-stop // PIECE))
    }
    wanted = sorted(looked_at & case.changed)
    lengths = {piece: min(PIECE, case.size - piece * PIECE) for piece in looked_at}
    told = pieces_of(rows)
    assert [offset // PIECE for offset in told] == wanted
    assert all(told[p * PIECE] == (lengths[p], int(new[p] != ZERO_LEAF)) for p in wanted)
    for piece in range(len(leaves)):
        assert int(leaves[piece]) == (int(new[piece]) if piece in looked_at else 0)
    with_data = [piece for piece in wanted if new[piece] != ZERO_LEAF] if keeps else []
    assert kept == [int(new[piece]) for piece in with_data]
    assert data == b"".join(disk[p * PIECE : p * PIECE + lengths[p]] for p in with_data)
    assert read == sum(lengths[piece] for piece in looked_at & held)


def test_neighbours_of_one_kind_are_one_row(files):
    size = 3 * comparing.READ_CHUNK
    case = Case(
        size, [(0, size // 2, 0, 0), (size // 2, size // 2, PIECE, 1)], [(0, size)], frozenset()
    )
    stored = ~leaves_of(content_of(case, files)[0])
    scan = comparing.FileScan(*arrays(case), files, stored, np.zeros_like(stored))
    rows, *_ = run_all(scan, comparing.aligned_buffer(size), 1000, keeps=True)
    assert all(
        one[0] + one[1] < other[0] or one[2] != other[2] for one, other in itertools.pairwise(rows)
    )
    assert sum(row[1] for row in rows) == size


def scan_of(file: File, rows: list[tuple[int, int, int, int]], size: int) -> comparing.FileScan:
    stored = np.full(-(-size // PIECE), ZERO_LEAF, np.uint64)
    windows = np.array([[0, size, 0]], np.int64)
    return comparing.FileScan(windows, np.array(rows, np.int64), (file,), stored, stored.copy())


def test_a_file_that_ends_early_is_an_error_with_its_place(tmp_path: Path):
    (tmp_path / "cut").write_bytes(bytes(70_000))
    with File(tmp_path / "cut") as file:
        scan = scan_of(file, [(0, 1 << 20, 4096, 0)], 1 << 20)
        with pytest.raises(DiskIO, match="file ends after 65904 bytes") as caught:
            run_all(scan, comparing.aligned_buffer(1 << 20), 1000, keeps=True)
    assert caught.value.path == str(tmp_path / "cut")
    assert (caught.value.operation, caught.value.offset) == ("read", 4096)
    assert caught.value.length == comparing.READ_CHUNK


def test_what_the_system_refuses_is_an_error_with_its_reason(tmp_path: Path):
    (tmp_path / "closed").write_bytes(bytes(1 << 20))
    file = File(tmp_path / "closed")
    file.close()
    scan = scan_of(file, [(8192, 1 << 19, 512, 0)], 1 << 20)
    with pytest.raises(DiskIO) as caught:
        run_all(scan, comparing.aligned_buffer(1 << 20), 1000, keeps=False)
    assert caught.value.reason == os.strerror(9)
    assert (caught.value.offset, caught.value.length) == (512, comparing.READ_CHUNK)


def test_without_room_nothing_is_read(files):
    scan = scan_of(files[0], [(0, 1 << 20, 0, 0)], 1 << 20)
    rows, kept = np.empty((64, 3), np.int64), np.empty(64, np.uint64)
    assert not scan.run(comparing.aligned_buffer(63 * PIECE), rows, kept)
    assert not scan.run(comparing.aligned_buffer(0), rows, kept)
    assert not scan.run(comparing.aligned_buffer(63 * PIECE), rows[:63], kept)
    assert scan.made == (0, 0, 0)
    assert scan.place == (0, 0)
    assert scan.read[0] == 0


WINDOW, SEGMENT = [[0, 8192, 0]], [[0, 8192, 0, 0]]

WRONG = {
    "windows overlap": ([[0, 8192, 0], [4096, 8192, 0]], SEGMENT),
    "window off a border": ([[512, 8192, 0]], SEGMENT),
    "window without length": ([[4096, 4096, 0]], SEGMENT),
    "window before the leaves": ([[0, 4096, -1]], SEGMENT),
    "window behind the leaves": ([[0, 4096, 2]], SEGMENT),
    "window longer than the leaves": ([[0, 8193, 0]], SEGMENT),
    "window far away": ([[0, (1 << 61) + 4096, 0]], SEGMENT),
    "window before the disk": ([[-4096, 4096, 0]], SEGMENT),
    "segments overlap": (WINDOW, [[0, 4096, 0, 0], [512, 512, 0, 0]]),
    "segment without length": (WINDOW, [[0, 0, 0, 0]]),
    "segment before the disk": (WINDOW, [[-512, 1024, 0, 0]]),
    "segment before the file": (WINDOW, [[0, 4096, -512, 0]]),
    "segment far away": (WINDOW, [[1 << 62, 1 << 62, 0, 0], [0, 1, 0, 0]]),
    "segment of no file": (WINDOW, [[0, 4096, 0, 1]]),
    "segment of a file before the first": (WINDOW, [[0, 4096, 0, -1]]),
}


@pytest.mark.parametrize(("windows", "segments"), WRONG.values(), ids=WRONG)
def test_refuses_numbers_that_lead_outside(files, windows, segments):
    stored = np.zeros(2, np.uint64)
    tables = np.array(windows, np.int64), np.array(segments, np.int64)
    scan = comparing.FileScan(*tables, files[:1], stored, stored.copy())
    rows, kept = np.empty((64, 3), np.int64), np.empty(65, np.uint64)
    with pytest.raises(ValueError, match="must ascend and lie within"):
        scan.run(comparing.aligned_buffer(comparing.READ_CHUNK), rows, kept)


def test_refuses_arrays_that_do_not_fit_or_overlap(files):
    stored, windows = np.zeros(64, np.uint64), np.array(WINDOW, np.int64)
    segments = np.array(SEGMENT, np.int64)
    for wrong in (
        lambda: comparing.FileScan(windows[:, :2].copy(), segments, files, stored, stored.copy()),
        lambda: comparing.FileScan(windows, segments[:, :3].copy(), files, stored, stored.copy()),
        lambda: comparing.FileScan(windows, segments, files, stored, stored[:1].copy()),
        lambda: comparing.FileScan(windows, segments, files, stored, stored),
    ):
        with pytest.raises(ValueError):
            wrong()
    leaves = stored.copy()
    scan = comparing.FileScan(windows, segments, files, stored, leaves)
    slot = comparing.aligned_buffer(comparing.READ_CHUNK)
    rows, kept = np.empty((64, 3), np.int64), np.empty(65, np.uint64)
    for wrong in (
        lambda: scan.run(slot, rows[:, :2].copy(), kept),
        lambda: scan.run(slot, rows, kept[:64]),
        lambda: scan.run(slot, slot[:1536].view(np.int64).reshape(-1, 3), kept),
        lambda: scan.run(slot, rows, slot[:1024].view(np.uint64)),
        lambda: scan.run(leaves.view(np.uint8), rows, kept),
        lambda: scan.run(stored.view(np.uint8), rows, kept),
        lambda: scan.run(slot[:0], leaves[:63].view(np.int64).reshape(-1, 3), kept),
        lambda: scan.run(slot[:0], rows, leaves),
        lambda: scan.run(slot[:0], rows, stored),
    ):
        with pytest.raises(ValueError):
            wrong()
