"""What has to change at a replica VM so that it is as its source's shape wants it. Pure.

    wanted (the source's shape, files by place) + the VM as the host's rows have it ─▶ Change

A source adapter is found again by the ids that its guest knows it by, a controller by its position
and ids; whatever the source has not is taken away: the VM is the replica's alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from standby.host.hyperv.embedded import key_in
from standby.host.hyperv.files import folded
from standby.host.hyperv.machines import (
    LIVE,
    OFF,
    REPLICA_NOTE,
    SAVED,
    owner_of,
    places_of,
    shape_of,
    version_of,
)
from standby.host.hyperv.rows import HostRows, Resource
from standby.host.hyperv.shape import (
    AdapterShape,
    ControllerShape,
    FirmwareShape,
    MemoryShape,
    Shape,
)
from standby.model.machine import Machine
from standby.units import MiB

NOTHING, DISABLED = 2, 2
"""Msvm_VirtualSystemSettingData.AutomaticStartupAction, .UserSnapshotType."""
STARTS = {2: "Nothing", 3: "StartIfRunning", 4: "Start"}
STOPS = {2: "TurnOff", 3: "Save", 4: "ShutDown"}
CHECKPOINTS = {2: "Disabled", 3: "Production", 4: "ProductionOnly", 5: "Standard"}
_SCSI = 6
_FILE_SOURCE = 3
"""Msvm_BootSourceSettingData.BootSourceType of a loader's file."""


@dataclass(frozen=True, slots=True)
class TargetRules:
    """How a job wants replica VMs. `networks` maps switches of the source to those of the target;
    `same_side`: source and target are one host or cluster; `without_vtpm` makes replicas of VMs
    with a vTPM, which then have none."""

    networks: Mapping[str, str] = field(default_factory=dict)
    same_side: bool = False
    without_vtpm: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """A replica VM as it is to be. `key` is the replica's identity, `folder` its folder and `disks`
    its files by controller place, all as the host sees them."""

    key: str
    name: str
    folder: str
    shape: Shape
    disks: Mapping[str, str]
    rules: TargetRules = field(default_factory=TargetRules)

    @property
    def note(self) -> str:
        """What the VM's notes begin with."""
        return f"{REPLICA_NOTE}{self.key}"


@dataclass(frozen=True, slots=True)
class Attached:
    """A virtual disk of a VM: its place, its file."""

    place: str
    file: str


@dataclass(frozen=True, slots=True)
class Adapter:
    """A network adapter of a VM as it is: `instance` is the InstanceID of its settings."""

    instance: str
    shape: AdapterShape


@dataclass(frozen=True, slots=True)
class Found:
    """A replica VM as the host has it. `snapshots` are checkpoints of any kind; `scsi` has each
    SCSI controller's InstanceID and the ids that the guest knows it by, in order; `boot` the paths
    of its boot sources, in order."""

    id: str
    name: str
    note: str
    enabled_state: int
    status: tuple[int, ...]
    shape: Shape
    disks: tuple[Attached, ...]
    adapters: tuple[Adapter, ...]
    scsi: tuple[tuple[str, tuple[str, ...]], ...]
    boot: tuple[str, ...]
    snapshots: tuple[str, ...]

    @property
    def is_off(self) -> bool:
        """Off; one that is saved was started."""
        return self.enabled_state == OFF

    @property
    def is_saved(self) -> bool:
        """Started, and then saved."""
        return self.enabled_state == SAVED


@dataclass(frozen=True, slots=True)
class AdapterChange:
    """What set_adapters.ps1 makes of an adapter."""

    instance: str
    name: str
    rename: bool
    mac: str
    switch: str
    vlan: int


@dataclass(frozen=True, slots=True)
class Change:
    """What has to be done at a VM that is off. Empty parts need nothing."""

    hardware: bool = False
    remove_controllers: tuple[str, ...] = ()
    add_controllers: tuple[ControllerShape, ...] = ()
    empty: tuple[str, ...] = ()
    """Places whose drives go, before controllers do."""
    attach: tuple[Attached, ...] = ()
    remove_adapters: tuple[str, ...] = ()
    add_adapters: tuple[AdapterShape, ...] = ()
    adapters: tuple[AdapterChange, ...] = ()

    @property
    def changes_devices(self) -> bool:
        """Whether devices come, so that what they are called is to be read again."""
        return bool(self.add_controllers or self.add_adapters or self.remove_controllers)

    @property
    def is_nothing(self) -> bool:
        """Whether the VM is as it is wanted."""
        return self == Change()


