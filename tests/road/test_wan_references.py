"""Mode full of a pair of WAN accelerators: what the target's newest restore point holds is referred
to, whatever becomes of that point, of the accelerator's memory, and of sessions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from road.accelerating import Pair, WanSession, errors
from road.driving import Session, content, write
from standby.disk import open_disk
from standby.disk.vhdx import VhdxDisk
from standby.errors import DiskIO
from standby.road import wan_newest, wan_verbs
from standby.road.wan_newest import NewestPoint
from standby.units import KiB, MiB

FIRST = 4 * KiB
LENGTH = 6 * MiB


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Without a cache, so that there is nothing else to refer to."""
    made = Pair(tmp_path, None, mode="full", reads_replicas=True)
    yield made
    made.close()


def run(pair: Pair, name: str = "vm1", **given: Any) -> WanSession:
    """A whole session; the replica is the source."""
    session = pair.session(name)
    session.results(session.begin_all(**given))
    session.end_all()
    must_be_equal(pair, name)
    return session


def must_be_equal(pair: Pair, name: str = "vm1") -> None:
    assert pair.replica(name) == content(pair.folder / "src" / name / name / "disk0.vhdx")


@contextlib.contextmanager
def opened(disk: Path) -> Iterator[VhdxDisk]:
    held = open_disk(disk, writable=True)
    assert isinstance(held, VhdxDisk)
    with contextlib.closing(held):
        yield held


def edit(disk: Path, seed: int = 1) -> int:
    """Change some bytes in each 16th piece; how many bytes of pieces changed."""
    random = np.random.default_rng(seed)
    places = range(FIRST, FIRST + LENGTH, 64 * KiB)
    with opened(disk) as held:
        for place in places:
            held.write(place + 512 * int(random.integers(0, 8)), random.bytes(512)[:512])
    return len(places) * 4 * KiB


def move(disk: Path, distance: int = 777) -> None:
    """1 MiB of what is there once more, behind the rest, by an odd distance."""
    data = bytearray(MiB)
    with opened(disk) as held:
        held.read_into(FIRST, data)
        held.write(16 * MiB, (bytes(distance) + data)[:MiB])


def first(pair: Pair) -> Path:
    """A VM of noise with its first point; its disk."""
    disk = pair.machine("vm1")
    write(disk, FIRST, LENGTH)
    session = run(pair)
    assert session.wan_sent["mode"] == "full"
    assert set(session.wan_sent["pieces"]) <= {"raw", "zero"}
    return disk


def test_small_edits_and_moved_content_cost_what_is_new(pair):
    disk = first(pair)
    changed = edit(disk)
    session = run(pair)
    assert session.sent["changed"] == changed
    assert set(session.wan_sent["pieces"]) == {"delta"}
    # 96 edits of half a KiB.
    assert session.wan_sent["sent"] < 64 * KiB
    move(disk)
    session = run(pair)
    assert set(session.wan_sent["pieces"]) == {"delta"}
    assert session.wan_sent["sent"] < 64 * KiB
    assert session.wan_sent["resent"] == 0


def test_moved_content_needs_no_store(tmp_path):
    pair = Pair(tmp_path, None, mode="full", reads_replicas=True, store_bytes=0)
    try:
        disk = first(pair)
        move(disk)
        session = run(pair)
        assert session.wan_sent["pieces"]["parts"] > 200
        assert session.wan_sent["resent"] == 0
        assert session.wan_sent["sent"] < 128 * KiB
    finally:
        pair.close()


def test_a_copy_within_the_disk_is_one_reference(pair):
    disk = first(pair)
    move(disk, 0)
    session = run(pair)
    assert set(session.wan_sent["pieces"]) == {"copy"}
    assert session.wan_sent["sent"] < 2 * KiB


def test_points_one_after_another_are_each_referred_to(pair):
    disk = first(pair)
    for seed in range(4):
        edit(disk, seed)
        session = run(pair)
        assert set(session.wan_sent["pieces"]) == {"delta"}
        assert session.wan_sent["resent"] == 0


def test_a_target_that_cannot_read_the_replica_is_sent_everything(tmp_path):
    pair = Pair(tmp_path, None, mode="full")
    try:
        disk = first(pair)
        changed = edit(disk)
        session = run(pair)
        assert set(session.wan_sent["pieces"]) == {"raw"}
        assert session.wan_sent["sent"] > changed
        assert pair.memory.held_bytes == 0
    finally:
        pair.close()


# --- the memory at the source ----------------------------------------------------------------


def test_a_memory_that_is_lost_costs_bytes_only(pair):
    disk = first(pair)
    pair.restart_near()
    edit(disk)
    # What the target's marks find; nothing by the memory.
    assert set(run(pair).wan_sent["pieces"]) == {"parts"}
    edit(disk)  # as before: of what the new memory has seen since
    session = run(pair)
    assert session.wan_sent["resent"] == 0


@pytest.mark.parametrize("store_bytes", [0, 64 * KiB, 3 * MiB])
def test_a_store_holds_what_it_may(tmp_path, store_bytes):
    pair = Pair(tmp_path, None, mode="full", reads_replicas=True, store_bytes=store_bytes)
    try:
        disk = first(pair)
        edit(disk)
        session = run(pair)
        assert pair.memory.held_bytes <= store_bytes
        assert session.wan_sent["resent"] == 0
        assert ("delta" in session.wan_sent["pieces"]) == (store_bytes > 0)
    finally:
        pair.close()


