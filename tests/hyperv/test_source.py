"""The source side against simulated hosts: door, WS-Man, interpreter and model, end to end."""

from __future__ import annotations

from hyperv.installation import SimulatedHost
from hyperv.world import World
from standby.host.hyperv.source import HyperVSource
from standby.units import MiB


def test_the_inventory_of_many_vms_takes_two_scripts(world: World, host: SimulatedHost) -> None:
    web = world.add_machine("web", "hv1", [16 * MiB, 32 * MiB])
    for number in range(20):
        world.add_machine(f"vm{number}", "hv1", [8 * MiB])
    with host.door() as door:
        inventory = HyperVSource("prod", door, clock=world.clock).inventory()
    assert inventory.problems == ()
    assert len(inventory.machines) == 21
    (found,) = (machine for machine in inventory.machines if machine.name == "web")
    assert found.id == web.id.lower()
    assert [disk.place for disk in found.disks] == ["scsi:0:0", "scsi:0:1"]
    assert [disk.virtual_size for disk in found.disks] == [16 * MiB, 32 * MiB]
    assert host.scripts == 2
