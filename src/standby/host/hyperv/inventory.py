"""The inventory of a Hyper-V host: two scripts, whatever the number of VMs.

One reads the rows of every class, one describes all disk files they name; chains that were made by
hand, whose parents no settings name, cost one more script per level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from standby.host.hyperv.asking import Asking
from standby.host.hyperv.files import Files, folded, read_files
from standby.host.hyperv.machines import (
    LIVE,
    HostMachine,
    files_named,
    machines_of,
    model_of,
    owner_of,
)
from standby.host.hyperv.rows import MACHINES, HostRows
from standby.model.machine import Inventory, InventoryWarning, Machine, MachineProblem

Excludes = Callable[[str, str], bool]
"""Whether the disk at a controller place of a VM, by name, is to be left out."""


def excludes_nothing(machine: str, place: str) -> bool:
    """No disk is left out."""
    return False


@dataclass(frozen=True, slots=True)
class HostInventory:
    """What a host was found to have at one moment."""

    machines: tuple[HostMachine, ...]
    rows: HostRows
    files: Files
    warnings: tuple[str, ...] = ()
    """What is amiss with nodes of a cluster."""

    def machine(self, identity: str) -> HostMachine | None:
        """The VM of that id, None when the host has none."""
        return next((item for item in self.machines if item.id == identity.lower()), None)

    def kept_files(self, machine: HostMachine) -> set[str]:
        """The files that the VM's snapshots name, anybody's, `folded`."""
        owners = {
            owner_of(row.instance_id)
            for row in self.rows.settings
            if row.virtual_system_type != LIVE
            and row.virtual_system_identifier.lower() == machine.id
        }
        return {
            folded(row.file)
            for row in self.rows.storage
            if row.file and owner_of(row.instance_id) in owners
        }

    def model(self, excludes: Excludes = excludes_nothing, *, replicas: bool = False) -> Inventory:
        """The VMs that a job may name, and what is wrong with the others. A VM that no wildcard may
        match is not there, but for `replicas`. Names that two VMs share are for neither."""
        shown = [item for item in self.machines if replicas or not item.reason_kept_out]
        names = [item.name for item in shown]
        machines: list[Machine] = []
        problems: list[MachineProblem] = []
        for item in shown:
            refused = [
                refusal for refusal in item.refusals if not excludes(item.name, refusal.place)
            ]
            problem = ""
            if refused:
                problem = f"VM {item.name}: " + "; ".join(map(str, refused))
            elif names.count(item.name) > 1:
                problem = (
                    f"VM {item.name} ({item.id}): another VM of the host has the same name; rename "
                    "one of them (Rename-VM)"
                )
            if problem:
                problems.append(MachineProblem(item.folder, problem, item.name, item.id))
            else:
                machines.append(model_of(item))
        warnings = [InventoryWarning(text) for text in self.warnings]
        warnings += [
            InventoryWarning(
                f"VM {item.name}: no change tracking, every session reads its disks whole: "
                f"{item.tracker_problem}",
                item.name,
            )
            for item in shown
            if item.tracker_problem
        ]
        return Inventory(tuple(machines), tuple(problems), tuple(warnings))


def read_inventory(door: Asking) -> HostInventory:
    """Ask the host what it has."""
    answer = door.run(MACHINES, {})
    rows = answer.value("host")
    files = read_files(door, files_named(rows))
    return HostInventory(tuple(machines_of(rows, files)), rows, files, answer.warnings)
