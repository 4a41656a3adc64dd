"""Making VMs: new ones for a demonstration or a test, and the VM of a replica."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from standby import files
from standby.clock import new_uuid
from standby.disk import vhdx
from standby.errors import ConfigurationError
from standby.host.folder import inventory, vm_toml
from standby.host.folder.vm_toml import Boot
from standby.model.machine import Machine, MachineDisk, NetworkAdapter
from standby.units import GiB

REPLICA_NVRAM = "nvram.fd"
"""The UEFI variables of a replica's VM, whatever the source calls its file."""

_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


def new_machine(
    root: Path,
    name: str,
    disks: Mapping[str, int | Path] | None = None,
    *,
    identity: str = "",
    generation: int = 2,
    memory_bytes: int = GiB,
    processors: int = 1,
    adapters: tuple[NetworkAdapter, ...] = (),
    boot: Boot | None = None,
    folder: str = "",
) -> Machine:
    """A new VM in `<root>/<folder>`, off; `folder` is made from the name where none is given.

    `disks` maps places to a size (an empty dynamic VHDX is made) or to a file that is in the VM's
    folder already; by default one of 1 GiB at scsi:0:0. Files named by `boot` are put there by
    the caller.
    """
    contents = {"scsi:0:0": GiB} if disks is None else disks
    folder = folder or re.sub(r"[^A-Za-z0-9._-]", "_", name).strip(".") or "vm"
    if _RESERVED.fullmatch(folder):
        folder += "_"
    path = inventory.plain_path(root, folder)
    if (path / vm_toml.FILE_NAME).exists():
        raise ConfigurationError(str(path), "holds a VM already")
    described = []
    for number, (place, content) in enumerate(contents.items()):
        file = content if isinstance(content, Path) else Path(f"disk{number}.vhdx")
        relative = file.relative_to(path) if file.is_absolute() else file
        described.append(MachineDisk(place, relative.as_posix(), host_id=str(new_uuid())))
    machine = Machine(
        id=identity or str(new_uuid()),
        name=name,
        folder=folder,
        generation=generation,
        memory_bytes=memory_bytes,
        processors=processors,
        disks=tuple(described),
        adapters=adapters,
    )
    text = vm_toml.render(machine, boot)
    files.make_folder_durably(path)
    for disk, content in zip(described, contents.values(), strict=True):
        if not isinstance(content, Path):
            vhdx.create(path / disk.file, content).close()
    files.write_durably(path / vm_toml.FILE_NAME, text.encode())
    return inventory.described(root, machine)


# --- the VM of a replica ---------------------------------------------------------------------


def create_replica_machine(
    folder: Path, machine: Machine, disks: Mapping[str, str], boot: Boot | None = None
) -> Machine:
    """Write the vm.toml of the replica in `folder`, so that a folder host can start it.

    `machine` is the source's description (give it the replica's name by `dataclasses.replace`);
    `disks` maps places to ready layers relative to `folder`; disks of `machine` that are not
    among them are left out. Writing it again replaces it whole or not at all.
    """
    kept = []
    for disk in machine.disks:
        if disk.place in disks:
            kept.append(replace(disk, file=disks[disk.place]))
    unknown = set(disks) - {disk.place for disk in machine.disks}
    if unknown:
        raise ConfigurationError(
            str(folder), f"VM {machine.name} has no disk at {', '.join(sorted(unknown))}"
        )
    replica = _replica_of(machine, folder, tuple(kept))
    files.write_durably(folder / vm_toml.FILE_NAME, vm_toml.render(replica, boot).encode())
    return replica


def update_replica_machine(folder: Path, machine: Machine, disks: Mapping[str, str]) -> Machine:
    """`create_replica_machine`, keeping the [boot] table that is there; writes only a change."""
    path = folder / vm_toml.FILE_NAME
    if not files.is_there(path):
        return create_replica_machine(folder, machine, disks)
    old = vm_toml.load(path, folder.name)
    kept = tuple(
        replace(disk, file=disks[disk.place]) for disk in machine.disks if disk.place in disks
    )
    replica = _replica_of(machine, folder, kept)
    if vm_toml.render(replica, old.boot) == vm_toml.render(old.machine, old.boot):
        return replica
    return create_replica_machine(folder, machine, disks, old.boot)


def _replica_of(machine: Machine, folder: Path, disks: tuple[MachineDisk, ...]) -> Machine:
    nvram = REPLICA_NVRAM if machine.nvram else ""
    return replace(machine, folder=folder.name, disks=disks, nvram=nvram)
