"""Rows of a host's classes joined to VMs: what a VM is, which of its disks can be replicated, and
why a VM or a disk cannot. Pure.

Rows belong together by their InstanceID: `Microsoft:<VM id>\\<device>\\…` for a VM as it is now,
`Microsoft:<snapshot id>\\…` for a snapshot. A medium names its drive (`Parent`), a drive its
controller; replicas and copies repeat disk GUIDs, so nothing is ever looked up beyond the VM.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from standby.host.hyperv.embedded import key_in
from standby.host.hyperv.files import VHD, VHD_SET, DiskFile, Files
from standby.host.hyperv.rows import Adapter, Component, Computer, HostRows, Resource, Settings
from standby.host.hyperv.shape import (
    AdapterShape,
    ControllerShape,
    FirmwareShape,
    MemoryShape,
    Shape,
)
from standby.model.machine import Machine, MachineDisk, NetworkAdapter, PowerState
from standby.units import MiB

LIVE = "Microsoft:Hyper-V:System:Realized"
RECOVERY = "Microsoft:Hyper-V:Snapshot:Recovery"
VIRTUAL_DISK = "Microsoft:Hyper-V:Virtual Hard Disk"
_PASS_THROUGH = "Microsoft:Hyper-V:Physical Disk Drive"
_IDE, _SCSI = 5, 6
REPLICA_NOTE = "standby-replica:"
"""A replica VM of standby has a note that begins so."""
RUNNING, OFF, SAVED, PAUSED, QUIESCED = 2, 3, 6, 32768, 9
TRACKING_VERSION = (6, 2)


@dataclass(frozen=True, slots=True)
class HostDisk:
    """A virtual disk of a VM. `storage` is the InstanceID of its medium, `chain` the files newest
    first."""

    place: str
    storage: str
    chain: tuple[DiskFile, ...]

    @property
    def file(self) -> DiskFile:
        """The newest layer."""
        return self.chain[0]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A disk that cannot be replicated: which, what it is, what to do."""

    place: str
    what: str
    hint: str

    def __str__(self) -> str:
        return f"disk {self.place} {self.what}; {self.hint}"


@dataclass(frozen=True, slots=True)
class HostMachine:
    """A VM of a Hyper-V host. `reason_kept_out` is why no wildcard matches it, '' when one may;
    `snapshots` are its recovery snapshots."""

    id: str
    name: str
    folder: str
    enabled_state: int
    status: tuple[int, ...]
    is_saved: bool
    shape: Shape
    disks: tuple[HostDisk, ...]
    refusals: tuple[Refusal, ...] = ()
    snapshots: tuple[str, ...] = ()
    reason_kept_out: str = ""

    @property
    def power_state(self) -> PowerState:
        """See `power_of`."""
        return power_of(self.enabled_state)

    @property
    def tracker_problem(self) -> str:
        """Why the host keeps no change tracker for the VM, '' when it can."""
        if version_of(self.shape.version) >= TRACKING_VERSION:
            return ""
        return (
            f"its configuration version {self.shape.version} is older than 6.2, which change "
            "tracking needs (Update-VMVersion raises it, for good, while the VM is off)"
        )


def power_of(enabled_state: int) -> PowerState:
    """What an EnabledState means. A saved VM counts as off: nothing runs, nothing writes."""
    if enabled_state in (OFF, SAVED):
        return PowerState.OFF
    if enabled_state in (PAUSED, QUIESCED):
        return PowerState.PAUSED
    return PowerState.RUNNING if enabled_state == RUNNING else PowerState.UNKNOWN


def version_of(text: str) -> tuple[int, ...]:
    """'8.0' as (8, 0); (0,) for what is no version."""
    try:
        return tuple(int(part) for part in text.split("."))
    except ValueError:
        return (0,)


def owner_of(instance_id: str) -> str:
    """The id of the VM or snapshot whose row that is, in lower case; '' for a host's own row."""
    kind, _, rest = instance_id.partition(":")
    first = rest.partition("\\")[0]
    return first.lower() if kind == "Microsoft" and _is_guid(first) else ""


