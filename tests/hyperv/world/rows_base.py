"""What all kinds of rows share: the objects that they stand for, and how instances are named."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperv.world.machines import Checkpoint, Drive, Host, Machine
from hyperv.world.schema import CimClass, classes, object_path
from hyperv.world.world import World

Found = Iterator[tuple[dict[str, Any], Any]]
"""The values of each instance, and the object it stands for."""

PROCESSOR = "b637f346-6a0e-4dec-af52-bd70cb80a21d"
MEMORY = "4764334d-e001-4176-82ee-5594ec9b530e"
SECURITY = "2a79e3b9-8b1d-4b1d-9a34-c6d5b1a0f0aa"
COMPONENTS = {
    "Heartbeat": "84EAAE65-2F2E-45F5-9BB5-0E857DC8EB47",
    "Vss": "5CED1297-4598-4915-A5FC-AD21BB4D02A4",
    "Shutdown": "9F8233AC-BE49-4C79-8EE3-E7E1985B2077",
    "TimeSync": "2497F4DE-E9FA-4204-80E4-4B75C46419C0",
    "KvpExchange": "2A34B1C2-FD73-4043-8A5B-DD2159BC743F",
}
"""Integration components, by the middle of their classes' names."""

DEFINITION = "Microsoft:Definition\\6D9BDE2B-7D5A-4E5B-B9D1-0F1A0A2B3C4D\\"
SCSI = ("SCSI Controller", 6, "Microsoft:Hyper-V:Synthetic SCSI Controller")
IDE = ("IDE Controller", 5, "Microsoft:Hyper-V:Emulated IDE Controller")
DISK_DRIVE = ("Hard Drive", 17, "Microsoft:Hyper-V:Synthetic Disk Drive")
PHYSICAL = ("Physical Disk Drive", 17, "Microsoft:Hyper-V:Physical Disk Drive")
DVD_DRIVE = ("DVD Drive", 16, "Microsoft:Hyper-V:Synthetic DVD Drive")
VIRTUAL_DISK = "Microsoft:Hyper-V:Virtual Hard Disk"
VIRTUAL_DVD = "Microsoft:Hyper-V:Virtual CD/DVD Disk"
LIVE = "Microsoft:Hyper-V:System:Realized"
PLANNED = "Microsoft:Hyper-V:System:Planned"

SERVICES = {
    "Msvm_VirtualSystemManagementService": "vmms",
    "Msvm_VirtualSystemSnapshotService": "vmms",
    "Msvm_VirtualSystemReferencePointService": "vmms",
    "Msvm_ImageManagementService": "vhdsvc",
}


@dataclass(frozen=True)
class Settings:
    """One settings object: of a VM as it is, or of a checkpoint."""

    machine: Machine
    checkpoint: Checkpoint | None = None

    @property
    def id(self) -> str:
        """The GUID in its InstanceIDs."""
        return self.machine.id if self.checkpoint is None else self.checkpoint.id

    @property
    def prefix(self) -> str:
        """What its parts' InstanceIDs begin with."""
        return f"Microsoft:{self.id}"

    def drives(self) -> Iterator[tuple[Drive, Path | None]]:
        """Its drives with the files they have; those a snapshot left out have none in it."""
        for drive in self.machine.drives:
            if self.checkpoint is None or drive.kind != "disk":
                yield drive, drive.path
            elif drive.place in self.checkpoint.disks:
                yield drive, self.checkpoint.disks[drive.place]


@dataclass(frozen=True)
class Row:
    """One instance."""

    kind: CimClass
    values: Mapping[str, Any]
    of: Any = None
    more: dict[str, Any] = field(default_factory=dict)


class RowsBase:
    """One host's world and classes."""

    world: World
    host: Host
    classes: Mapping[str, CimClass]

    def __init__(self, world: World, host: Host) -> None:
        self.world = world
        self.host = host
        self.classes = classes(host.version)

    def path(self, class_name: str, values: Mapping[str, Any]) -> str:
        """The WMI path of an instance."""
        return object_path(self.host.name, self.classes[class_name.lower()], values)

    def settings(self) -> Iterator[Settings]:
        """Those of the host's VMs and their checkpoints."""
        for machine in self.world.on_host(self.host.name):
            yield Settings(machine)
            for checkpoint in machine.checkpoints:
                yield Settings(machine, checkpoint)


def switch_values(host: Host, name: str) -> dict[str, Any]:
    """The key of a virtual switch."""
    identifier = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{host.name}/{name}")).upper()
    return {"CreationClassName": "Msvm_VirtualEthernetSwitch", "Name": identifier}