# --- reading -----------------------------------------------------------------------------------


def noted(notes: Iterable[str] | None) -> str:
    """The note of ours among a VM's notes, '' where it has none."""
    for note in notes or ():
        first = note.strip().splitlines()[0].strip() if note.strip() else ""
        if first.startswith(REPLICA_NOTE):
            return first
    return ""


def found_replicas(rows: HostRows) -> list[Found]:
    """Every VM of the host, whether a replica or not (`note` is '' then)."""
    found = []
    computers = {row.name.lower(): row for row in rows.computers}
    for settings in rows.settings:
        identity = settings.virtual_system_identifier.lower()
        computer = computers.get(identity)
        if settings.virtual_system_type != LIVE or computer is None:
            continue
        shape = shape_of(rows, identity, settings)
        places = places_of(rows, identity)
        media = {row.instance_id: row for row in rows.storage if row.instance_id in places}
        ids = [row.instance_id for row in (*rows.adapters, *rows.legacy_adapters)]
        ours = [item for item in ids if owner_of(item) == identity]
        found.append(
            Found(
                id=identity,
                name=computer.element_name,
                note=noted(settings.notes),
                enabled_state=computer.enabled_state,
                status=tuple(computer.operational_status or ()),
                shape=shape,
                disks=tuple(Attached(place, media[key].file) for key, place in places.items()),
                adapters=tuple(map(Adapter, ours, shape.adapters)),
                scsi=tuple(
                    (row.instance_id, tuple(row.virtual_system_identifiers or ()))
                    for row in _scsi(rows.resources, identity)
                ),
                boot=tuple(settings.boot_source_order or ()),
                snapshots=tuple(
                    row.element_name or row.instance_id
                    for row in rows.settings
                    if row.virtual_system_identifier.lower() == identity
                    and row.virtual_system_type != LIVE
                ),
            )
        )
    return found


def ours(found: Iterable[Found]) -> dict[str, list[Found]]:
    """The VMs with a note of ours, by it. Several with one note are left when a node of a cluster
    dies while it makes one, another node makes it anew, and the first one comes back: the one in
    use is first, which is on, or has the most of what it is to have."""
    by_note: dict[str, list[Found]] = {}
    for item in found:
        if item.note:
            by_note.setdefault(item.note, []).append(item)
    for items in by_note.values():
        items.sort(key=lambda it: (it.is_off, -len(it.disks), -len(it.adapters), it.id))
    return by_note


def _scsi(rows: Iterable[Resource], identity: str) -> list[Resource]:
    return [
        row for row in rows if row.resource_type == _SCSI and owner_of(row.instance_id) == identity
    ]


def switches_of(rows: HostRows) -> set[str]:
    """Names of the host's virtual switches."""
    return {row.element_name for row in rows.switches}


def running_macs(rows: HostRows) -> dict[str, str]:
    """{MAC address: name of the VM} of all adapters of VMs that are on."""
    on = {row.name.lower(): row.element_name for row in rows.computers if row.enabled_state != OFF}
    found = {}
    for row in (*rows.adapters, *rows.legacy_adapters):
        owner = owner_of(row.instance_id)
        if owner in on and (row.address or "").strip("0"):
            found[(row.address or "").upper()] = on[owner]
    return found


# --- the shape to make -------------------------------------------------------------------------