def _is_guid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class _Parts:
    """The rows of one VM as it is now."""

    storage: list[Resource]
    drives: dict[str, Resource]
    controllers: dict[str, tuple[str, int]]


def files_named(rows: HostRows) -> list[str]:
    """Every virtual disk file that a VM's settings name, those of its snapshots included; what is
    no virtual disk (an ISO, a physical disk) and VHD Sets are left out."""
    return [
        row.file
        for row in rows.storage
        if row.resource_sub_type == VIRTUAL_DISK and row.file and not _is_set(row.file)
    ]


def _is_set(path: str) -> bool:
    return path.lower().endswith(".vhds")


def machines_of(rows: HostRows, files: Files) -> list[HostMachine]:
    """The VMs of the host, in order of name, then id."""
    live = {
        row.virtual_system_identifier.lower(): row
        for row in rows.settings
        if row.virtual_system_type == LIVE
    }
    found = [
        _machine(rows, files, computer, live[computer.name.lower()])
        for computer in rows.computers
        if _is_guid(computer.name) and computer.name.lower() in live
    ]
    return sorted(found, key=lambda machine: (machine.name, machine.id))


def _machine(rows: HostRows, files: Files, computer: Computer, settings: Settings) -> HostMachine:
    identity = computer.name.lower()
    parts = _parts(rows, identity)
    disks, refusals = _disks(parts, files)
    return HostMachine(
        id=identity,
        name=computer.element_name,
        folder=settings.configuration_data_root or "",
        enabled_state=computer.enabled_state,
        status=tuple(computer.operational_status or ()),
        is_saved=bool(settings.is_saved),
        shape=_shape(rows, identity, settings, parts),
        disks=disks,
        refusals=refusals,
        snapshots=tuple(
            row.instance_id
            for row in rows.settings
            if row.virtual_system_type == RECOVERY
            and row.virtual_system_identifier.lower() == identity
        ),
        reason_kept_out=reason_kept_out(computer, settings),
    )


def reason_kept_out(computer: Computer, settings: Settings) -> str:
    """Why no wildcard matches the VM, '' when one may."""
    if any(note.strip().startswith(REPLICA_NOTE) for note in settings.notes or ()):
        return "it is a replica that standby keeps"
    if (computer.replication_mode or 0) >= 2:
        return f"it is a target of Hyper-V Replica (ReplicationMode {computer.replication_mode})"
    if computer.replication_state in (12, 13) or computer.failed_over_replication_type:
        return f"it is under failover of Hyper-V Replica (state {computer.replication_state})"
    return ""


# --- disks -----------------------------------------------------------------------------------


def _parts(rows: HostRows, identity: str) -> _Parts:
    resources = [row for row in rows.resources if owner_of(row.instance_id) == identity]
    controllers: dict[str, tuple[str, int]] = {}
    scsi = 0
    for row in resources:
        if row.resource_type == _IDE:
            address = row.address or ""
            controllers[row.instance_id] = ("ide", int(address) if address.isdecimal() else 0)
        elif row.resource_type == _SCSI:
            controllers[row.instance_id] = ("scsi", scsi)
            scsi += 1
    return _Parts(
        storage=[row for row in rows.storage if owner_of(row.instance_id) == identity],
        drives={row.instance_id: row for row in resources},
        controllers=controllers,
    )


def _place(parts: _Parts, drive: Resource | None) -> str:
    """'scsi:0:1'; 'unknown:0:1' on a controller of another kind (persistent memory)."""
    if drive is None:
        return "unknown"
    kind, number = parts.controllers.get(key_in(drive.parent or ""), ("unknown", 0))
    return f"{kind}:{number}:{drive.address_on_parent or 0}"


def place_of(parts: _Parts, medium: Resource) -> str:
    """The controller place of a medium's drive."""
    return _place(parts, parts.drives.get(key_in(medium.parent or "")))


def places_of(rows: HostRows, identity: str) -> dict[str, str]:
    """{InstanceID of a virtual disk's medium: controller place} of the VM as it is now."""
    parts = _parts(rows, identity)
    return {
        row.instance_id: place_of(parts, row)
        for row in parts.storage
        if row.resource_sub_type == VIRTUAL_DISK
    }


