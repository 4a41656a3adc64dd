"""What a recovery snapshot froze: the VM's disks with their chains, in the host's words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from standby.errors import CheckpointFailed
from standby.host.hyperv.asking import Asking
from standby.host.hyperv.files import folded, read_files
from standby.host.hyperv.machines import OFF, VIRTUAL_DISK, HostDisk, HostMachine
from standby.host.hyperv.records import Record
from standby.host.hyperv.rows import Resource
from standby.host.hyperv.snapshots import APPLICATION, Made
from standby.model.machine import Checkpoint, CheckpointDisk

KIND = "hyperv"


def _tail(instance_id: str) -> str:
    """What media of a VM and of its snapshots have in common: all behind the owner."""
    return instance_id.partition("\\")[2].lower()


def unknown_media(found: HostMachine, media: Sequence[Resource]) -> bool:
    """Whether the snapshot has disks that the VM was not seen to have."""
    known = {_tail(disk.storage) for disk in found.disks}
    disks = [item for item in media if item.resource_sub_type == VIRTUAL_DISK]
    return any(_tail(item.instance_id) not in known for item in disks)


def frozen_disks(
    door: Asking,
    host: str,
    found: HostMachine,
    media: Sequence[Resource],
    excludes: Callable[[str, str], bool],
) -> list[HostDisk]:
    """The VM's disks as the snapshot froze them. No script while the inventory knows their files.
    CheckpointFailed names those that the snapshot left out."""
    wanted = {disk.place: disk for disk in found.disks if not excludes(found.name, disk.place)}
    by_file = {folded(file.path): file for disk in found.disks for file in disk.chain}
    disks = [item for item in media if item.resource_sub_type == VIRTUAL_DISK]
    files = read_files(door, [item.file for item in disks], by_file)
    frozen = []
    missing = []
    for place, disk in wanted.items():
        tail = _tail(disk.storage)
        medium = next((item for item in disks if _tail(item.instance_id) == tail), None)
        if medium is None or not medium.file:
            missing.append(f"{place} ({disk.file.path})")
            continue
        try:
            chain = files.chain(medium.file)
        except ValueError as exc:
            missing.append(f"{place} ({exc})")
            continue
        if chain[0].disk_id != disk.file.disk_id:
            missing.append(f"{place} (the snapshot has the disk {chain[0].disk_id})")
            continue
        frozen.append(HostDisk(place, disk.storage, chain))
    if missing:
        raise CheckpointFailed(
            host,
            found.name,
            f"the host's snapshot leaves out {', '.join(missing)}",
            "Disks that cannot be frozen are excluded from the job by name",
        )
    return frozen


def checkpoint_of(
    record: Record, made: Made, frozen: Sequence[HostDisk], warnings: Sequence[str] = ()
) -> Checkpoint:
    """The checkpoint as the rest of standby knows it."""
    if made.enabled and made.enabled[0] == OFF:
        consistency = "offline"
    else:
        consistency = "application" if made.level == APPLICATION else "crash"
    return Checkpoint(
        id=made.snapshot,
        machine_id=record.machine_id,
        kind=KIND,
        taken_at=record.recorded_at,
        consistency=consistency,
        disks=tuple(
            CheckpointDisk(
                place=disk.place,
                files=tuple(file.path for file in disk.chain),
                identity=f"{disk.file.disk_id}@{made.snapshot}",
                virtual_size=disk.file.virtual_size,
                logical_sector_size=disk.file.logical_sector_size,
                physical_sector_size=disk.file.physical_sector_size,
                page83=disk.file.disk_id,
            )
            for disk in frozen
        ),
        warnings=tuple(warnings),
    )