def test_a_store_with_flipped_bits_is_as_good_as_it_is(pair):
    disk = first(pair)
    pair.memory._store._content[:, 100] ^= 1
    edit(disk)
    session = run(pair)
    assert set(session.wan_sent["pieces"]) == {"delta"}
    assert session.wan_sent["resent"] == 0  # what differs from the store is sent


def test_a_store_whose_pieces_are_others_costs_each_unit_once(pair):
    disk = first(pair)
    store = pair.memory._store
    store._content[:] = np.roll(store._content, 1, axis=0)
    changed = edit(disk)
    session = run(pair)
    assert 0 < session.wan_sent["resent"] <= 24
    assert session.wan_sent["sent"] < 2 * changed
    edit(disk, 2)
    assert run(pair).wan_sent["resent"] == 0  # what is wrong was forgotten


# --- the point at the target -----------------------------------------------------------------


class Spoilt:
    """The newest point's disk as it is not."""

    def __init__(self, disk: VhdxDisk, spoil: Callable[[memoryview], None]) -> None:
        self._disk = disk
        self._spoil = spoil
        self.virtual_size = disk.virtual_size
        self.close = disk.close

    def read_into(self, offset: int, buffer: Any) -> None:
        self._disk.read_into(offset, buffer)
        self._spoil(memoryview(buffer))


def flip(buffer: memoryview) -> None:
    buffer[len(buffer) // 2] ^= 0x10


def fail(buffer: memoryview) -> None:
    raise DiskIO("base.vhdx", "read", 0, len(buffer), "it is gone")


@pytest.mark.parametrize("spoil", [flip, fail], ids=["other content", "gone"])
def test_a_point_that_is_replaced_meanwhile_costs_bytes_only(pair, monkeypatch, spoil):
    disk = first(pair)
    right = wan_newest._opened

    def spoilt(*given: Any) -> NewestPoint:
        found = right(*given)
        assert found.disk is not None
        return NewestPoint(found.session, Spoilt(found.disk, spoil))  # type: ignore[arg-type]

    changed = edit(disk)
    move(disk)
    monkeypatch.setattr(wan_newest, "_opened", spoilt)
    session = run(pair)
    assert session.wan_sent["resent"] > 0
    assert session.wan_sent["sent"] < 3 * (changed + MiB)
    monkeypatch.undo()
    edit(disk, 2)
    assert run(pair).wan_sent["resent"] == 0


def test_a_point_made_another_way_is_not_taken_for_ours(pair):
    disk = first(pair)
    edit(disk)
    directly = Session(pair.source, pair.target, source_root="data:vm1")
    directly.run()
    directly.close()
    edit(disk, 2)
    session = run(pair)
    assert session.wan_sent["resent"] == 0
    assert set(session.wan_sent["pieces"]) == {"parts"}  # by marks of the target's own point
    edit(disk, 3)
    assert run(pair).wan_sent["resent"] == 0


def test_a_session_that_is_not_committed_does_not_count(pair):
    disk = first(pair)
    edit(disk)
    session = pair.session("vm1")
    session.results(session.begin_all())
    session.release()
    session.target.call("close_replica", path=session.path)
    edit(disk, 2)
    assert run(pair, baseline="target").wan_sent["resent"] == 0
    edit(disk, 3)
    assert run(pair, baseline="target").wan_sent["resent"] == 0


def test_a_link_that_is_cut_leaves_nothing_wrong(pair):
    disk = first(pair)
    edit(disk)
    write(disk, 12 * MiB, 2 * MiB, 9)
    session = pair.session("vm1")
    pair.cutter.after = MiB
    for machine in (pair.far, pair.target):
        machine.mover.connections._accept_timeout_s = 1
    assert all(errors(session.begin_all()))
    pair.cutter.after = 1 << 62
    begun = session.begin()
    session.results(session.transfer(mark=begun["mark"], baseline="target"))
    session.end_all()
    must_be_equal(pair)
    edit(disk, 3)
    assert run(pair).wan_sent["resent"] == 0


def test_another_replica_in_the_folder_is_not_read(pair, monkeypatch):
    first(pair)
    right = wan_newest.newest_point
    found: list[NewestPoint] = []

    @contextlib.contextmanager
    def elsewhere(places: Any, path: str, replica: str, *more: Any) -> Iterator[NewestPoint]:
        with right(places, path, f"{replica}2", *more) as point:
            found.append(point)
            yield point

    monkeypatch.setattr(wan_verbs, "newest_point", elsewhere)
    run(pair)
    assert found == [wan_newest.NO_POINT]


@pytest.mark.parametrize("path", ["data:nowhere", "data:../src", "other:vm1_replica", "/etc"])
def test_places_that_are_none_are_no_point(pair, path):
    places = pair.far.mover._places
    with wan_newest.newest_point(places, path, "replica", "disk", MiB) as point:
        assert point == wan_newest.NO_POINT