def shape_from(machine: Machine) -> Shape:
    """A shape for a VM of a host of another kind: what `model.machine` knows of it."""
    kinds = sorted({tuple(disk.place.split(":")[:2]) for disk in machine.disks})
    return Shape(
        version="",
        generation=machine.generation,
        processors=machine.processors,
        memory=MemoryShape(max(machine.memory_bytes // MiB, 1)),
        firmware=FirmwareShape(),
        controllers=tuple(ControllerShape(kind, int(number)) for kind, number in kinds),
        adapters=tuple(
            AdapterShape(
                name=item.name or "Network Adapter",
                switch=item.network,
                mac=item.mac.replace(":", "").replace("-", "").upper(),
                is_connected=bool(item.network),
                vlan_mode=1 if item.vlan else 0,
                vlan=item.vlan,
            )
            for item in machine.adapters
        ),
    )


def fitting_version(wanted: str, supported: Sequence[str]) -> str:
    """The configuration version to make: the source's where the host runs it, else the newest one
    that is older, else the oldest; '' (the host's own choice) where nothing is known."""
    if not wanted or not supported or wanted in supported:
        return wanted if wanted in supported else ""
    ordered = sorted(supported, key=version_of)
    older = [item for item in ordered if version_of(item) < version_of(wanted)]
    return older[-1] if older else ordered[0]


def mapped_switch(adapter: AdapterShape, rules: TargetRules, switches: Iterable[str]) -> str:
    """The target's switch for a source adapter; '' where it is to hang on none."""
    wanted = rules.networks.get(adapter.switch, adapter.switch)
    return wanted if adapter.is_connected and wanted in set(switches) else ""


def warnings_of(wanted: Wanted, switches: Iterable[str]) -> list[str]:
    """What a replica VM cannot have of its source, as sentences."""
    there = set(switches)
    found = []
    for adapter in wanted.shape.adapters:
        switch = wanted.rules.networks.get(adapter.switch, adapter.switch)
        if adapter.is_connected and switch not in there:
            found.append(
                f"adapter {adapter.name} stays disconnected: the target has no virtual switch "
                f"{switch!r} (these: {', '.join(sorted(there)) or 'none'}); name one in `networks`"
            )
        if adapter.vlan_mode not in (0, 1):
            found.append(
                f"adapter {adapter.name} is a VLAN {'trunk' if adapter.vlan_mode == 2 else 'pair'}"
                " at the source: its VLANs are to be set by hand after a failover"
            )
    if wanted.shape.has_tpm or wanted.shape.is_shielded:
        found.append(
            "the source has a virtual TPM, the replica VM has none: what a guest sealed with it "
            "(BitLocker keys) it asks for at its start"
        )
    if wanted.rules.same_side and wanted.shape.firmware.bios_guid:
        found.append(
            "source and target are one side: the replica VM has the source's BIOS GUID and new "
            "MAC addresses"
        )
    return found


# --- the change --------------------------------------------------------------------------------


def change_of(wanted: Wanted, found: Found, switches: Iterable[str]) -> Change:
    """What has to be done at the VM, which is off."""
    there = {item.place: item for item in found.disks}
    remove, add, first_changed = _controllers(wanted.shape, found)
    moved = {
        place
        for place in there
        if place.startswith("scsi:") and int(place.split(":")[1]) >= first_changed
    }
    gone = (set(there) - set(wanted.disks)) | (moved if remove else set())
    attach = tuple(
        Attached(place, file)
        for place, file in sorted(wanted.disks.items())
        if place in gone or place not in there or folded(there[place].file) != folded(file)
    )
    removed, added, changed = _adapters(wanted, found, list(switches))
    return Change(
        hardware=not _has_hardware(wanted, found),
        remove_controllers=remove,
        add_controllers=add,
        empty=tuple(sorted(gone)),
        attach=attach,
        remove_adapters=removed,
        add_adapters=added,
        adapters=changed,
    )


def _has_hardware(wanted: Wanted, found: Found) -> bool:
    """Whether processors, memory, firmware and automatic actions are as wanted."""
    there, here = wanted.shape, found.shape
    memory = there.memory
    is_memory = memory.startup == here.memory.startup and (
        memory.is_dynamic == here.memory.is_dynamic
    )
    if memory.is_dynamic:
        is_memory = is_memory and memory == here.memory
    codes = there.firmware.boot_codes
    return (
        is_memory
        and there.processors == here.processors
        and there.compatible_processors == here.compatible_processors
        and there.nested_virtualization == here.nested_virtualization
        and here.start_action == NOTHING
        and here.checkpoint_type == DISABLED
        and (here.stop_action == there.stop_action or there.stop_action not in STOPS)
        and _firmware_texts(there.firmware).items() <= _firmware_texts(here.firmware).items()
        and (there.generation != 2 or there.firmware.secure_boot == here.firmware.secure_boot)
        and (not codes or codes == here.firmware.boot_codes)
    )


def _firmware_texts(firmware: FirmwareShape) -> dict[str, str]:
    """What is set only where the source has it."""
    texts = {
        "bios_guid": firmware.bios_guid.upper(),
        "bios_serial": firmware.bios_serial,
        "base_board_serial": firmware.base_board_serial,
        "chassis_serial": firmware.chassis_serial,
        "chassis_asset_tag": firmware.chassis_asset_tag,
        "secure_boot_template": firmware.secure_boot_template.upper(),
    }
    return {key: text for key, text in texts.items() if text}


def _controllers(
    wanted: Shape, found: Found
) -> tuple[tuple[str, ...], tuple[ControllerShape, ...], int]:
    """(InstanceIDs to remove, controllers to add, number of the first one that changes): SCSI
    controllers are told apart by their order, so from the first wrong one on all are made anew."""
    numbers = [int(item.number) for item in wanted.controllers if item.kind == "scsi"]
    by_number = {item.number: item for item in wanted.controllers if item.kind == "scsi"}
    count = max(numbers, default=-1) + 1
    goal = [by_number.get(number, ControllerShape("scsi", number)) for number in range(count)]
    same = 0
    while same < min(len(goal), len(found.scsi)):
        ids = _ids(goal[same].identifiers)
        if ids and ids != _ids(found.scsi[same][1]):
            break
        same += 1
    return tuple(key for key, _ in found.scsi[same:]), tuple(goal[same:]), same


def _ids(identifiers: Iterable[str]) -> set[str]:
    return {item.strip("{}").lower() for item in identifiers}


def wanted_mac(adapter: AdapterShape, rules: TargetRules) -> str:
    """The source's address, static at the replica whatever it is there: a guest knows its adapter
    by it. '' (a new one) where source and target are one side."""
    return "" if rules.same_side else adapter.mac


def _adapters(
    wanted: Wanted, found: Found, switches: Sequence[str]
) -> tuple[tuple[str, ...], tuple[AdapterShape, ...], tuple[AdapterChange, ...]]:
    left = list(found.adapters)
    added = []
    changed = []
    for adapter in wanted.shape.adapters:
        match = next((item for item in left if _is_same(adapter, item.shape)), None)
        if match is None:
            added.append(adapter)
            continue
        left.remove(match)
        goal = _adapter_change(adapter, match, wanted.rules, switches)
        if goal is not None:
            changed.append(goal)
    return tuple(item.instance for item in left), tuple(added), tuple(changed)


def _is_same(wanted: AdapterShape, there: AdapterShape) -> bool:
    if wanted.is_legacy != there.is_legacy:
        return False
    if wanted.identifiers and not wanted.is_legacy:
        return bool(_ids(wanted.identifiers) & _ids(there.identifiers))
    return wanted.name == there.name


def _adapter_change(
    wanted: AdapterShape, there: Adapter, rules: TargetRules, switches: Sequence[str]
) -> AdapterChange | None:
    """What the adapter has to become, None where it is so."""
    here = there.shape
    mac = wanted_mac(wanted, rules)
    switch = mapped_switch(wanted, rules, switches)
    vlan = wanted.vlan if wanted.vlan_mode == 1 else 0
    is_mac = (here.is_static and here.mac == mac) if mac else not here.is_static
    is_plugged = (here.is_connected and here.switch == switch) if switch else not here.is_connected
    is_tagged = (here.vlan if here.vlan_mode == 1 else 0) == vlan
    if is_mac and is_plugged and is_tagged and here.name == wanted.name:
        return None
    return AdapterChange(there.instance, wanted.name, here.name != wanted.name, mac, switch, vlan)


# --- boot sources ------------------------------------------------------------------------------


def missing_boot(wanted: Shape, found: Shape) -> tuple[tuple[int, str, str, str], ...]:
    """Entries of loaders' files that the VM has not; drives and adapters have theirs by being
    there."""
    there = {_boot_key(entry) for entry in found.firmware.boot}
    return tuple(
        entry
        for entry in wanted.firmware.boot
        if entry[0] == _FILE_SOURCE and entry[2] and _boot_key(entry) not in there
    )


def boot_order(wanted: Shape, found: Found) -> tuple[str, ...]:
    """The VM's boot sources in the source's order; () where they are in it. Those that the source
    does not name stay behind, in their order."""
    paths = [path for path in found.boot if key_in(path)]
    if len(paths) != len(found.shape.firmware.boot) or len(paths) != len(found.boot):
        return ()
    ranks = {_boot_key(entry): rank for rank, entry in reversed([*enumerate(wanted.firmware.boot)])}
    entries = [_boot_key(entry) for entry in found.shape.firmware.boot]
    order = sorted(
        range(len(paths)), key=lambda index: (ranks.get(entries[index], len(ranks)), index)
    )
    return () if order == sorted(order) else tuple(paths[index] for index in order)


def _boot_key(entry: tuple[int, str, str, str]) -> tuple[int, str]:
    kind, description, path, _ = entry
    return kind, (path or description).lower()
