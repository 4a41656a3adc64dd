"""One cycle of a VM on the source side: checkpoint, what changed, release, and the next one."""

from __future__ import annotations

from hyperv.installation import SimulatedHost
from hyperv.world import World
from hyperv.world.machines import Machine as WorldMachine
from standby.host.hyperv.source import HyperVSource
from standby.model.machine import Checkpoint, Machine
from standby.units import KiB, MiB


def seen(source: HyperVSource, name: str) -> Machine:
    (found,) = (machine for machine in source.inventory().machines if machine.name == name)
    return found


def read(world: World, checkpoint: Checkpoint, number: int = 0) -> bytes:
    """The frozen disk's content, as a mover reads it."""
    path = world.storage.path("hv1", checkpoint.disks[number].files[0])
    assert path is not None
    return world.content(path)


def released(source: HyperVSource, checkpoint: Checkpoint) -> dict[str, str]:
    source.confirm_checkpoint(checkpoint)
    return source.release_checkpoint(checkpoint)


def test_a_cycle_freezes_converts_and_the_next_one_knows_what_changed(
    world: World, host: SimulatedHost, source: HyperVSource
) -> None:
    web: WorldMachine = world.add_machine("web", "hv1", [16 * MiB, 8 * MiB])
    world.write(web, 0, b"1" * 4 * KiB)
    machine = seen(source, "web")
    before = read(world, source_checkpoint := source.take_checkpoint(machine, "i1"))
    assert before.startswith(b"1111")
    world.write(web, 0, b"2" * 4 * KiB)
    assert read(world, source_checkpoint) == before
    trackers = released(source, source_checkpoint)
    assert trackers.keys() == {"scsi:0:0", "scsi:0:1"}
    world.clock.sleep(60)
    world.settle()
    assert world.depth(web) == 1
    world.write(web, 4 * MiB, b"x" * 64 * KiB)
    second = source.take_checkpoint(machine, "i2")
    found = source.changes_since(machine, "scsi:0:0", trackers["scsi:0:0"], second)
    assert found.reason == ""
    assert found.ranges is not None
    assert {(item.offset, item.length) for item in found.ranges} >= {(4 * MiB, 64 * KiB)}
    other = source.changes_since(machine, "scsi:0:1", trackers["scsi:0:1"], second)
    assert other.reason == ""
    assert not other.ranges
    ids = released(source, second)
    source.forget_tracker(machine, list(trackers.values()))
    assert ids.keys() == trackers.keys()
    assert len(web.points) == 1
