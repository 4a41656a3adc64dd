"""What the scripts of the source side answer, row by row, as typed values.

A row has the names that its CIM class has; `_cim` makes them of Python's.
"""

from __future__ import annotations

from typing import Any

import msgspec

from standby.host.hyperv.answers import Moment
from standby.host.hyperv.verbs import Verb

_SPECIAL = {
    "instance_id": "InstanceID",
    "access_vlan_id": "AccessVlanId",
    "biosguid": "BIOSGUID",
    "bios_serial_number": "BIOSSerialNumber",
}


def _cim(name: str) -> str:
    return _SPECIAL.get(name) or "".join(word.capitalize() for word in name.split("_"))


class Computer(msgspec.Struct, frozen=True, rename=_cim):
    """Msvm_ComputerSystem: the host itself, and its VMs (`name` is their id)."""

    name: str
    element_name: str = ""
    enabled_state: int = 0
    operational_status: list[int] | None = None
    replication_mode: int | None = None
    replication_state: int | None = None
    failed_over_replication_type: int | None = None


class Settings(msgspec.Struct, frozen=True, rename=_cim):
    """Msvm_VirtualSystemSettingData: how a VM is now, or was at a snapshot."""

    instance_id: str
    virtual_system_type: str
    virtual_system_identifier: str = ""
    element_name: str = ""
    virtual_system_sub_type: str | None = None
    creation_time: Moment | None = None
    version: str | None = None
    notes: list[str] | None = None
    configuration_data_root: str | None = None
    is_saved: bool | None = None
    biosguid: str | None = None
    bios_serial_number: str | None = None
    base_board_serial_number: str | None = None
    chassis_serial_number: str | None = None
    chassis_asset_tag: str | None = None
    boot_order: list[int] | None = None
    boot_source_order: list[str] | None = None
    secure_boot_enabled: bool | None = None
    secure_boot_template_id: str | None = None
    automatic_startup_action: int | None = None
    automatic_shutdown_action: int | None = None
    user_snapshot_type: int | None = None


class Resource(msgspec.Struct, frozen=True, rename=_cim):
    """Msvm_StorageAllocationSettingData (media) and Msvm_ResourceAllocationSettingData
    (controllers, drives)."""

    instance_id: str
    resource_type: int | None = None
    resource_sub_type: str | None = None
    host_resource: list[str] | None = None
    parent: str | None = None
    address: str | None = None
    address_on_parent: str | None = None
    persistent_reservations_supported: bool | None = None
    virtual_system_identifiers: list[str] | None = None

    @property
    def file(self) -> str:
        """The file of a virtual disk, '' where there is none."""
        return self.host_resource[0] if self.host_resource else ""


class Memory(msgspec.Struct, frozen=True, rename=_cim):
    """Msvm_MemorySettingData, in MiB."""

    instance_id: str
    virtual_quantity: int = 0
    reservation: int | None = None
    limit: int | None = None
    dynamic_memory_enabled: bool | None = None


class Processor(msgspec.Struct, frozen=True, rename=_cim):
    """Msvm_ProcessorSettingData."""

    instance_id: str
    virtual_quantity: int = 1
    limit_processor_features: bool | None = None
    expose_virtualization_extensions: bool | None = None


class Adapter(msgspec.Struct, frozen=True, rename=_cim):
    """Msvm_SyntheticEthernetPortSettingData, Msvm_EmulatedEthernetPortSettingData."""

    instance_id: str
    element_name: str = ""
    address: str | None = None
    static_mac_address: bool | None = None
    virtual_system_identifiers: list[str] | None = None


class Connection(msgspec.Struct, frozen=True, rename=_cim):
    """Msvm_EthernetPortAllocationSettingData: which switch an adapter is plugged into."""

    instance_id: str
    parent: str | None = None
    host_resource: list[str] | None = None
    enabled_state: int | None = None
    last_known_switch_name: str | None = None


class Vlan(msgspec.Struct, frozen=True, rename=_cim):
    """Msvm_EthernetSwitchPortVlanSettingData."""

    instance_id: str
    operation_mode: int | None = None
    access_vlan_id: int | None = None


class Switch(msgspec.Struct, frozen=True, rename=_cim):
    """Msvm_VirtualEthernetSwitch."""

    name: str
    element_name: str


class Boot(msgspec.Struct, frozen=True, rename=_cim):
    """Msvm_BootSourceSettingData."""

    instance_id: str
    boot_source_type: int | None = None
    boot_source_description: str | None = None
    firmware_device_path: str | None = None
    other_location: str | None = None


class Security(msgspec.Struct, frozen=True, rename=_cim):
    """Msvm_SecuritySettingData."""

    instance_id: str
    tpm_enabled: bool | None = None
    shielding_requested: bool | None = None


class Component(msgspec.Struct, frozen=True, rename=_cim):
    """Settings of an integration service: 2 is enabled, 3 disabled."""

    instance_id: str
    enabled_state: int | None = None


