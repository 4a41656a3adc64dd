"""The host in memory: its disks, and a tracker that fails as it is told to."""

from __future__ import annotations

import numpy as np
import pytest

from standby.errors import DiskRange, MachineRunning, SourceChanged, UnknownName
from standby.host.memory import MemoryDisk, MemoryHost, TrackerFault
from standby.model.extent import Extent, Kind
from standby.model.machine import Machine, PowerState
from standby.units import KiB, MiB

PLACE = "scsi:0:0"


def host_with_machine(**options: bool) -> tuple[MemoryHost, Machine]:
    host = MemoryHost(**options)
    return host, host.add_machine("web01", {PLACE: 4 * MiB})


def test_a_disk_equals_plain_bytes_after_random_writes() -> None:
    rng = np.random.default_rng(7)
    disk = MemoryDisk("d", 1 * MiB)
    plain = bytearray(1 * MiB)
    for _ in range(200):
        length = int(rng.integers(1, 400)) * 512
        offset = int(rng.integers(0, (1 * MiB - length) // 512 + 1)) * 512
        if rng.random() < 0.3:
            disk.zero(offset, length)
            plain[offset : offset + length] = bytes(length)
        else:
            data = rng.bytes(length)
            disk.write(offset, data)
            plain[offset : offset + length] = data
    content = bytearray(1 * MiB)
    disk.read_into(0, content)
    assert content == plain
    position = 0
    for extent in disk.extents():
        assert extent.offset == position
        position = extent.stop
        if extent.kind is Kind.HOLE:
            assert not any(plain[extent.offset : extent.stop])
    assert position == 1 * MiB


def test_a_zeroed_page_is_a_hole_again() -> None:
    disk = MemoryDisk("d", 1 * MiB)
    disk.write(0, b"x" * (192 * KiB))
    disk.zero(64 * KiB, 64 * KiB)
    assert list(disk.extents()) == [
        Extent(0, 64 * KiB, Kind.DATA),
        Extent(64 * KiB, 64 * KiB, Kind.HOLE),
        Extent(128 * KiB, 64 * KiB, Kind.DATA),
        Extent(192 * KiB, 832 * KiB, Kind.HOLE),
    ]


@pytest.mark.parametrize(("offset", "length"), [(-512, 512), (0, 100), (7, 512), (1 * MiB, 512)])
def test_a_disk_refuses_what_lies_outside_or_is_no_whole_sector(offset: int, length: int) -> None:
    disk = MemoryDisk("d", 1 * MiB)
    with pytest.raises(DiskRange):
        disk.read_into(offset, bytearray(length))
    with pytest.raises(DiskRange):
        disk.write(offset, bytes(length))


def test_a_frozen_copy_does_not_follow_and_cannot_be_written() -> None:
    disk = MemoryDisk("d", 1 * MiB)
    disk.write(0, b"a" * 512)
    frozen = disk.frozen()
    disk.write(0, b"b" * 512)
    data = bytearray(512)
    frozen.read_into(0, data)
    assert data == b"a" * 512
    with pytest.raises(DiskRange):
        frozen.write(0, b"c" * 512)


def test_the_tracker_names_exactly_what_was_written_between_two_checkpoints() -> None:
    host, machine = host_with_machine()
    disk = host.disk(machine, PLACE)
    disk.write(0, b"before" + bytes(506))
    ids = host.release_checkpoint(host.take_checkpoint(machine, "1"))
    disk.write(8192, bytes(4096))
    disk.write(4096, bytes(4096))
    disk.write(1 * MiB, bytes(512))
    checkpoint = host.take_checkpoint(machine, "2")
    disk.write(2 * MiB, b"after" + bytes(507))
    answer = host.changes_since(machine, PLACE, ids[PLACE], checkpoint)
    assert answer.ranges == [Extent(4096, 8192), Extent(1 * MiB, 512)]
    assert answer.reason == ""


def test_an_old_tracker_id_still_counts_until_it_is_forgotten() -> None:
    host, machine = host_with_machine()
    disk = host.disk(machine, PLACE)
    first = host.release_checkpoint(host.take_checkpoint(machine, "1"))
    disk.write(0, bytes(512))
    host.release_checkpoint(host.take_checkpoint(machine, "2"))
    disk.write(4096, bytes(512))
    checkpoint = host.take_checkpoint(machine, "3")
    answer = host.changes_since(machine, PLACE, first[PLACE], checkpoint)
    assert answer.ranges == [Extent(0, 512), Extent(4096, 512)]
    host.forget_tracker(machine, [first[PLACE]])
    assert host.changes_since(machine, PLACE, first[PLACE], checkpoint).ranges is None


def test_an_unsure_tracker_names_more_never_less() -> None:
    host, machine = host_with_machine()
    ids = host.release_checkpoint(host.take_checkpoint(machine, "1"))
    host.disk(machine, PLACE).write(1 * MiB + 512, bytes(512))
    host.disk(machine, PLACE).write(4 * MiB - 512, bytes(512))
    host.set_fault(machine, PLACE, TrackerFault.UNSURE)
    answer = host.changes_since(machine, PLACE, ids[PLACE], host.take_checkpoint(machine, "2"))
    assert answer.ranges == [Extent(1 * MiB, 1 * MiB), Extent(3 * MiB, 1 * MiB)]


def test_a_tracker_with_another_base_gives_no_ranges_until_it_behaves_again() -> None:
    host, machine = host_with_machine()
    ids = host.release_checkpoint(host.take_checkpoint(machine, "1"))
    checkpoint = host.take_checkpoint(machine, "2")
    host.set_fault(machine, PLACE, TrackerFault.WRONG_BASE)
    answer = host.changes_since(machine, PLACE, ids[PLACE], checkpoint)
    assert answer.ranges is None
    assert ids[PLACE] in answer.reason
    host.set_fault(machine, PLACE, None)
    assert host.changes_since(machine, PLACE, ids[PLACE], checkpoint).ranges == []


def test_a_lost_tracker_forgets_old_ids_and_counts_from_new_ones() -> None:
    host, machine = host_with_machine()
    old = host.release_checkpoint(host.take_checkpoint(machine, "1"))
    host.set_fault(machine, PLACE, TrackerFault.LOST)
    checkpoint = host.take_checkpoint(machine, "2")
    assert host.changes_since(machine, PLACE, old[PLACE], checkpoint).ranges is None
    new = host.release_checkpoint(checkpoint)
    host.disk(machine, PLACE).write(0, bytes(512))
    answer = host.changes_since(machine, PLACE, new[PLACE], host.take_checkpoint(machine, "3"))
    assert answer.ranges == [Extent(0, 512)]


def test_without_a_tracker_there_are_no_ids_and_a_reason() -> None:
    host, machine = host_with_machine(has_tracker=False)
    checkpoint = host.take_checkpoint(machine, "1")
    answer = host.changes_since(machine, PLACE, "any", checkpoint)
    assert answer.ranges is None
    assert "no change tracker" in answer.reason
    assert host.release_checkpoint(checkpoint) == {}


def test_a_running_machine_is_crash_consistent_or_refused() -> None:
    host, machine = host_with_machine()
    host.set_power(machine, PowerState.RUNNING)
    assert host.power_state(machine) is PowerState.RUNNING
    assert host.take_checkpoint(machine, "1").consistency == "crash"
    strict, machine = host_with_machine(checkpoints_running=False)
    strict.set_power(machine, PowerState.PAUSED)
    with pytest.raises(MachineRunning, match="paused"):
        strict.take_checkpoint(machine, "1")


def test_leftovers_of_a_dead_process_are_released_once() -> None:
    host, machine = host_with_machine()
    checkpoint = host.take_checkpoint(machine, "1")
    released = host.take_checkpoint(machine, "2")
    host.release_checkpoint(released)
    host.crash()
    assert host.release_leftovers() == ["web01"]
    assert host.release_leftovers() == []
    with pytest.raises(SourceChanged):
        host.confirm_checkpoint(checkpoint)


def test_a_disturbed_or_released_checkpoint_is_not_confirmed() -> None:
    host, machine = host_with_machine()
    disturbed = host.take_checkpoint(machine, "1")
    host.disturb(disturbed)
    with pytest.raises(SourceChanged):
        host.confirm_checkpoint(disturbed)
    released = host.take_checkpoint(machine, "2")
    host.release_checkpoint(released)
    with pytest.raises(SourceChanged):
        host.confirm_checkpoint(released)
    with pytest.raises(UnknownName):
        host.open_checkpoint(released, PLACE)