def _disks(parts: _Parts, files: Files) -> tuple[tuple[HostDisk, ...], tuple[Refusal, ...]]:
    disks: list[HostDisk] = []
    refusals = [
        Refusal(
            _place(parts, drive),
            f"is a pass-through disk ({(drive.host_resource or ['no host disk'])[0]})",
            "standby reads virtual disks only: convert it to a .vhdx, or exclude it from the job",
        )
        for drive in parts.drives.values()
        if drive.resource_sub_type == _PASS_THROUGH
    ]
    for medium in parts.storage:
        if medium.resource_sub_type != VIRTUAL_DISK or not medium.file:
            continue
        place = place_of(parts, medium)
        taken = _refusal(place, medium) or _disk(place, medium, files)
        if isinstance(taken, Refusal):
            refusals.append(taken)
        else:
            disks.append(taken)
    return tuple(sorted(disks, key=lambda disk: disk.place)), tuple(refusals)


def _refusal(place: str, medium: Resource) -> Refusal | None:
    """What the settings alone tell."""
    if _is_set(medium.file):
        return Refusal(
            place,
            f"is a VHD Set ({medium.file})",
            "it is shared between VMs, which standby cannot freeze together: exclude it",
        )
    if medium.persistent_reservations_supported:
        return Refusal(
            place,
            f"is shared between VMs ({medium.file}, persistent reservations)",
            "give each VM a disk of its own, or exclude it from the job",
        )
    if place.startswith("unknown"):
        return Refusal(
            place,
            f"is on a controller that is neither IDE nor SCSI ({medium.file})",
            "move it to a SCSI controller, or exclude it from the job",
        )
    return None


def _disk(place: str, medium: Resource, files: Files) -> HostDisk | Refusal:
    try:
        chain = files.chain(medium.file)
    except ValueError as exc:
        return Refusal(
            place,
            f"cannot be described by the host ({exc})",
            "check the files with Get-VHD and Test-VHD on the host, or exclude it from the job",
        )
    for file in chain:
        if file.format == VHD:
            return Refusal(
                place,
                f"is a .vhd ({file.path})",
                "it has no change tracking and no protection of its structures: "
                f"Convert-VHD -Path '{file.path}' -DestinationPath '{file.path}x' while the VM is "
                "off, and attach that, or exclude it from the job",
            )
        if file.format == VHD_SET:
            return Refusal(place, f"is part of a VHD Set ({file.path})", "exclude it from the job")
    if chain[0].virtual_size <= 0 or not chain[0].disk_id:
        return Refusal(
            place,
            f"has no size or no id in the host's words ({medium.file})",
            "check it with Get-VHD on the host, or exclude it from the job",
        )
    return HostDisk(place, medium.instance_id, chain)


# --- hardware --------------------------------------------------------------------------------


def shape_of(rows: HostRows, identity: str, settings: Settings) -> Shape:
    """The hardware of the VM as it is now."""
    return _shape(rows, identity, settings, _parts(rows, identity))


def _shape(rows: HostRows, identity: str, settings: Settings, parts: _Parts) -> Shape:
    memory = next((row for row in rows.memory if owner_of(row.instance_id) == identity), None)
    processor = next(
        (row for row in rows.processors if owner_of(row.instance_id) == identity), None
    )
    security = next((row for row in rows.security if owner_of(row.instance_id) == identity), None)
    return Shape(
        version=settings.version or "",
        generation=2 if (settings.virtual_system_sub_type or "").endswith(":2") else 1,
        processors=processor.virtual_quantity if processor else 1,
        memory=MemoryShape(
            memory.virtual_quantity,
            memory.reservation or 0,
            memory.limit or 0,
            bool(memory.dynamic_memory_enabled),
        )
        if memory
        else MemoryShape(1024),
        firmware=_firmware(rows, settings),
        controllers=tuple(
            ControllerShape(kind, number, tuple(parts.drives[key].virtual_system_identifiers or ()))
            for key, (kind, number) in parts.controllers.items()
        ),
        adapters=tuple(_adapters(rows, identity)),
        compatible_processors=bool(processor and processor.limit_processor_features),
        nested_virtualization=bool(processor and processor.expose_virtualization_extensions),
        has_tpm=bool(security and security.tpm_enabled),
        is_shielded=bool(security and security.shielding_requested),
        heartbeat=_is_enabled(rows.heartbeats, identity),
        guest_backup=_is_enabled(rows.backups, identity),
        start_action=settings.automatic_startup_action or 0,
        stop_action=settings.automatic_shutdown_action or 0,
        checkpoint_type=settings.user_snapshot_type or 0,
        notes=tuple(settings.notes or ()),
    )


