"""A scanning thread's two roads, through the kernel and by `read_into`, find and send the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from standby import comparing, digesting
from standby.digesting import LEAVES_PER_PAGE, PAGE, PIECE, ZERO_LEAF
from standby.disk import open_disk, vhdx
from standby.disk.overlay import OverlayDisk
from standby.disk.raw import RawDisk, create_raw
from standby.errors import DiskIO
from standby.files import File
from standby.model.extent import Extent
from standby.ports import VirtualDisk
from standby.road.batches import joined_rows
from standby.road.pages import read_leaves, zero_page
from standby.road.scan_ranges import Windows, file_ranges
from standby.road.scanning import READ_SIZE, PageLookup, PageScanner, SendTask
from standby.road.source_proxy import counted_changes
from standby.testing.disks import MemoryDisk, fill
from standby.units import GiB, KiB, MiB

needs_kernel = pytest.mark.skipif(
    not comparing.CAN_READ_FILES, reason="no pread on this system: there is one road only"
)
SIZE = 3 * PAGE + 5 * MiB + 1536
"""Three pages and a part of one, with a last piece of three sectors."""


# --- disks -----------------------------------------------------------------------------------


def chain(folder: Path, layers: int, size: int = SIZE, sector: int = 512) -> VirtualDisk:
    """A VHDX with `layers` - 1 parents, each with sectors of its own."""
    disk = vhdx.create(
        folder / "0.vhdx", size, block_size=MiB, logical_sector_size=sector,
        physical_sector_size=4096,
    )  # fmt: skip
    fill(disk, 1, 60, around=(PAGE, 2 * PAGE))
    for layer in range(1, layers):
        disk.close()
        disk = vhdx.create_child(
            folder / f"{layer}.vhdx", folder / f"{layer - 1}.vhdx", block_size=2 * MiB
        )
        fill(disk, 1 + layer, 40)
    disk.close()
    return open_disk(folder / f"{layers - 1}.vhdx")


def fixed(folder: Path) -> VirtualDisk:
    with vhdx.create(folder / "fixed.vhdx", SIZE, block_size=MiB, fixed=True) as disk:
        fill(disk, 4, 60)
    return open_disk(folder / "fixed.vhdx")


def raw(folder: Path) -> VirtualDisk:
    with create_raw(folder / "disk.raw", SIZE) as disk:
        fill(disk, 3, 60)
    return open_disk(folder / "disk.raw")


def cut_raw(folder: Path) -> VirtualDisk:
    """An image that ends inside a sector."""
    raw(folder).close()
    os.truncate(folder / "disk.raw", SIZE - 700)
    return RawDisk(folder / "disk.raw", pad=True)


def sparse(folder: Path) -> VirtualDisk:
    """Pages that are far from each other."""
    with vhdx.create(folder / "sparse.vhdx", 40 * GiB) as disk:
        for place in (0, 5 * GiB, 39 * GiB):
            disk.write(place + 12 * KiB, np.random.default_rng(place).bytes(300 * KiB))
    return open_disk(folder / "sparse.vhdx")


def memory(folder: Path) -> VirtualDisk:
    disk = MemoryDisk(SIZE)
    fill(disk, 5, 60)
    return disk


def overlay(folder: Path) -> VirtualDisk:
    disk = OverlayDisk(memory(folder), folder)
    fill(disk, 6, 20)
    return disk


FILES: dict[str, Callable[[Path], VirtualDisk]] = {
    "dynamic": lambda folder: chain(folder, 1),
    "4096-byte sectors": lambda folder: chain(folder, 2, 3 * PAGE + 4096, 4096),
    "chain of three": lambda folder: chain(folder, 3),
    "fixed": fixed,
    "raw": raw,
    "raw that ends inside a sector": cut_raw,
    "sparse": sparse,
}
OTHERS = {"memory": memory, "overlay": overlay}


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
@needs_kernel
def test_file_ranges_hold_the_disks_content(tmp_path, make):
    disk = make(tmp_path)
    try:
        for start in range(0, min(disk.virtual_size, 4 * PAGE), PAGE):
            stop = min(start + PAGE, disk.virtual_size)
            found = disk.file_ranges(start, stop)
            built = bytearray(stop - start)
            for offset, length, place, index in found.rows.tolist():
                assert start <= offset < offset + length <= stop
                data = found.files[index].read(place, length)
                built[offset - start : offset - start + length] = data
            wanted = bytearray(stop - start)
            disk.read_into(start, wanted)
            assert built == wanted
    finally:
        disk.close()


def test_only_plain_files_are_read_without_their_disk(tmp_path):
    disk = chain(tmp_path, 1)
    pages = np.arange(2)
    assert (file_ranges(disk, pages) is not None) == comparing.CAN_READ_FILES
    disk.close()

    class Watched(File):
        pass

    with RawDisk(Watched(tmp_path / "0.vhdx")) as watched:
        assert file_ranges(watched, pages) is None
    for make in OTHERS.values():
        other = make(tmp_path)
        assert file_ranges(other, pages) is None
        other.close()


@pytest.fixture
def dirty(tmp_path) -> Path:
    """A disk of 4 MiB, half of it written, whose log was not replayed."""
    writer = vhdx.create(tmp_path / "a.vhdx", 4 * MiB)
    writer.write(0, b"a" * MiB)
    writer.flush()
    writer.write(MiB, b"b" * MiB)
    writer.flush()
    (tmp_path / "b.vhdx").write_bytes((tmp_path / "a.vhdx").read_bytes())
    writer.close()
    return tmp_path / "b.vhdx"


@needs_kernel
def test_content_beside_a_dirty_log_is_read_from_the_file(dirty):
    with open_disk(dirty) as disk:
        assert disk.info.log_is_dirty
        assert disk.file.changes(np.array([0]), np.array([4 * MiB]))  # the table, at least
        found = file_ranges(disk, np.arange(1))
        assert found is not None
        assert found.files[0].path == dirty
        assert counted_changes(disk, None, None).changed == 2 * MiB


@pytest.mark.parametrize("change", ["page", "zeros", "end"])
def test_content_under_a_dirty_log_is_read_through_it(dirty, change):
    with open_disk(dirty) as disk:
        place = int(disk.mapped(0, MiB)[0, 2])
        if change == "page":
            disk.file.put(place + MiB - PIECE, bytes(PIECE))
        elif change == "zeros":
            disk.file.clear(place + MiB - PIECE, PIECE)
        else:
            os.truncate(dirty, place + 2 * MiB - PIECE)
            disk.image.file._size = place + 2 * MiB - PIECE  # as if it had been opened so
        assert file_ranges(disk, np.arange(1)) is None
        assert counted_changes(disk, None, None).changed == 2 * MiB - PIECE
        leaves = zero_page()
        everything = np.arange(LEAVES_PER_PAGE) < 4 * MiB // PIECE
        read_leaves(disk, 0, 4 * MiB, everything, leaves)
        assert int((leaves != ZERO_LEAF).sum()) == 2 * MiB // PIECE - 1


@pytest.mark.parametrize("make", (FILES | OTHERS).values(), ids=FILES | OTHERS)
def test_leaves_read_by_the_kernel_are_those_read_by_the_disk(tmp_path, monkeypatch, make):
    disk = make(tmp_path)
    chance = np.random.default_rng(31)
    calls: list[int] = []
    monkeypatch.setattr(type(disk), "read_into", counting(type(disk).read_into, calls))
    try:
        for start in range(0, min(disk.virtual_size, 4 * PAGE), PAGE):
            stop = min(start + PAGE, disk.virtual_size)
            pieces = -(-(stop - start) // PIECE)
            edges = np.sort(chance.choice(pieces, 20, replace=False)) if pieces > 20 else []
            wanted = np.zeros(LEAVES_PER_PAGE, dtype=np.bool_)
            wanted[:pieces] = np.searchsorted(edges, np.arange(pieces)) % 2 == 0
            whole = np.frombuffer(bytearray(PAGE), np.uint8)
            expected, found = zero_page(), zero_page()
            count = read_leaves(disk, start, stop, wanted, expected, whole.data)
            calls.clear()
            assert read_leaves(disk, start, stop, wanted, found) <= count
            assert np.array_equal(found[wanted], expected[wanted])
            is_plain = make in FILES.values() and comparing.CAN_READ_FILES
            if is_plain and int(wanted.sum()) * PIECE >= 512 * KiB:
                assert calls == []
            elif not is_plain:
                assert calls
    finally:
        disk.close()


def counting(plain: Callable, calls: list[int]) -> Callable:
    """`read_into` that tells when it was called."""

    def read_into(disk, offset, buffer):
        calls.append(offset)
        plain(disk, offset, buffer)

    return read_into


def test_a_raw_parent_is_read_where_its_file_has_all_of_it(tmp_path):
    raw(tmp_path).close()
    for missing, is_plain in ((0, True), (700, False)):
        os.truncate(tmp_path / "disk.raw", SIZE - missing)
        parent = RawDisk(tmp_path / "disk.raw", pad=True)
        layer = vhdx.stack.ForeignLayer(parent)
        assert (layer.plain_file is not None) == is_plain
        parent.close()


# --- scanning --------------------------------------------------------------------------------


class Stored:
    """A baseline: leaves that differ from the disk's in some pieces."""

    def __init__(self, disk: VirtualDisk, seed: int) -> None:
        self._disk = disk
        self._seed = seed

    def index(self):
        return np.empty(0, np.int64), np.empty((0, 16), np.uint8)

    def leaves(self, page_numbers):
        return np.stack([self.page(page) for page in page_numbers])

    def page(self, page: int) -> np.ndarray:
        start = page * PAGE
        data = bytearray(min(PAGE, self._disk.virtual_size - start))
        self._disk.read_into(start, data)
        leaves = np.full(LEAVES_PER_PAGE, ZERO_LEAF, np.uint64)
        leaves[: -(-len(data) // PIECE)] = digesting.leaves(data)
        rng = np.random.default_rng((self._seed, page))
        changed = rng.random(LEAVES_PER_PAGE) < rng.choice([0, 0.01, 0.3, 1])
        changed[-(-len(data) // PIECE) :] = False
        leaves[changed & (rng.random(LEAVES_PER_PAGE) < 0.8)] ^= np.uint64(5)
        leaves[changed & (rng.random(LEAVES_PER_PAGE) < 0.2)] = ZERO_LEAF
        return leaves


class Owner:
    """Takes what a scanner finds, and checks that nothing is called done before it is."""

    changes: dict = {}  # noqa: RUF012
    stored_index = PageLookup(None)

    def __init__(self, task: SendTask, slot_size: int, *, keeps: bool = True) -> None:
        self.task = task
        self.keeps = keeps
        self.slot = comparing.aligned_buffer(slot_size).data
        self.is_lent = False
        self.rows: list[np.ndarray] = []
        self.leaves: list[int] = []
        self.data = b""
        self.staged: dict[int, bytes] = {}
        self.marks: list[tuple[int | None, int, int]] = []
        self.read = 0

    def take_slot(self):
        assert not self.is_lent
        self.is_lent = True
        return 0, self.slot

    def give_slot_back(self, index):
        self.is_lent = False

    def send(self, builder, slot, packer):
        rows, leaves = builder.tables()
        assert len(rows)
        assert builder.filled <= len(self.slot)
        self.rows.append(rows.copy())
        self.leaves += leaves.tolist()
        self.data += bytes(builder.slot[: builder.filled])
        self.is_lent = False

    def stage(self, pages, leaves):
        for page, own in zip(pages, leaves, strict=True):
            assert page not in self.staged
            self.staged[page] = own.tobytes()

    def page_done(self, worker, next_page):
        sent = max((int(rows[-1, 0]) for rows in self.rows), default=-1)
        self.marks.append((next_page, sent, max(self.staged, default=-1)))

    def scanner_done(self, read, source_s, proxy_s):
        self.read += read
        assert source_s >= 0
        assert proxy_s >= 0


class Staging:
    def put(self, page_numbers, leaves): ...
    def set_mark(self, checkpoint_id, offset): ...
    def sync(self): ...


def scanned(disk: VirtualDisk, seed: int, slot_size: int, candidates=None, *, keeps=True) -> Owner:
    stored = Stored(disk, seed) if seed else None
    baseline = "repository" if seed else "none"
    task = SendTask("t", disk, "c", baseline, stored, Staging(), candidates)
    owner = Owner(task, slot_size, keeps=keeps)
    scanner = PageScanner(owner, 0)
    pages = np.arange(-(-disk.virtual_size // PAGE))
    if disk.virtual_size > GiB:
        pages = pages[(pages % 320 < 2) | (pages == 39 * 64)]
    for first in range(0, len(pages), 4):
        scanner.scan(pages[first : first + 4])
    scanner.close()
    return owner


def random_candidates(seed: int, size: int) -> tuple[Extent, ...]:
    """On pieces' borders or not, several in one piece, some of them over one another."""
    rng = np.random.default_rng(seed)
    edges = np.unique(rng.integers(0, size // PIECE, 2 * int(rng.integers(1, 60)))) * PIECE
    pairs = edges[: len(edges) // 2 * 2].reshape(-1, 2).tolist()
    found = [Extent(start, stop - start) for start, stop in pairs]
    for start, stop in pairs[::2]:
        found += [Extent(start + 512, 100), Extent(start + 1024, 512), Extent(stop - 100, 100)]
    return tuple(sorted(found, key=lambda extent: extent.offset))


@needs_kernel
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
def test_both_roads_send_and_stage_the_same(tmp_path, monkeypatch, make, seed):
    disk = make(tmp_path)
    try:
        for candidates in (None, random_candidates(seed, disk.virtual_size)):
            slot_size = (2 if seed else 16) * MiB
            through_kernel = scanned(disk, seed, slot_size, candidates)
            counted = scanned(disk, seed, READ_SIZE, candidates, keeps=False)
            monkeypatch.setattr(comparing, "CAN_READ_FILES", False)
            by_read_into = scanned(disk, seed, slot_size, candidates)
            monkeypatch.undo()
            rows = [
                joined_rows(np.concatenate([np.empty((0, 3), np.int64), *owner.rows]))
                for owner in (through_kernel, by_read_into, counted)
            ]
            assert rows[0].tolist() == rows[1].tolist() == rows[2].tolist()
            assert through_kernel.leaves == by_read_into.leaves
            assert through_kernel.data == by_read_into.data
            assert through_kernel.staged == by_read_into.staged == counted.staged
            assert through_kernel.read == by_read_into.read == counted.read
            assert (counted.data, counted.leaves) == (b"", [])
            assert rows[0][rows[0][:, 2] == 1, 1].sum() == len(through_kernel.data)
            for owner in (through_kernel, by_read_into):
                all_rows, pages = rows[0], sorted(owner.staged)
                for next_page, sent, staged in owner.marks:
                    border = (1 << 62) if next_page is None else next_page * PAGE
                    before = all_rows[all_rows[:, 0] < border, 0]
                    if next_page is not None and len(before):
                        assert sent >= before[-1] // PAGE * PAGE
                        assert staged >= max((p for p in pages if p < next_page), default=-1)
    finally:
        disk.close()


def test_no_row_table_is_fuller_than_a_batch_may_be(tmp_path):
    """Every other piece changed: rows fill up before the slot does."""
    with create_raw(tmp_path / "disk.raw", 9 * PAGE) as disk:
        every_other = np.zeros((9 * PAGE // PIECE, PIECE), np.uint8)
        every_other[::2] = 7
        disk.write(0, every_other)
    with open_disk(tmp_path / "disk.raw") as disk:
        owner = scanned(disk, 0, 256 * MiB)
        assert len(owner.data) == 9 * PAGE // 2
        assert sum(len(rows) for rows in owner.rows) == 9 * PAGE // PIECE // 2
        counters = counted_changes(disk, None, None)
        assert counters.changed == 9 * PAGE // 2


def test_any_number_of_threads_counts_the_same(tmp_path):
    with sparse(tmp_path) as disk:
        stored = Stored(disk, 1)
        pages = np.arange(0, 40 * 64, 17)
        stored.index = lambda: (pages, np.empty((len(pages), 16), np.uint8))
        found = [counted_changes(disk, stored, None, threads) for threads in (1, 2, 3, 8)]
        assert found[0].changed > 900 * KiB
        for counters in found:
            counters.busy_s = {}
        assert all(counters == found[0] for counters in found)


def test_windows_lie_on_pieces_borders_in_the_pages_asked_for():
    candidates = tuple(
        Extent(*pair) for pair in ((PAGE - 512, 1024), (100, 5), (PAGE + 3000, 2000), (3 * PAGE, 9))
    )
    windows = Windows(3 * PAGE + 100, candidates)
    assert windows.of(np.array([0, 1])).tolist() == [
        [0, PIECE, 0],
        [PAGE - PIECE, PAGE, LEAVES_PER_PAGE - 1],
        [PAGE, PAGE + PIECE, LEAVES_PER_PAGE],
        [PAGE + PIECE, PAGE + 2 * PIECE, LEAVES_PER_PAGE + 1],
    ]
    assert windows.of(np.array([2])).tolist() == []
    assert windows.of(np.array([1, 3])).tolist() == [
        [PAGE, PAGE + PIECE, 0],
        [PAGE + PIECE, PAGE + 2 * PIECE, 1],
        [3 * PAGE, 3 * PAGE + 100, LEAVES_PER_PAGE],
    ]
    assert Windows(PAGE + 100, ()).of(np.array([0, 1])).tolist() == []
    assert Windows(PAGE + 100, None).of(np.array([1])).tolist() == [[PAGE, PAGE + 100, 0]]


@pytest.mark.parametrize("is_kernel", [comparing.CAN_READ_FILES, False])
def test_a_file_cut_under_its_disk_is_an_error_with_its_place(tmp_path, monkeypatch, is_kernel):
    monkeypatch.setattr(comparing, "CAN_READ_FILES", is_kernel)
    disk = fixed(tmp_path)
    path = tmp_path / "fixed.vhdx"
    with disk, path.open("r+b") as file:
        file.truncate(path.stat().st_size - 2 * MiB - 512)
        with pytest.raises(DiskIO, match=r"file ends after \d+ bytes") as caught:
            counted_changes(disk, None, None)
    error = caught.value
    assert (error.path, error.operation) == (str(path), "read")
    assert error.offset < path.stat().st_size < error.offset + error.length
