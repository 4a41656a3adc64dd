"""What goes wrong around a checkpoint: leftovers are found and given up, all else is left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hyperv.installation import SimulatedHost
from hyperv.world import World
from hyperv.world.machines import PAUSED, RECOVERY, SAVED
from hyperv.world.machines import Machine as WorldMachine
from hyperv.world.world import Fault
from standby.errors import (
    BackupInProgress,
    CheckpointFailed,
    MachineBusy,
    SourceChanged,
)
from standby.host.hyperv.records import INTENT, MADE
from standby.host.hyperv.snapshots import Waits
from standby.host.hyperv.source import HyperVSource, SourceRules
from standby.model.machine import Checkpoint, Machine
from standby.units import KiB, MiB


class Server:
    """The backup server: killed and started again on the same records."""

    def __init__(self, world: World, host: SimulatedHost, folder: Path) -> None:
        self.world, self.host, self.folder = world, host, folder
        self.source: HyperVSource = HyperVSource("prod", host.door(), folder, world.clock)

    def started(self, rules: SourceRules | None = None) -> HyperVSource:
        for record in self.source.records.all():
            self.source.records.let_go(record.intent)  # locks die with their process
        self.source = HyperVSource(
            "prod", self.host.door(), self.folder, self.world.clock, rules=rules
        )
        return self.source

    def machine(self, name: str = "web") -> Machine:
        (found,) = (it for it in self.source.inventory().machines if it.name == name)
        return found


@pytest.fixture
def server(world: World, host: SimulatedHost, tmp_path: Path) -> Server:
    return Server(world, host, tmp_path / "records")


@pytest.fixture
def web(world: World) -> WorldMachine:
    made = world.add_machine("web", "hv1", [8 * MiB])
    world.write(made, 0, b"1" * 4 * KiB)
    return made


def snapshots(web: WorldMachine) -> int:
    return sum(item.kind == RECOVERY for item in web.checkpoints)


def cycle(server: Server, name: str) -> Checkpoint:
    made = server.source.take_checkpoint(server.machine(), name)
    server.source.confirm_checkpoint(made)
    server.source.release_checkpoint(made)
    return made


@pytest.mark.parametrize("state", ["off", "saved", "paused", "with user checkpoints"])
def test_a_vm_in_any_state_is_frozen_read_and_released(
    world: World, server: Server, web: WorldMachine, state: str
) -> None:
    if state == "with user checkpoints":
        world.user_checkpoint(web, "before the update")
        world.write(web, 4 * KiB, b"2" * 4 * KiB)
    elif state == "off":
        world.turn_off(web)
    else:
        world.turn_off(web, SAVED if state == "saved" else PAUSED)
    depth = world.depth(web)
    made = server.source.take_checkpoint(server.machine(), "i1")
    path = world.storage.path("hv1", made.disks[0].files[0])
    assert path is not None
    assert world.content(path).startswith(b"1" * 4 * KiB)
    server.source.confirm_checkpoint(made)
    assert server.source.release_checkpoint(made)["scsi:0:0"]
    world.clock.sleep(60)
    world.settle()
    assert world.depth(web) == depth
    assert snapshots(web) == 0


def test_a_guest_that_cannot_hold_still_is_frozen_as_by_a_power_cut(
    server: Server, web: WorldMachine
) -> None:
    web.faults.vss_fails = True
    made = server.source.take_checkpoint(server.machine(), "i1")
    assert made.consistency == "crash"
    server.source.release_checkpoint(made)
    assert snapshots(web) == 0
    source = server.started(SourceRules(fall_back=False))
    with pytest.raises(CheckpointFailed, match=r"VM web.*VSS"):
        source.take_checkpoint(server.machine(), "i2")
    assert snapshots(web) == 0


def test_a_snapshot_of_another_product_is_named_and_left(
    world: World, server: Server, web: WorldMachine
) -> None:
    world.recovery_snapshot(web)
    with pytest.raises(BackupInProgress) as caught:
        server.source.take_checkpoint(server.machine(), "i1")
    assert "Remove-VMSnapshot" in str(caught.value)
    assert server.source.release_leftovers() == []
    assert snapshots(web) == 1


def test_a_disk_that_the_snapshot_leaves_out_ends_it(
    world: World, server: Server, web: WorldMachine
) -> None:
    other = world.add_machine("two", "hv1", [8 * MiB, 8 * MiB])
    other.faults.silently_left_out.add(other.disks()[1].place)
    with pytest.raises(CheckpointFailed, match="scsi:0:1"):
        server.source.take_checkpoint(server.machine("two"), "i1")
    assert snapshots(other) == 0
    assert server.source.records.all() == []


class Killed(Exception):
    """The server dies here."""


def dies_at(source: HyperVSource, phase: str, *, before: bool) -> None:
    """The server dies as it records that phase: before the record is written, or after."""
    save = source.records.save

    def saved(record: Any) -> Any:
        if record.phase != phase:
            return save(record)
        if not before:
            save(record)
        raise Killed

    source.records.save = saved  # type: ignore[method-assign]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("phase", [INTENT, MADE, "read", "converting", "released"])
def test_a_server_that_dies_leaves_nothing_that_the_next_does_not_give_up(
    world: World, server: Server, web: WorldMachine, phase: str, before: bool
) -> None:
    cycle(server, "i0")
    points = {item.id for item in web.points}
    foreign = world.add_machine("other", "hv1", [8 * MiB])
    world.recovery_snapshot(foreign)
    machine = server.machine()
    dies_at(server.source, phase, before=before)
    with pytest.raises(Killed):
        cycle(server, "i1")
    source = server.started()
    source.release_intent("i1")
    source.release_leftovers()
    world.clock.sleep(60)
    world.settle()
    assert snapshots(web) == 0
    assert world.depth(web) == 1
    assert snapshots(foreign) == 1
    assert points <= {item.id for item in web.points}
    (first,) = (record for record in source.records.all() if record.intent == "i0")
    cycle(server, "i2")
    server.source.forget_tracker(machine, list(first.trackers.values()))
    assert snapshots(web) == 0
    assert not points & {item.id for item in web.points}
    assert len(web.points) <= 2


@pytest.mark.parametrize("phase", [INTENT, MADE, "read", "converting"])
def test_the_next_session_gives_up_what_the_last_one_left(
    world: World, server: Server, web: WorldMachine, phase: str
) -> None:
    dies_at(server.source, phase, before=phase == MADE)
    with pytest.raises(Killed):
        cycle(server, "i1")
    server.started()
    cycle(server, "i2")
    assert snapshots(web) == 0
    assert [record.intent for record in server.source.records.all()] == ["i2"]


CREATE, CONVERT, DESTROY = "CreateSnapshot", "ConvertToReferencePoint", "DestroySnapshot"


def test_a_job_that_ends_with_warnings_has_done_its_work(
    world: World, server: Server, web: WorldMachine
) -> None:
    world.faults.append(Fault(CREATE, job=(32768, 0, "with warnings"), works=True))
    world.faults.append(Fault(CONVERT, job=(32768, 0, "with warnings"), works=True))
    machine = server.machine()
    made = server.source.take_checkpoint(machine, "i1")
    server.source.confirm_checkpoint(made)
    assert server.source.release_checkpoint(made)["scsi:0:0"]
    assert len(web.points) == 1


def test_a_job_that_takes_longer_than_a_script_waits_is_adopted(
    world: World, server: Server, web: WorldMachine
) -> None:
    world.faults.append(Fault(CREATE, seconds=270))
    world.faults.append(Fault(CONVERT, seconds=270))
    made = server.source.take_checkpoint(server.machine(), "i1")
    server.source.confirm_checkpoint(made)
    trackers = server.source.release_checkpoint(made)
    assert web.points[0].id in trackers["scsi:0:0"]
    assert snapshots(web) == 0


def test_a_job_that_never_ends_is_left_and_given_up_by_the_next_session(
    world: World, server: Server, web: WorldMachine
) -> None:
    world.faults.append(Fault(CREATE, seconds=7200))
    server.started(SourceRules(waits=Waits(job_s=60)))
    with pytest.raises(MachineBusy, match="creating a snapshot"):
        server.source.take_checkpoint(server.machine(), "i1")
    world.clock.sleep(7200)
    world.settle()
    assert snapshots(web) == 1
    server.started()
    cycle(server, "i2")
    assert snapshots(web) == 0


@pytest.mark.parametrize(
    "fault",
    [
        Fault(CONVERT, code=32768),
        Fault(CONVERT, code=32775),
        Fault(CONVERT, job=(10, 32768, "it failed")),
    ],
    ids=["refused", "invalid state", "failed"],
)
def test_a_snapshot_that_cannot_be_converted_is_destroyed_and_the_point_says_why(
    world: World, server: Server, web: WorldMachine, fault: Fault
) -> None:
    machine = server.machine()
    first = server.source.take_checkpoint(machine, "i0")
    server.source.confirm_checkpoint(first)
    before = server.source.release_checkpoint(first)["scsi:0:0"]
    world.faults.append(replace(fault))
    second = server.source.take_checkpoint(machine, "i1")
    server.source.confirm_checkpoint(second)
    tracker = server.source.release_checkpoint(second)["scsi:0:0"]
    assert snapshots(web) == 0
    assert len(web.points) == 1
    world.clock.sleep(60)
    world.settle()
    third = server.source.take_checkpoint(machine, "i2")
    reason = server.source.changes_since(machine, "scsi:0:0", tracker, third).reason
    assert "convert the checkpoint" in reason
    assert server.source.changes_since(machine, "scsi:0:0", before, third).reason == ""


@pytest.mark.parametrize("confirmed", [True, False], ids=["convert", "destroy"])
def test_a_reader_that_still_holds_a_file_is_waited_for(
    world: World, server: Server, web: WorldMachine, confirmed: bool
) -> None:
    made = server.source.take_checkpoint(server.machine(), "i1")
    path = world.storage.path("hv1", made.disks[0].files[0])
    assert path is not None
    reader = world.open_for_reading(path)
    world.later(8, reader.close)
    web.faults.conflict_fails_job = True
    if confirmed:
        server.source.confirm_checkpoint(made)
    server.source.release_checkpoint(made)
    assert snapshots(web) == 0
    world.clock.sleep(60)
    world.settle()
    assert world.depth(web) == 1


@pytest.mark.parametrize("activity", [32772, 32773, 32774], ids=["merge", "export", "migration"])
def test_what_the_host_does_with_the_vm_is_waited_for(
    world: World, server: Server, web: WorldMachine, activity: int
) -> None:
    machine = server.machine()
    web.activity = activity

    def over() -> None:
        web.activity = None

    world.later(120, over)
    begun = world.clock.monotonic()
    made = server.source.take_checkpoint(machine, "i1")
    assert world.clock.monotonic() - begun >= 120
    server.source.release_checkpoint(made)
    world.clock.sleep(60)
    world.settle()
    web.activity = activity
    server.started(SourceRules(waits=Waits(busy_s=60)))
    with pytest.raises(MachineBusy):
        server.source.take_checkpoint(machine, "i2")
    assert snapshots(web) == 0


def test_an_application_consistent_snapshot_that_comes_late_is_ours(
    world: World, server: Server, web: WorldMachine
) -> None:
    """Its job is said to have failed, and it is there all the same."""
    world.faults.append(Fault(CREATE, job=(10, 32768, "VSS took too long"), works=True))
    made = server.source.take_checkpoint(server.machine(), "i1")
    server.source.release_checkpoint(made)
    assert snapshots(web) == 0


def test_somebody_who_removes_the_snapshot_changes_the_source(
    world: World, server: Server, web: WorldMachine
) -> None:
    machine = server.machine()
    made = server.source.take_checkpoint(machine, "i1")
    server.source.confirm_checkpoint(made)
    web.checkpoints.clear()
    with pytest.raises(SourceChanged):
        server.source.release_checkpoint(made)
    assert server.source.records.all() == []
