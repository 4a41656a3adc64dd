"""Change tracking that is lost or lies, what checkpoints cost, disks of all kinds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hyperv.installation import SimulatedHost
from hyperv.world import World
from hyperv.world.machines import Machine as WorldMachine
from hyperv.world.snapshots import apply
from hyperv.world.world import DiskSpec, Fault
from standby.host.hyperv.changes import TrackedRanges
from standby.host.hyperv.leftovers import LeafGrowth
from standby.host.hyperv.snapshots import Waits
from standby.host.hyperv.source import HyperVSource, SourceRules
from standby.host.hyperv.trust import parse_tracker
from standby.model.extent import Extent
from standby.model.machine import Checkpoint, Machine, PowerState
from standby.units import KiB, MiB

SIZE = 128 * MiB


@pytest.fixture
def web(world: World) -> WorldMachine:
    return world.add_machine("web", "hv1", [SIZE])


def machine_of(source: HyperVSource) -> Machine:
    (found,) = source.inventory().machines
    return found


def released(source: HyperVSource, checkpoint: Checkpoint) -> str:
    source.confirm_checkpoint(checkpoint)
    return source.release_checkpoint(checkpoint).get("scsi:0:0", "")


class Cycle:
    """A first cycle, and what the second one is told of changes."""

    def __init__(self, world: World, source: HyperVSource, web: WorldMachine) -> None:
        self.world, self.source = world, source
        self.machine = machine_of(source)
        self.tracker = released(source, source.take_checkpoint(self.machine, "i1"))
        world.clock.sleep(60)
        world.settle()
        world.write(web, MiB, b"x" * 4 * KiB)

    def second(self) -> TrackedRanges:
        machine = machine_of(self.source)
        self.checkpoint = self.source.take_checkpoint(machine, "i2")
        return self.source.changes_since(machine, "scsi:0:0", self.tracker, self.checkpoint)


@pytest.fixture
def cycle(world: World, source: HyperVSource, web: WorldMachine) -> Cycle:
    return Cycle(world, source, web)


def test_ranges_come_with_samples_of_what_is_unchanged(cycle: Cycle) -> None:
    found = cycle.second()
    assert found.ranges == [Extent(MiB, 32 * KiB)]
    assert len(found.samples) == 64
    assert Extent(MiB, MiB) not in found.samples


def _lost(world: World, web: WorldMachine) -> None:
    web.disks()[0].tracker.lost = True


def _stands_still(world: World, web: WorldMachine) -> None:
    web.disks()[0].tracker.stands_still = True


def _point_gone(world: World, web: WorldMachine) -> None:
    web.points.clear()


def _set_back(world: World, web: WorldMachine) -> None:
    checkpoint = world.user_checkpoint(web, "before")
    apply(world, checkpoint)


def _user_checkpoint(world: World, web: WorldMachine) -> None:
    world.user_checkpoint(web, "before")


def _refused(world: World, web: WorldMachine) -> None:
    world.faults.append(Fault("GetVirtualDiskChanges", code=32775))


def _a_month(world: World, web: WorldMachine) -> None:
    world.clock.sleep(31 * 24 * 3600)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (_lost, "GetVirtualDiskChanges returned 32768"),
        (_stands_still, "stopped at byte 0 of"),
        (_point_gone, "does not have the reference point"),
        (_set_back, ""),
        (_user_checkpoint, ""),
        (_refused, "GetVirtualDiskChanges returned 32775"),
        (_a_month, "all of the disk is read every 30 days"),
    ],
)
def test_tracking_that_cannot_be_trusted_says_why(
    world: World, web: WorldMachine, cycle: Cycle, what: Callable[..., None], why: str
) -> None:
    what(world, web)
    found = cycle.second()
    assert found.ranges is None
    assert found.reason
    assert why in found.reason


def test_answers_in_several_calls_are_put_together(web: WorldMachine, cycle: Cycle) -> None:
    web.disks()[0].tracker.answers_at_most = 50 * MiB
    assert cycle.second().ranges == [Extent(MiB, 32 * KiB)]


def test_a_tracker_that_lied_is_not_used_until_someone_says_so(
    world: World, host: SimulatedHost, source: HyperVSource, web: WorldMachine, cycle: Cycle
) -> None:
    web.disks()[0].tracker.hidden.append((0, SIZE))
    found = cycle.second()
    assert found.ranges == []
    machine = cycle.machine
    checkpoint = cycle.checkpoint
    assert source.compared(machine, "scsi:0:0", checkpoint, []) == ""
    alarm = source.compared(machine, "scsi:0:0", checkpoint, [Extent(MiB, MiB)])
    assert "VM web, disk scsi:0:0" in alarm
    tracker = released(source, checkpoint)
    world.clock.sleep(60)
    # a new server knows it too
    records = source.records._folder
    later = HyperVSource("prod", host.door(), records, world.clock)
    machine = machine_of(later)
    third = later.take_checkpoint(machine, "i3")
    answer = later.changes_since(machine, "scsi:0:0", tracker, third)
    assert answer.ranges is None
    assert "lied" in answer.reason
    later.trust_again(machine)
    assert later.changes_since(machine, "scsi:0:0", tracker, third).ranges == []


def test_two_targets_of_a_vm_count_from_their_own_points(
    world: World, source: HyperVSource, web: WorldMachine, cycle: Cycle
) -> None:
    other = released(source, source.take_checkpoint(cycle.machine, "other"))
    world.clock.sleep(60)
    world.settle()
    world.write(web, 9 * MiB, b"y" * 4 * KiB)
    assert cycle.second().ranges == [Extent(MiB, 32 * KiB), Extent(9 * MiB, 32 * KiB)]
    found = source.changes_since(cycle.machine, "scsi:0:0", other, cycle.checkpoint)
    assert found.ranges == [Extent(9 * MiB, 32 * KiB)]


def test_reference_points_go_by_name_and_only_so_many_are_left(
    world: World, source: HyperVSource, web: WorldMachine
) -> None:
    """A job's commit gives up its own older one, not another job's; those of sessions that ended
    before their commit do not pile up."""
    machine = machine_of(source)
    trackers = []
    for number in range(7):
        trackers.append(released(source, source.take_checkpoint(machine, f"i{number}")))
        world.clock.sleep(60)
    source.forget_tracker(machine, [trackers[5]])
    assert [point.instance_id for point in web.points] == [
        parsed.point
        for number in (2, 3, 4, 6)
        if (parsed := parse_tracker(trackers[number])) is not None
    ]
    assert [record.intent for record in source.records.all()] == ["i2", "i3", "i4", "i6"]


# --- what a checkpoint leaves and costs --------------------------------------------------------


def test_a_conversion_that_nobody_saw_the_end_of_leaves_no_reference_point(
    world: World, host: SimulatedHost, web: WorldMachine, tmp_path: Path
) -> None:
    rules = SourceRules(waits=Waits(job_s=100))
    source = HyperVSource("prod", host.door(), tmp_path / "records", world.clock, rules=rules)
    machine = machine_of(source)
    checkpoint = source.take_checkpoint(machine, "i1")
    web.faults.seconds["ConvertToReferencePoint"] = 1000.0
    tracker = released(source, checkpoint)
    assert "still converting" in tracker
    world.clock.sleep(2000)
    world.settle()
    assert len(web.points) == 1
    web.faults.seconds.clear()
    second = source.take_checkpoint(machine, "i2")
    assert web.points == []
    answer = source.changes_since(machine, "scsi:0:0", tracker, second)
    assert "still converting" in answer.reason


def test_a_file_that_was_not_merged_is_named_by_the_inventory(
    world: World, source: HyperVSource, web: WorldMachine
) -> None:
    machine = machine_of(source)
    checkpoint = source.take_checkpoint(machine, "i1")
    leaf = web.disks()[0].path
    assert leaf is not None
    web.faults.merge_fails = "the volume is full"
    released(source, checkpoint)
    assert source.inventory().warnings == ()  # the merge is under way
    world.clock.sleep(60)
    world.settle()
    assert world.depth(web) == 2
    (warning,) = source.inventory().warnings
    assert leaf.name in warning.text
    assert warning.name == "web"
    web.faults.merge_fails = ""
    world.turn_off(web)
    world.start(web)
    world.clock.sleep(60)
    assert source.inventory().warnings == ()
    world.user_checkpoint(web, "of a user")
    assert source.inventory().warnings == ()


def test_growth_of_all_open_checkpoints_takes_one_script(
    world: World, host: SimulatedHost, source: HyperVSource, web: WorldMachine
) -> None:
    world.add_machine("db", "hv1", [8 * MiB, 8 * MiB])
    world.add_machine("idle", "hv1", [8 * MiB])
    for machine in source.inventory().machines:
        if machine.name != "idle":
            source.take_checkpoint(machine, machine.name)
    before = host.scripts
    found = source.growth()
    assert host.scripts - before == 1
    assert len(found) == 3
    assert all(leaf.path.endswith(".avhdx") for leaf in found)
    assert all(leaf.size > 0 and leaf.free > 0 for leaf in found)


@pytest.mark.parametrize(
    ("size", "free", "limits", "expected"),
    [
        (10, 100, (0, 0), ""),
        (10, 100, (11, 99), ""),
        (10, 100, (10, 0), "checkpoint_max_growth is 10"),
        (10, 100, (0, 101), "min_free is 101"),
        (-1, -1, (10, 10), ""),
    ],
)
def test_limits(size: int, free: int, limits: tuple[int, int], expected: str) -> None:
    text = LeafGrowth("m", r"D:\a.avhdx", size, free).limit(*limits)
    assert (text == "") == (expected == "")
    assert expected in text


@pytest.mark.parametrize(
    ("disk", "said"),
    [
        (DiskSpec(kind="vhd"), "is a .vhd"),
        (DiskSpec(kind="vhds"), "is a VHD Set"),
        (DiskSpec(kind="physical"), "is a pass-through disk"),
        (DiskSpec(is_shared=True), "is shared between VMs"),
    ],
)
def test_disks_that_cannot_be_replicated_are_refused_by_name(
    world: World, host: SimulatedHost, disk: DiskSpec, said: str
) -> None:
    world.add_machine("odd", "hv1", [8 * MiB, disk])
    with host.door() as door:
        (problem,) = HyperVSource("prod", door, clock=world.clock).inventory().problems
        assert "VM odd: disk scsi:0:1" in problem.problem
        assert said in problem.problem
        source = HyperVSource(
            "prod", door, clock=world.clock, excludes=lambda name, place: place == "scsi:0:1"
        )
        machine = machine_of(source)
        assert [it.place for it in machine.disks] == ["scsi:0:0"]
        checkpoint = source.take_checkpoint(machine, "i1")
        assert [it.place for it in checkpoint.disks] == ["scsi:0:0"]
        source.release_checkpoint(checkpoint)


def test_a_disk_of_4k_sectors_is_taken(world: World, source: HyperVSource) -> None:
    world.add_machine("native", "hv1", [DiskSpec(8 * MiB, sector=4096)])
    checkpoint = source.take_checkpoint(machine_of(source), "i1")
    assert checkpoint.disks[0].logical_sector_size == 4096


def test_power_takes_one_script(
    world: World, host: SimulatedHost, source: HyperVSource, web: WorldMachine
) -> None:
    machine = machine_of(source)
    before = host.scripts
    assert source.power_state(machine) is PowerState.RUNNING
    world.turn_off(web)
    assert source.power_state(machine) is PowerState.OFF
    assert host.scripts - before == 2
