"""The VHDX writer under crashes at every moment, full file systems and failing devices.

Power cuts are simulated over a file in memory that remembers what was synced: the file of every
moment must open, pass the check, hold all that was flushed, and per sector the old or a newer value
of what was not.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import pytest

from standby.disk import vhdx
from standby.disk.check import check_image
from standby.disk.vhdx import VhdxDisk
from standby.errors import DiskError, DiskFull, DiskIO
from standby.testing.disks import MemoryDisk, content, random_bytes
from standby.testing.vhdx_files import MODES, CrashPoints, MemoryFile
from standby.units import KiB, MiB

SECTOR = 512
SIZE = 3 * MiB + 9 * SECTOR
FULL = os.environ.get("STANDBY_FUZZ") == "full"
"""Every moment of every workload, instead of some."""
pytestmark = [pytest.mark.timeout(3600)] if FULL else []


@dataclass
class Session:
    """A disk being written, and what a crash at each of its file's changes may show."""

    file: MemoryFile
    disk: VhdxDisk
    parent: MemoryDisk | None
    content: bytearray
    start: MemoryFile
    start_guid: str
    flushed: list[tuple[int, bytes]] = field(default_factory=list)
    """(changes issued, content) after each flush."""
    writes: list[tuple[int, int, bytes]] = field(default_factory=list)
    """(changes issued before, offset, data)."""
    beside: dict[int, int] = field(default_factory=dict)
    """Changes issued when a flush began, by those after it, where writing went on meanwhile."""

    def write(self, offset: int, data: bytes) -> None:
        self.writes.append((len(self.file.changes), offset, data))
        self.disk.write(offset, data)
        self.content[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        self.writes.append((len(self.file.changes), offset, bytes(length)))
        self.disk.zero(offset, length)
        self.content[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        self.disk.flush()
        self.flushed.append((len(self.file.changes), bytes(self.content)))

    def flush_beside(self, changes: Callable[[], None]) -> int:
        """A flush with `changes` during each of its syncs that lets others write: as soon as the
        sync no longer covers them. Returns how many times."""
        began, before = len(self.file.changes), bytes(self.content)
        writer, plain, times = self.disk._writer, self.file.sync, 0
        assert writer is not None

        def sync() -> None:
            nonlocal times
            plain()
            if not writer.lock._is_owned():
                times += 1
                changes()

        self.file.sync = sync  # type: ignore[method-assign]
        try:
            self.disk.flush()
        finally:
            del self.file.sync
        self.flushed.append((len(self.file.changes), before))
        self.beside[len(self.file.changes)] = began
        return times

    def close(self) -> None:
        self.disk.close()
        self.flushed.append((len(self.file.changes), bytes(self.content)))

    def allowed(self, moment: int) -> tuple[bytes, list[tuple[int, bytes]]]:
        """What was flushed before a moment, and the writes since that flush began."""
        until, stable = max(
            (entry for entry in self.flushed if entry[0] <= moment), default=(0, b"")
        )
        assert stable
        since = self.beside.get(until, until)
        return stable, [(o, d) for at, o, d in self.writes if since <= at < moment]


def _session(has_parent: bool, *, sparse: bool = True) -> Session:
    parent = MemoryDisk(SIZE, logical_sector_size=SECTOR) if has_parent else None
    if parent is not None:
        parent.write(0, random_bytes(SIZE, 1))
    file = MemoryFile()
    if parent is None:
        vhdx.create(file, SIZE, block_size=MiB, sparse=sparse).close()
    else:
        _make_child(file, sparse)
    held = bytearray(content(parent)) if parent is not None else bytearray(SIZE)
    start = file.copy()
    with vhdx.open_vhdx(start, writable=True, parent=parent, sparse=sparse) as earlier:
        for offset, length in ((0, MiB), (MiB + 3 * SECTOR, 64 * KiB)):
            held[offset : offset + length] = random_bytes(length, offset)
            earlier.write(offset, held[offset : offset + length])
    start = start.copy()
    working = start.copy()
    disk = vhdx.open_vhdx(working, writable=True, parent=parent, sparse=sparse)
    session = Session(working, disk, parent, held, start, disk.data_write_guid)
    session.flushed.append((0, bytes(held)))
    return session


def _make_child(file: MemoryFile, sparse: bool) -> None:
    """An empty differencing file; its parent is handed in at every open."""
    from standby.disk.vhdx.creating import make_file
    from standby.disk.vhdx.geometry import Geometry
    from standby.disk.vhdx.housekeeping import locator_values

    make_file(
        file,
        Geometry(SIZE, MiB, SECTOR, has_parent=True),
        physical_sector_size=4096,
        page83=bytes(16),
        fixed=False,
        sparse=sparse,
        locator=locator_values("11111111-2222-3333-4444-555555555555", ".\\parent.vhdx"),
    )


def _workload(session: Session, seed: int) -> None:
    """Writes and zeros of many shapes, flushes in between, a clean close at the end."""
    choice = random.Random(seed)
    sectors = SIZE // SECTOR
    for step in range(20):
        length = min(choice.choice([1, 2, 7, 9, 100, 2048, 2050]), sectors)
        first = choice.randrange(sectors - length + 1)
        if choice.random() < 0.3:
            first = first // 2048 * 2048  # from a block's start
            length = min(length, sectors - first)
        offset, size = first * SECTOR, length * SECTOR
        action = choice.random()
        if action < 0.6:
            session.write(offset, random_bytes(size, seed * 1000 + step))
        elif action < 0.75:
            session.zero(offset, size)
        else:
            session.flush()
    for block in (0, 1):  # space that is given up and wanted again at once
        session.zero(block * MiB, MiB)
        session.write((2 - block) * MiB, random_bytes(MiB, seed * 1000 + 100 + block))
    session.flush()
    session.zero(2 * MiB, MiB)
    session.write(SECTOR, random_bytes(SECTOR, seed))
    if seed % 2:
        session.flush()
    session.close()


def _moments(session: Session, step: int) -> list[int]:
    """Moments to look at: all of a session's beginning and end, else one of `step`."""
    last = len(session.file.changes)
    edges = {*range(12), *range(last - 16, last + 1)}
    return sorted(edges | set(range(0, last + 1, 1 if FULL else step)))


def _assert_consistent(session: Session, left: MemoryFile, moment: int) -> None:
    reader = left.copy(writable=False)
    with vhdx.open_vhdx(reader, parent=session.parent) as disk:
        found, guid = content(disk), disk.data_write_guid
        report = check_image(disk.image)
    assert report.is_ok, report.findings
    _assert_old_or_new(session, found, moment)
    if found != session.flushed[0][1]:
        assert guid != session.start_guid, "children would not notice the change"
    with vhdx.open_vhdx(left.copy(), writable=True, parent=session.parent) as disk:
        assert content(disk) == found, "replay and overlay differ"


def _assert_old_or_new(session: Session, found: bytes, moment: int) -> None:
    stable, writes = session.allowed(moment)
    shape = (-1, SECTOR)
    got = np.frombuffer(found, np.uint8).reshape(shape)
    good = (got == np.frombuffer(stable, np.uint8).reshape(shape)).all(axis=1)
    for offset, data in writes:
        first, last = offset // SECTOR, (offset + len(data)) // SECTOR
        good[first:last] |= (got[first:last] == np.frombuffer(data, np.uint8).reshape(shape)).all(
            axis=1
        )
    assert good.all(), f"sectors of neither value: {np.flatnonzero(~good)[:10]}"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("has_parent", [False, True], ids=["dynamic", "child"])
def test_a_crash_at_any_change_loses_nothing_flushed(has_parent: bool, mode: str) -> None:
    for seed in range(1, 20 if FULL else 2):
        session = _session(has_parent)
        _workload(session, seed)
        points = CrashPoints(session.start, session.file.changes)
        for moment in _moments(session, 3):
            is_last = moment > len(session.file.changes) - 6
            for more in range(4 if is_last and mode not in ("all", "none") else 1):
                left = points.at(moment, mode, (seed + more) * 7919 + moment)
                _assert_consistent(session, left, moment)


@pytest.mark.parametrize("mode", ["some", "pages"])
@pytest.mark.parametrize("has_parent", [False, True], ids=["dynamic", "child"])
def test_a_crash_while_writing_goes_on_beside_a_flush_loses_nothing_flushed(
    has_parent: bool, mode: str
) -> None:
    """New blocks, bits in old and new bitmaps, blocks that become zero and space wanted again, all
    during the syncs: none of it may be half in what the flush makes durable."""
    session = _session(has_parent)
    choice = random.Random(11)

    def change() -> None:
        for _ in range(2):
            offset = choice.randrange(SIZE // SECTOR - 9) * SECTOR
            session.write(offset, random_bytes(9 * SECTOR, choice.randrange(1 << 30)))
        block = choice.randrange(3)
        session.zero(block * MiB, MiB)
        session.write(block * MiB + 5 * SECTOR, random_bytes(SECTOR, choice.randrange(1 << 30)))

    for _ in range(4):
        change()
        assert session.flush_beside(change) == 2
    session.flush()
    session.close()
    points = CrashPoints(session.start, session.file.changes)
    syncs = [at for at, made in enumerate(session.file.changes) if made.kind == "sync"]
    for moment in sorted({*_moments(session, 20), *syncs}):
        for more in range(3):
            left = points.at(moment, mode, more * 7919 + moment)
            _assert_consistent(session, left, moment)


@pytest.mark.parametrize("mode", ["some", "sectors"])
def test_a_crash_while_nothing_is_sparse_loses_nothing_flushed(mode: str) -> None:
    session = _session(True, sparse=False)
    _workload(session, 3)
    points = CrashPoints(session.start, session.file.changes)
    for moment in _moments(session, 7):
        _assert_consistent(session, points.at(moment, mode, moment), moment)


@pytest.mark.parametrize("mode", MODES)
def test_a_crash_during_replay_is_replayed_again(mode: str) -> None:
    session = _session(True)
    session.write(3 * SECTOR, random_bytes(MiB, 1))
    session.flush()
    session.write(MiB - SECTOR, random_bytes(2 * SECTOR, 2))
    session.zero(2 * MiB, MiB)
    session.flush()
    crashed = CrashPoints(session.start, session.file.changes)
    dirty = crashed.at(len(session.file.changes), "none", 0)
    replayed = dirty.copy()
    vhdx.open_vhdx(replayed, writable=True, parent=session.parent).close()
    again = CrashPoints(dirty, replayed.changes)
    for moment in range(len(replayed.changes) + 1):
        left = again.at(moment, mode, moment)
        with vhdx.open_vhdx(left.copy(writable=False), parent=session.parent) as disk:
            assert content(disk) == bytes(session.content)
            assert check_image(disk.image).is_ok


@pytest.mark.parametrize("mode", MODES)
def test_a_crash_while_the_locator_changes_shows_the_old_or_the_new_one(mode: str) -> None:
    session = _session(True)
    old = session.disk.info.locator
    session.disk.set_parent_locator(
        "aaaaaaaa-0000-0000-0000-000000000001",
        ".\\" + "x" * 3000 + ".vhdx",
        "/srv/replicas/base.vhdx",
        "bbbbbbbb-0000-0000-0000-000000000002",
    )
    new = session.disk.info.locator
    session.close()
    points = CrashPoints(session.start, session.file.changes)
    seen = set()
    for moment in range(len(session.file.changes) + 1):
        left = points.at(moment, mode, moment)
        with vhdx.open_vhdx(left.copy(writable=False)) as disk:
            assert disk.info.locator in (old, new)
            seen.add(disk.info.locator == new)
    assert seen == {False, True}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("has_parent", [False, True], ids=["dynamic", "child"])
def test_a_crash_while_growing_shows_the_old_or_the_new_size(has_parent: bool, mode: str) -> None:
    session = _session(has_parent)
    session.write(SIZE - 4 * SECTOR, random_bytes(4 * SECTOR, 5))
    session.flush()
    if session.parent is not None:
        longer = MemoryDisk(9 * MiB)
        longer.write(0, bytes(content(session.parent)))
        longer.write(6 * MiB, random_bytes(MiB, 6))
        session.parent = session.disk._parent = longer
    new_size = 132 * 1024 * MiB  # a larger table than the first one's 1 MiB
    session.disk.grow(new_size)
    session.close()
    points = CrashPoints(session.start, session.file.changes)
    first = session.flushed[1][0]
    sizes = set()
    for moment in range(first, len(session.file.changes) + 1, 1 if FULL else 3):
        left = points.at(moment, mode, moment)
        with vhdx.open_vhdx(left.copy(writable=False), parent=session.parent) as disk:
            sizes.add(disk.virtual_size)
            assert disk.virtual_size in (SIZE, new_size)
            buffer = bytearray(SIZE)
            disk.read_into(0, buffer)
            assert buffer == session.content
            if disk.virtual_size == new_size:
                more = bytearray(5 * MiB)
                disk.read_into(SIZE, more)
                assert more.count(0) == len(more)
            assert check_image(disk.image).is_ok
    assert sizes == {SIZE, new_size}


def test_a_crash_while_a_file_is_made_leaves_no_wrong_vhdx() -> None:
    file = MemoryFile()
    vhdx.create(file, SIZE).close()
    points = CrashPoints(MemoryFile(), file.changes)
    for moment in range(len(file.changes)):
        for mode in MODES:
            left = points.at(moment, mode, moment).copy(writable=False)
            try:
                disk = vhdx.open_vhdx(left)
            except DiskError:
                continue
            assert content(disk) == bytes(SIZE)


# --- full and failing file systems -------------------------------------------------------------


def _held(file: MemoryFile, parent: MemoryDisk | None) -> bytes:
    with vhdx.open_vhdx(file.copy(writable=False), parent=parent) as disk:
        assert check_image(disk.image).is_ok
        return content(disk)


@pytest.mark.parametrize("has_parent", [False, True], ids=["dynamic", "child"])
def test_a_full_file_system_keeps_what_was_flushed(has_parent: bool) -> None:
    for room in range(0, 510, 10 if FULL else 65):
        session = _session(has_parent)
        session.write(0, random_bytes(64 * KiB, 1))
        session.flush()
        session.file.room = session.file.allocated + room * 4 * KiB
        data = random_bytes(2 * MiB, 2)
        with pytest.raises(DiskFull):
            session.write(MiB - 8 * KiB, data) or session.flush()
        stable = session.flushed[-1][1]
        if session.content == stable:  # the write itself failed: the file says nothing of it
            assert _held(session.file, session.parent)[: MiB - 8 * KiB] == stable[: MiB - 8 * KiB]
        session.file.room = None
        session.write(MiB - 8 * KiB, data)
        session.close()
        assert _held(session.file, session.parent) == bytes(session.content)


def test_a_refused_write_gives_its_space_back() -> None:
    session = _session(False)
    session.write(0, bytes(SECTOR))
    session.flush()
    size = session.file.size
    session.file.room = session.file.allocated + 64 * KiB
    with pytest.raises(DiskFull):
        session.write(MiB, random_bytes(MiB, 3))
    assert session.file.size == size


def _failing_at(number: int, kind: str) -> Callable[[str, int], None]:
    count = 0

    def fail(operation: str, offset: int) -> None:
        nonlocal count
        count += operation == kind
        if operation == kind and count == number:
            raise DiskIO("memory.vhdx", operation, offset, 0, "simulated failure")

    return fail


def _failures() -> Iterator[tuple[str, int]]:
    for kind, times in (("write", 40), ("sync", 14), ("resize", 4)):
        for number in range(1, times, 1 if FULL else 3):
            yield kind, number


@pytest.mark.parametrize("has_parent", [False, True], ids=["dynamic", "child"])
def test_a_failing_device_is_reported_and_loses_nothing_flushed(has_parent: bool) -> None:
    failures = 0
    for kind, number in _failures():
        session = _session(has_parent)
        session.file.fail = _failing_at(number, kind)
        try:
            _workload(session, 4)
        except DiskIO:
            failures += 1
        session.file.fail = None
        with suppress(DiskIO):
            session.disk.close()
        # what the page cache holds is not what the device holds: only synced changes count
        moment = len(session.file.changes)
        points = CrashPoints(session.start, session.file.changes)
        for mode in ("all", "none", "some"):
            _assert_consistent(session, points.at(moment, mode, number), moment + 1)
    assert failures > 10


def test_after_a_failed_sync_nothing_more_is_written() -> None:
    session = _session(False)
    session.write(0, random_bytes(SECTOR, 1))
    session.file.fail = _failing_at(1, "sync")
    with pytest.raises(DiskIO, match="simulated"):
        session.flush()
    session.file.fail = None
    issued = len(session.file.changes)
    with pytest.raises(DiskIO, match="earlier change failed"):
        session.write(0, random_bytes(SECTOR, 2))
    session.disk.close()
    assert len(session.file.changes) == issued


def test_a_failing_read_is_an_error_and_never_zeros() -> None:
    session = _session(False)
    session.write(0, random_bytes(64 * KiB, 1))
    session.file.fail = _failing_at(1, "read")
    with pytest.raises(DiskIO, match="simulated"):
        session.disk.read_into(0, bytearray(SECTOR))
