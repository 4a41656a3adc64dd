"""The model of hosts: checkpoints and merges of real files, change tracking, jobs, faults."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from clocks import HeldClock
from hyperv.world import DiskSpec, Fault, Machine, SharingViolation, World
from hyperv.world import snapshots as making
from hyperv.world.errors import NodeDown, WorkFailed
from standby.units import KiB, MiB

SIZE = 8 * MiB


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(HeldClock(), tmp_path)
    made.add_cluster("prod", ["hv1", "hv2"])
    return made


@pytest.fixture
def vm(world: World) -> Machine:
    return world.add_machine("web", "hv1", [SIZE, SIZE])


class Twin:
    """What the guest's disks hold, in plain bytes, and where it wrote."""

    def __init__(self, world: World, machine: Machine, seed: int = 5) -> None:
        self.world = world
        self.machine = machine
        self.random = random.Random(seed)
        self.disks = [bytearray(SIZE) for _ in machine.disks()]

    def write(self, count: int = 8) -> list[list[tuple[int, int]]]:
        """Random writes; where, per disk."""
        where: list[list[tuple[int, int]]] = [[] for _ in self.disks]
        for _ in range(count):
            disk = self.random.randrange(len(self.disks))
            length = 512 * self.random.randint(1, 256)
            offset = 512 * self.random.randint(0, (SIZE - length) // 512)
            data = self.random.randbytes(length)
            self.world.write(self.machine, offset, data, disk)
            self.disks[disk][offset : offset + length] = data
            where[disk].append((offset, length))
        return where

    def now(self) -> list[bytes]:
        return [bytes(disk) for disk in self.disks]

    def check(self) -> None:
        """The leaves show what the guest wrote."""
        for drive, disk in zip(self.machine.disks(), self.disks, strict=True):
            assert drive.path is not None
            assert self.world.content(drive.path) == disk


def covers(ranges: list[tuple[int, int]], written: list[tuple[int, int]]) -> bool:
    return all(
        any(start <= at and at + length <= start + count for start, count in ranges)
        for at, length in written
    )


def later(world: World, seconds: float) -> None:
    world.clock.sleep(seconds)
    world.settle()


def frozen(world: World, checkpoint: Any) -> list[bytes]:
    return [world.content(path) for _, path in sorted(checkpoint.disks.items())]


def test_a_snapshot_keeps_its_bytes_while_the_guest_writes_on(world: World, vm: Machine) -> None:
    twin = Twin(world, vm)
    twin.write()
    before = twin.now()
    snapshot = world.recovery_snapshot(vm)
    twin.write()
    assert frozen(world, snapshot) == before
    assert [world.depth(vm, disk) for disk in (0, 1)] == [2, 2]
    twin.check()


def test_a_converted_snapshot_is_merged_and_tells_what_was_written_since(
    world: World, vm: Machine
) -> None:
    twin = Twin(world, vm)
    twin.write()
    first = world.recovery_snapshot(vm)
    files = dict(first.disks)
    written = twin.write(4)
    point = making.convert(world, first)
    assert [world.depth(vm, disk) for disk in (0, 1)] == [2, 2]
    later(world, 10)
    assert [world.depth(vm, disk) for disk in (0, 1)] == [1, 1]
    twin.check()
    more = twin.write(4)
    second = world.recovery_snapshot(vm)
    assert dict(second.disks) == files
    twin.write(3)
    ids = dict(point.disks)
    for number, drive in enumerate(vm.disks()):
        since = ids[f"Microsoft:{vm.id}\\{drive.element_id()}\\L"]
        found, until = making.tracked(world, "hv1", second.disks[drive.place], since)
        assert found is drive
        ranges = drive.tracker.changes(since, until, 0, SIZE).ranges
        assert covers(ranges, written[number] + more[number])
        exact = drive.tracker.written(since, until)
        expected = bytearray(SIZE)
        for offset, length in written[number] + more[number]:
            expected[offset : offset + length] = b"x" * length
        marked = bytearray(SIZE)
        for offset, length in exact:
            marked[offset : offset + length] = b"x" * length
        assert marked == expected


def test_answers_come_in_pieces_that_join_to_the_whole(world: World, vm: Machine) -> None:
    twin = Twin(world, vm)
    point = making.convert(world, world.recovery_snapshot(vm))
    later(world, 10)
    twin.write(20)
    second = world.recovery_snapshot(vm)
    drive = vm.disks()[0]
    since = drive.tracker.marks and dict(point.disks)[f"Microsoft:{vm.id}\\{drive.element_id()}\\L"]
    assert since
    until = second.marks[drive.place]
    whole = drive.tracker.changes(since, until, 0, SIZE)
    drive.tracker.answers_at_most = 3 * MiB
    pieces, at = [], 0
    while at < SIZE:
        answer = drive.tracker.changes(since, until, at, SIZE - at)
        pieces += answer.ranges
        at += answer.processed
    assert covers(pieces, [])
    assert sum(n for _, n in pieces) == sum(n for _, n in whole.ranges)


def test_a_tracker_over_reports_and_lies_when_told(world: World, vm: Machine) -> None:
    tracker = vm.disks()[0].tracker
    since = tracker.mark()
    world.write(vm, MiB, b"x" * 512)
    world.write(vm, 4 * MiB, b"x" * 512)
    tracker.more.append((6 * MiB, 4096))
    tracker.hidden.append((4 * MiB, 64 * KiB))
    assert tracker.changes(since, 2, 0, SIZE).ranges == [(MiB, 32 * KiB), (6 * MiB, 32 * KiB)]


def test_lost_tracking_answers_with_a_code(world: World, vm: Machine) -> None:
    point = making.convert(world, world.recovery_snapshot(vm))
    later(world, 10)
    snapshot = world.recovery_snapshot(vm)
    drive = vm.disks()[0]
    since = dict(point.disks)[f"Microsoft:{vm.id}\\{drive.element_id()}\\L"]
    path = snapshot.disks[drive.place]
    making.tracked(world, "hv1", path, since)

    def code(host: str = "hv1", file: Path = path, limit: str = since) -> int:
        with pytest.raises(making.NoChanges) as caught:
            making.tracked(world, host, file, limit)
        return caught.value.code

    assert code(limit="rctX:0:0") == 32768
    assert code(host="hv2") == 32774
    assert code(file=path.with_name("none.vhdx")) == 32779
    assert drive.path is not None
    assert code(file=drive.path) == 32774
    path.with_name(path.name + ".mrt").unlink()
    assert code() == 32768
    path.with_name(path.name + ".mrt").write_bytes(b"")
    making.destroy_point(point)
    assert code() == 32768


def test_a_destroyed_snapshot_leaves_no_id_and_is_merged(world: World, vm: Machine) -> None:
    twin = Twin(world, vm)
    snapshot = world.recovery_snapshot(vm)
    twin.write()
    making.destroy(world, snapshot)
    later(world, 10)
    assert not vm.checkpoints
    assert all(not drive.tracker.marks for drive in vm.disks())
    assert world.depth(vm) == 1
    twin.check()


def test_a_snapshot_above_a_checkpoint_of_the_user_freezes_its_leaf(
    world: World, vm: Machine
) -> None:
    twin = Twin(world, vm)
    twin.write()
    by_user = world.user_checkpoint(vm, "before the update")
    kept = frozen(world, by_user)
    twin.write()
    snapshot = world.recovery_snapshot(vm)
    assert all(path.suffix == ".avhdx" for path in snapshot.disks.values())
    assert world.depth(vm) == 3
    twin.write()
    making.convert(world, snapshot)
    later(world, 10)
    assert world.depth(vm) == 2
    assert frozen(world, by_user) == kept
    twin.check()


def test_a_checkpoint_below_a_snapshot_is_merged_under_it(world: World, vm: Machine) -> None:
    twin = Twin(world, vm)
    twin.write()
    by_user = world.user_checkpoint(vm, "old")
    twin.write()
    snapshot = world.recovery_snapshot(vm)
    seen = frozen(world, snapshot)
    twin.write()
    making.destroy(world, by_user)
    later(world, 10)
    assert world.depth(vm) == 2
    assert frozen(world, snapshot) == seen
    twin.check()


def test_going_back_to_a_checkpoint_changes_bytes_that_tracking_does_not_know(
    world: World, vm: Machine
) -> None:
    twin = Twin(world, vm)
    twin.write()
    checkpoint = world.user_checkpoint(vm, "old")
    old = twin.now()
    twin.write()
    tracker = vm.disks()[0].tracker
    since = tracker.mark()
    making.apply(world, checkpoint)
    assert vm.last_applied is checkpoint
    assert [world.content(d.path) for d in vm.disks() if d.path is not None] == old
    assert tracker.written(since) == []


def test_a_reader_that_shares_no_writing_stops_the_merge(world: World, vm: Machine) -> None:
    twin = Twin(world, vm)
    snapshot = world.recovery_snapshot(vm)
    path = snapshot.disks["scsi:0:0"]
    twin.write()
    reader = world.open_for_reading(path, shares=("read",))
    making.convert(world, snapshot)
    later(world, 10)
    assert [world.depth(vm, disk) for disk in (0, 1)] == [2, 1]
    reader.close()
    world.merge_left(vm)
    later(world, 10)
    assert world.depth(vm) == 1
    twin.check()


def test_a_reader_that_shares_everything_hinders_no_merge(world: World, vm: Machine) -> None:
    snapshot = world.recovery_snapshot(vm)
    with world.open_for_reading(snapshot.disks["scsi:0:0"]):
        making.destroy(world, snapshot)
        later(world, 10)
        assert world.depth(vm) == 1


def test_the_leaf_of_a_running_vm_is_no_ones_to_read(world: World, vm: Machine) -> None:
    leaf = vm.disks()[0].path
    assert leaf is not None
    with pytest.raises(SharingViolation):
        world.open_for_reading(leaf)
    world.turn_off(vm)
    world.open_for_reading(leaf).close()


def test_vss_that_fails_leaves_the_crash_consistent_way(world: World, vm: Machine) -> None:
    vm.faults.vss_fails = True
    with pytest.raises(WorkFailed) as caught:
        making.make_checkpoint(world, vm, "x", "Recovery", making.APPLICATION)
    assert caught.value.code == 32768
    assert world.depth(vm) == 1
    making.make_checkpoint(world, vm, "x", "Recovery", making.CRASH)
    assert world.depth(vm) == 2


def test_disks_that_no_snapshot_can_have_are_left_out_or_end_it(world: World) -> None:
    disks = [
        DiskSpec(SIZE),
        DiskSpec(kind="physical"),
        DiskSpec(SIZE, is_shared=True),
        DiskSpec(SIZE, kind="vhds"),
    ]
    vm = world.add_machine("db", "hv1", disks)
    snapshot = world.recovery_snapshot(vm)
    assert list(snapshot.disks) == ["scsi:0:0"]
    assert snapshot.left_out == ["scsi:0:1", "scsi:0:2", "scsi:0:3"]
    with pytest.raises(WorkFailed):
        making.make_checkpoint(world, vm, "x", "Recovery", 2, ignores_others=False)


def test_a_vm_of_an_old_version_has_no_recovery_snapshot(world: World) -> None:
    vm = world.add_machine("old", "hv1", [SIZE], version="5.0")
    with pytest.raises(WorkFailed) as caught:
        world.recovery_snapshot(vm)
    assert caught.value.code == 32770


def test_jobs_end_when_their_time_is_over(world: World, vm: Machine) -> None:
    done: list[int] = []
    job = world.start_job("hv1", 70, "x", lambda: done.append(1) or [], seconds=5, vm=vm)
    later(world, 4)
    assert (job.state, done, vm.activity) == (4, [], None)
    later(world, 1)
    assert (job.state, done) == (7, [1])
    later(world, 301)
    assert job.id not in world.jobs


@pytest.mark.parametrize(
    ("outcome", "works", "state", "is_done"),
    [
        ((10, 32774, "in use"), False, 10, False),
        ((10, 32768, "failed, but it was done"), True, 10, True),
        ((32768, 0, "with a warning"), False, 32768, True),
    ],
)
def test_jobs_fail_as_told(
    world: World, outcome: tuple[int, int, str], works: bool, state: int, is_done: bool
) -> None:
    done: list[int] = []
    fault = Fault("CreateSnapshot", job=outcome, works=works, seconds=2)
    job = world.start_job("hv1", 70, "x", lambda: done.append(1) or [], seconds=5, fault=fault)
    later(world, 2)
    assert (job.state, job.error_code, job.error_description) == outcome
    assert job.state == state
    assert bool(done) is is_done


def test_a_dead_node_answers_nothing_and_its_vms_start_elsewhere(world: World, vm: Machine) -> None:
    snapshot = world.recovery_snapshot(vm)
    world.start_job("hv1", 200, "x", lambda: [making.convert(world, snapshot)], seconds=5, vm=vm)
    world.kill("hv1")
    with pytest.raises(NodeDown):
        world.arrive("hv1", "Get-CimInstance", {})
    assert vm.host == "hv2"
    assert not world.jobs
    later(world, 10)
    assert vm.checkpoints == [snapshot]
    assert world.depth(vm) == 2


def test_a_node_may_die_when_its_job_is_just_done(world: World, vm: Machine) -> None:
    twin = Twin(world, vm)
    snapshot = world.recovery_snapshot(vm)
    twin.write()
    world.start_job("hv1", 200, "x", lambda: [making.convert(world, snapshot)], seconds=5, vm=vm)
    world.kill("hv1", jobs_are_done=True)
    assert not vm.checkpoints
    assert len(vm.points) == 1
    later(world, 10)
    assert world.depth(vm) == 1
    twin.check()


def test_paths_are_found_without_their_case_and_by_whole_components(
    world: World, vm: Machine
) -> None:
    storage = world.storage
    leaf = vm.disks()[0].path
    assert leaf is not None
    windows = storage.windows("hv1", leaf)
    assert windows == r"C:\ClusterStorage\Volume1\web\web-0.vhdx"
    assert storage.path("hv2", windows.upper()) == leaf
    assert storage.path("hv1", r"C:\ClusterStorage\Volume10\web\web-0.vhdx") is None
    assert storage.path("hv1", r"C:\ClusterStorage\Volume1\..\web-0.vhdx") is None
    assert storage.path("hv1", r"\\?\C:\ClusterStorage\Volume1\web") == vm.folder
