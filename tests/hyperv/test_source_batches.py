"""How many scripts a host gets: per cycle of a VM, for many VMs at once, for the inventory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from hyperv.installation import SimulatedHost
from hyperv.world import World
from hyperv.world.world import DiskSpec, Fault
from standby.errors import CheckpointFailed
from standby.host.hyperv.source import HyperVSource
from standby.model.machine import Checkpoint
from standby.units import MiB

Given = TypeVar("Given")
Made = TypeVar("Made")


def at_once(
    source: HyperVSource, world: World, items: list[Given], work: Callable[[Given], Made]
) -> list[Made]:
    """`work` for all items at once: the host's first script lasts until all others wait."""
    gathering = source._door
    held = []

    def hold(*_: object) -> None:
        if held:
            return
        held.append(True)
        with gathering._turn:
            assert gathering._turn.wait_for(
                lambda: (
                    sum(len(lane.waiting) for lane in gathering._lanes.values()) == len(items) - 1
                ),
                60,
            )

    world.hooks.append(hold)
    try:
        with ThreadPoolExecutor(len(items)) as pool:
            return list(pool.map(work, items))
    finally:
        world.hooks.remove(hold)


@pytest.mark.parametrize("disks", [1, 5])
def test_a_vms_cycle_takes_six_scripts_whatever_its_disks(
    world: World, host: SimulatedHost, source: HyperVSource, disks: int
) -> None:
    made = world.add_machine("web", "hv1", [4 * MiB] * disks)
    trackers: dict[str, str] = {}
    counts = []
    for number in range(3):
        world.write(made, MiB, b"x" * 4096, disk=disks - 1)
        before = host.scripts
        (machine,) = source.inventory().machines
        checkpoint = source.take_checkpoint(machine, f"i{number}")
        source.state_files(machine)
        for disk in checkpoint.disks:
            if trackers:
                assert (
                    source.changes_since(
                        machine, disk.place, trackers[disk.place], checkpoint
                    ).ranges
                    is not None
                )
        source.confirm_checkpoint(checkpoint)
        older, trackers = trackers, source.release_checkpoint(checkpoint)
        source.forget_tracker(machine, list(older.values()))
        counts.append(host.scripts - before)
        world.clock.sleep(60)
    assert counts == [4, 6, 6]
    assert len(made.points) == 1


def test_twenty_vms_due_at_once_take_few_scripts_and_keep_to_the_hosts_measure(
    world: World, host: SimulatedHost, source: HyperVSource
) -> None:
    """On one volume, where two checkpoints or conversions at once are the limit."""
    machines = [world.add_machine(f"vm{n:02}", "hv1", [4 * MiB]) for n in range(20)]
    busiest = [0]

    def watch(*_: object) -> None:
        under_way = sum(not job.is_over for job in world.jobs.values())
        busiest[0] = max(busiest[0], under_way)

    world.hooks.append(watch)
    found = list(source.inventory().machines)
    trackers: dict[str, str] = {}
    for cycle in range(2):
        before = host.scripts
        checkpoints: list[Checkpoint] = at_once(
            source,
            world,
            found,
            lambda one, cycle=cycle: source.take_checkpoint(one, f"{one.name}-{cycle}"),
        )
        taken = host.scripts - before
        asked = 0
        if trackers:
            before = host.scripts
            answers = at_once(
                source,
                world,
                list(zip(found, checkpoints, strict=True)),
                lambda pair, trackers=trackers: source.changes_since(
                    pair[0], "scsi:0:0", trackers[pair[0].name], pair[1]
                ),
            )
            assert [answer.reason for answer in answers] == [""] * 20
            asked = host.scripts - before
        # beside the inventory's two
        assert (taken, asked) == (3, 3 if cycle else 0)
        before = host.scripts
        for checkpoint in checkpoints:
            source.confirm_checkpoint(checkpoint)
        released = at_once(source, world, checkpoints, source.release_checkpoint)
        older = trackers
        trackers = {one.name: ids["scsi:0:0"] for one, ids in zip(found, released, strict=True)}
        if older:
            at_once(
                source,
                world,
                found,
                lambda one, older=older: source.forget_tracker(one, [older[one.name]]),
            )
        assert host.scripts - before <= 12
        world.clock.sleep(60)
        world.settle()
    assert busiest[0] <= 2
    assert [len(one.points) for one in machines] == [1] * 20
    assert [world.depth(one) for one in machines] == [1] * 20


def test_one_vm_of_a_batch_that_fails_fails_alone(world: World, source: HyperVSource) -> None:
    for number in range(4):
        world.add_machine(f"vm{number}", "hv1", [4 * MiB])
    for _ in range(2):  # application-consistent, then crash-consistent
        world.faults.append(Fault("CreateSnapshot", vm="vm2", code=32775))
    found = list(source.inventory().machines)

    def taken(number: int) -> object:
        try:
            return source.take_checkpoint(found[number], f"i{number}")
        except Exception as exc:
            return exc

    got = at_once(source, world, [0, 1, 2, 3], taken)
    assert [isinstance(item, Checkpoint) for item in got] == [True, True, False, True]
    assert isinstance(got[2], CheckpointFailed)
    assert "VM vm2" in str(got[2])
    assert "32775" in str(got[2])
    assert len(world.machine("vm2").checkpoints) == 0


def test_the_inventory_of_200_vms_takes_two_scripts(
    world: World, host: SimulatedHost, source: HyperVSource
) -> None:
    first = world.add_machine("vm000", "hv1", [4 * MiB])
    disk = first.disks()[0].path
    assert disk is not None
    for number in range(1, 200):
        # The files are copies: making 200 disks is no part of this.
        made = world.add_machine(f"vm{number:03}", "hv1", [])
        path = made.folder / "disk.vhdx"
        path.write_bytes(disk.read_bytes())
        world.add_disk(made, DiskSpec(4 * MiB, path=path), 0)
    inventory = source.inventory()
    assert inventory.problems == ()
    assert len(inventory.machines) == 200
    assert host.scripts == 2