def _is_enabled(components: Iterable[Component], identity: str) -> bool:
    return any(
        row.enabled_state == 2 for row in components if owner_of(row.instance_id) == identity
    )


def _firmware(rows: HostRows, settings: Settings) -> FirmwareShape:
    sources = {row.instance_id: row for row in rows.boot}
    boot = [sources.get(key_in(path)) for path in settings.boot_source_order or ()]
    return FirmwareShape(
        bios_guid=settings.biosguid or "",
        bios_serial=settings.bios_serial_number or "",
        base_board_serial=settings.base_board_serial_number or "",
        chassis_serial=settings.chassis_serial_number or "",
        chassis_asset_tag=settings.chassis_asset_tag or "",
        secure_boot=bool(settings.secure_boot_enabled),
        secure_boot_template=settings.secure_boot_template_id or "",
        boot_codes=tuple(settings.boot_order or ()),
        boot=tuple(
            (
                row.boot_source_type or 0,
                row.boot_source_description or "",
                row.firmware_device_path or "",
                row.other_location or "",
            )
            for row in boot
            if row is not None
        ),
    )


def _adapters(rows: HostRows, identity: str) -> Iterable[AdapterShape]:
    switches = {row.name.lower(): row.element_name for row in rows.switches}
    kinds: tuple[tuple[Sequence[Adapter], bool], ...] = (
        (rows.adapters, False),
        (rows.legacy_adapters, True),
    )
    for adapters, is_legacy in kinds:
        for row in adapters:
            if owner_of(row.instance_id) != identity:
                continue
            under = row.instance_id.lower() + "\\"
            plug = next(
                (item for item in rows.connections if item.instance_id.lower().startswith(under)),
                None,
            )
            vlan = next(
                (item for item in rows.vlans if item.instance_id.lower().startswith(under)), None
            )
            switch = ""
            if plug is not None:
                path = (plug.host_resource or [""])[0]
                switch = switches.get(key_in(path, "Name").lower(), "")
                switch = switch or plug.last_known_switch_name or ""
            yield AdapterShape(
                name=row.element_name,
                switch=switch,
                mac=(row.address or "").upper().strip("0") and (row.address or "").upper(),
                is_static=bool(row.static_mac_address),
                is_legacy=is_legacy,
                is_connected=plug is not None and plug.enabled_state == 2,
                vlan_mode=(vlan.operation_mode or 0) if vlan else 0,
                vlan=(vlan.access_vlan_id or 0) if vlan else 0,
                identifiers=tuple(row.virtual_system_identifiers or ()),
            )


# --- the model -------------------------------------------------------------------------------


def model_of(machine: HostMachine) -> Machine:
    """The VM as the rest of standby knows it. A disk's `host_id` is its GUID, but where two disks
    of the VM have the same one: those are told apart by their places."""
    ids = [disk.file.disk_id for disk in machine.disks]
    return Machine(
        id=machine.id,
        name=machine.name,
        folder=machine.folder,
        generation=machine.shape.generation,
        memory_bytes=machine.shape.memory.startup * MiB,
        processors=machine.shape.processors,
        disks=tuple(
            MachineDisk(
                place=disk.place,
                file=disk.file.path,
                host_id=disk.file.disk_id if ids.count(disk.file.disk_id) == 1 else "",
                page83=disk.file.disk_id,
                virtual_size=disk.file.virtual_size,
                logical_sector_size=disk.file.logical_sector_size,
            )
            for disk in machine.disks
        ),
        adapters=tuple(
            NetworkAdapter(item.name, item.switch, item.mac.lower(), item.vlan)
            for item in machine.shape.adapters
        ),
    )