class HostRows(msgspec.Struct, frozen=True):
    """machines.ps1."""

    computers: list[Computer]
    settings: list[Settings]
    storage: list[Resource]
    resources: list[Resource]
    memory: list[Memory]
    processors: list[Processor]
    adapters: list[Adapter]
    legacy_adapters: list[Adapter]
    connections: list[Connection]
    vlans: list[Vlan]
    switches: list[Switch]
    boot: list[Boot]
    security: list[Security]
    heartbeats: list[Component]
    backups: list[Component]
    still: list[str] = []
    """Names of the computers when all was read: what came or went meanwhile was not read whole."""


class FileAnswer(msgspec.Struct, frozen=True):
    """disks.ps1: the method's return code and the embedded instance."""

    code: int
    text: str | None = None


class Job(msgspec.Struct, frozen=True, rename=_cim):
    """Msvm_ConcreteJob."""

    instance_id: str
    job_state: int
    error_code: int | None = None
    error_description: str | None = None


class Point(msgspec.Struct, frozen=True, rename=_cim):
    """Msvm_VirtualSystemReferencePoint; the two lists run side by side."""

    instance_id: str
    reference_point_type: int | None = None
    virtual_disk_identifiers: list[str] | None = None
    resilient_change_tracking_identifiers: list[str] | None = None


class StateSettings(msgspec.Struct, frozen=True, rename=_cim):
    """Settings of a VM, now or at a snapshot, with the media they name."""

    instance_id: str
    virtual_system_type: str
    element_name: str = ""
    creation_time: Moment | None = None
    disks: list[Resource] = msgspec.field(name="disks", default_factory=list)


class State(msgspec.Struct, frozen=True):
    """state.ps1."""

    found: bool
    status: list[int]
    enabled: list[int]
    job: list[Job]
    applied: list[str]
    points: list[Point]
    settings: list[StateSettings]


class Before(msgspec.Struct, frozen=True):
    """How a VM was just before its snapshot: EnabledState, the snapshot it was last set back to,
    its reference points."""

    enabled: list[int] = []
    applied: list[str] = []
    points: list[str] = []


class Created(msgspec.Struct, frozen=True):
    """create_snapshots.ps1; `state`: done, unfinished (`job` tells which), changed."""

    state: str
    job: str | None = None
    is_copy: bool = False
    before: Before = Before()
    snapshots: list[str] = []
    disks: list[Resource] = []


class Converted(msgspec.Struct, frozen=True):
    """convert_snapshots.ps1; `state`: done, unfinished, gone."""

    state: str
    job: str | None = None
    points: list[Point] = []


class Destroyed(msgspec.Struct, frozen=True):
    """destroy_snapshots.ps1; `state`: done, unfinished, gone, refused."""

    state: str
    job: str | None = None
    type: str = ""


class PointsLeft(msgspec.Struct, frozen=True):
    """destroy_reference_points.ps1: which are still being destroyed; whether the VM is there."""

    left: list[str]
    found: bool = True


class DiskChanges(msgspec.Struct, frozen=True):
    """changes.ps1, of one disk: the last return code (-1: the call itself failed), how far the disk
    was processed, a line per call: offsets joined by commas, ';', lengths."""

    place: str
    code: int
    processed: int
    lines: str = ""
    message: str = ""


class Changes(msgspec.Struct, frozen=True):
    """changes.ps1."""

    points: list[Point]
    applied: list[str]
    disks: list[DiskChanges]


class Leaf(msgspec.Struct, frozen=True):
    """growth.ps1: a file that a VM writes to, and the bytes free where it lies."""

    id: str
    path: str
    code: int
    text: str | None = None
    free: int | None = None


class Growth(msgspec.Struct, frozen=True):
    """growth.ps1."""

    status: list[int]
    leaves: list[Leaf]


MACHINES: Verb[HostRows] = Verb("machines", HostRows, is_repeatable=True, deadline_s=300)
DISKS: Verb[FileAnswer] = Verb("disks", FileAnswer, is_repeatable=True, deadline_s=300)
STATE: Verb[State] = Verb("state", State, is_repeatable=True)
CREATE: Verb[Created] = Verb("create_snapshots", Created, deadline_s=900)
CONVERT: Verb[Converted] = Verb("convert_snapshots", Converted, deadline_s=900)
DESTROY: Verb[Destroyed] = Verb("destroy_snapshots", Destroyed, is_repeatable=True, deadline_s=900)
DESTROY_POINTS: Verb[PointsLeft] = Verb(
    "destroy_reference_points", PointsLeft, is_repeatable=True, deadline_s=300
)
CHANGES: Verb[Changes] = Verb("changes", Changes, is_repeatable=True, deadline_s=600)
GROWTH: Verb[Growth] = Verb("growth", Growth, is_repeatable=True)
VERBS: tuple[Verb[Any], ...] = (
    MACHINES,
    DISKS,
    STATE,
    CREATE,
    CONVERT,
    DESTROY,
    DESTROY_POINTS,
    CHANGES,
    GROWTH,
)
"""Every script of the source side."""
