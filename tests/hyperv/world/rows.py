"""What each class of a host has for instances: the model's objects as plain values of properties.

A row is (class, values, object).  A host has more rows than its VMs: templates of every kind of
setting (`Microsoft:Definition\\…`), the settings of checkpoints beside those of the VMs, and the
host itself as a computer system.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from hyperv.world.machines import (
    BUILDS,
    RECOVERY,
    SAVED,
    Adapter,
    Checkpoint,
    Controller,
    Drive,
    Host,
    Job,
    Machine,
    ReferencePoint,
)
from hyperv.world.schema import CimClass, classes, object_path
from hyperv.world.world import World
from standby.units import MiB

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

_DEFINITION = "Microsoft:Definition\\6D9BDE2B-7D5A-4E5B-B9D1-0F1A0A2B3C4D\\"
_SCSI = ("SCSI Controller", 6, "Microsoft:Hyper-V:Synthetic SCSI Controller")
_IDE = ("IDE Controller", 5, "Microsoft:Hyper-V:Emulated IDE Controller")
_DISK_DRIVE = ("Hard Drive", 17, "Microsoft:Hyper-V:Synthetic Disk Drive")
_PHYSICAL = ("Physical Disk Drive", 17, "Microsoft:Hyper-V:Physical Disk Drive")
_DVD_DRIVE = ("DVD Drive", 16, "Microsoft:Hyper-V:Synthetic DVD Drive")
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


class Rows:
    """All instances of one host, made when asked for."""

    def __init__(self, world: World, host: Host) -> None:
        self.world = world
        self.host = host
        self.classes = classes(host.version)
        self._makers: dict[str, Callable[[], Iterator[tuple[dict[str, Any], Any]]]] = {
            "Msvm_ComputerSystem": self._computers,
            "Msvm_PlannedComputerSystem": self._planned,
            "Msvm_VirtualSystemSettingData": self._of_settings(self._system),
            "Msvm_StorageAllocationSettingData": self._of_settings(self._storage, "Disk"),
            "Msvm_ResourceAllocationSettingData": self._of_settings(self._resources, "Drive"),
            "Msvm_ProcessorSettingData": self._of_settings(self._processor, "Processor"),
            "Msvm_MemorySettingData": self._of_settings(self._memory, "Memory"),
            "Msvm_SyntheticEthernetPortSettingData": self._of_settings(self._adapters, "Adapter"),
            "Msvm_EmulatedEthernetPortSettingData": self._of_settings(self._legacy, "Legacy"),
            "Msvm_EthernetPortAllocationSettingData": self._of_settings(
                self._connections, "Connection"
            ),
            "Msvm_EthernetSwitchPortVlanSettingData": self._of_settings(self._vlans, "Vlan"),
            "Msvm_BootSourceSettingData": self._of_settings(self._boot),
            "Msvm_SecuritySettingData": self._of_settings(self._security),
            "Msvm_HeartbeatComponent": self._heartbeats,
            "Msvm_VirtualSystemReferencePoint": self._points,
            "Msvm_ConcreteJob": lambda: self._jobs("Msvm_ConcreteJob"),
            "Msvm_StorageJob": lambda: self._jobs("Msvm_StorageJob"),
            "Msvm_VirtualEthernetSwitch": self._switches,
            "Win32_Volume": self._volumes,
            "Win32_OperatingSystem": self._system_of_host,
            "Win32_ComputerSystem": self._computer_of_host,
            "MSCluster_Cluster": self._cluster,
            "MSCluster_Node": self._nodes,
            "MSCluster_ResourceGroup": self._groups,
            "MSCluster_Resource": self._resources_of_cluster,
            "MSCluster_ClusterSharedVolume": self._shared_volumes,
            "MSCluster_DiskPartition": self._partitions,
        }
        for middle in COMPONENTS:
            self._makers[f"Msvm_{middle}ComponentSettingData"] = self._of_settings(
                lambda settings, middle=middle: self._component(settings, middle), middle
            )
        for name in SERVICES:
            self._makers[name] = lambda name=name: self._service(name)

    def of(self, class_name: str) -> Iterator[Row]:
        """The instances of a class and of those that come from it; KeyError for a class that the
        model has no instances of, so that nothing is empty by mistake."""
        known = False
        for name, maker in self._makers.items():
            kind = self.classes.get(name.lower())
            if kind is None or not kind.is_a(class_name):
                continue
            known = True
            for values, of in maker():
                yield Row(kind, values, of)
        if not known:
            raise KeyError(class_name)

    def path(self, class_name: str, values: Mapping[str, Any]) -> str:
        """The WMI path of an instance."""
        return object_path(self.host.name, self.classes[class_name.lower()], values)

    def settings(self) -> Iterator[Settings]:
        """Those of the host's VMs and their checkpoints."""
        for machine in self.world.on_host(self.host.name):
            yield Settings(machine)
            for checkpoint in machine.checkpoints:
                yield Settings(machine, checkpoint)

    def _of_settings(
        self, maker: Callable[[Settings], Iterator[tuple[dict[str, Any], Any]]], template: str = ""
    ) -> Callable[[], Iterator[tuple[dict[str, Any], Any]]]:
        def all_of_them() -> Iterator[tuple[dict[str, Any], Any]]:
            if template:
                for kind in ("Default", "Minimum", "Maximum", "Increment"):
                    yield {"InstanceID": f"{_DEFINITION}{template}\\{kind}"}, None
            for settings in self.settings():
                yield from maker(settings)

        return all_of_them

    def parts(self, settings: Settings) -> Iterator[Row]:
        """What belongs to one settings object: its drives, memory, adapters and so on."""
        makers = {
            "Msvm_StorageAllocationSettingData": self._storage,
            "Msvm_ResourceAllocationSettingData": self._resources,
            "Msvm_ProcessorSettingData": self._processor,
            "Msvm_MemorySettingData": self._memory,
            "Msvm_SyntheticEthernetPortSettingData": self._adapters,
            "Msvm_EmulatedEthernetPortSettingData": self._legacy,
            "Msvm_EthernetPortAllocationSettingData": self._connections,
            "Msvm_SecuritySettingData": self._security,
        }
        for name, maker in makers.items():
            for values, of in maker(settings):
                yield Row(self.classes[name.lower()], values, of)
        for middle in COMPONENTS:
            name = f"Msvm_{middle}ComponentSettingData".lower()
            for values, of in self._component(settings, middle):
                yield Row(self.classes[name], values, of)

    # --- VMs -----------------------------------------------------------------------------------

    def computer(self, machine: Machine) -> dict[str, Any]:
        """A VM as Msvm_ComputerSystem."""
        status = [2] if machine.activity is None else [2, machine.activity]
        return {
            "CreationClassName": "Msvm_ComputerSystem",
            "Name": machine.id,
            "ElementName": machine.name,
            "Caption": "Virtual Machine",
            "Description": "Microsoft Virtual Machine",
            "EnabledState": machine.state,
            "RequestedState": 12,
            "HealthState": 5,
            "OperationalStatus": status,
            "StatusDescriptions": ["Operating normally"],
            "InstallDate": machine.created,
            "OnTimeInMilliseconds": 60_000 if machine.runs else 0,
            "ProcessID": 4321 if machine.runs else None,
            "NumberOfNumaNodes": 1,
            "ReplicationState": machine.replication_state,
            "ReplicationMode": machine.replication_mode,
            "ReplicationHealth": 0,
            "FailedOverReplicationType": machine.failed_over,
        }

    def _computers(self) -> Iterator[tuple[dict[str, Any], Any]]:
        yield (
            {
                "CreationClassName": "Msvm_ComputerSystem",
                "Name": self.host.name.upper(),
                "ElementName": self.host.name.upper(),
                "Caption": "Hosting Computer System",
                "Description": "Microsoft Hosting Computer System",
                "EnabledState": 2,
                "HealthState": 5,
                "OperationalStatus": [2],
            },
            self.host,
        )
        for machine in self.world.on_host(self.host.name):
            if not machine.is_planned:
                yield self.computer(machine), machine

    def _planned(self) -> Iterator[tuple[dict[str, Any], Any]]:
        for machine in self.world.on_host(self.host.name):
            if machine.is_planned:
                values = self.computer(machine) | {
                    "CreationClassName": "Msvm_PlannedComputerSystem"
                }
                known = self.classes["msvm_plannedcomputersystem"].properties
                yield {k: v for k, v in values.items() if k in known}, machine

    def _system(self, settings: Settings) -> Iterator[tuple[dict[str, Any], Any]]:
        machine, checkpoint = settings.machine, settings.checkpoint
        kind = PLANNED if machine.is_planned else LIVE
        if checkpoint is not None:
            kind = f"Microsoft:Hyper-V:Snapshot:{checkpoint.kind}"
        folder = self.world.storage.windows(self.host.name, machine.folder)
        values = {
            "InstanceID": settings.prefix,
            "ElementName": machine.name if checkpoint is None else checkpoint.name,
            "Caption": "Virtual Machine Settings",
            "Description": "Active settings for the virtual machine.",
            "VirtualSystemIdentifier": machine.id,
            "VirtualSystemType": kind,
            "VirtualSystemSubType": f"Microsoft:Hyper-V:SubType:{machine.generation}",
            "Notes": [machine.notes] if machine.notes else [],
            "CreationTime": machine.created if checkpoint is None else checkpoint.created,
            "ConfigurationID": settings.id,
            "ConfigurationDataRoot": folder,
            "ConfigurationFile": f"Virtual Machines\\{machine.id}.vmcx",
            "SnapshotDataRoot": folder,
            "AutomaticStartupAction": machine.start_action,
            "AutomaticStartupActionDelay": timedelta(seconds=machine.start_delay),
            "AutomaticShutdownAction": machine.stop_action,
            "AutomaticRecoveryAction": 3,
            "AutomaticSnapshotsEnabled": machine.automatic_checkpoints,
            "BIOSGUID": machine.bios_guid,
            "BIOSSerialNumber": machine.serials.get("bios", "0000-0001"),
            "BaseBoardSerialNumber": machine.serials.get("board", "0000-0001"),
            "ChassisSerialNumber": machine.serials.get("chassis", "0000-0001"),
            "ChassisAssetTag": machine.serials.get("tag", "0000-0001"),
            "UserSnapshotType": machine.checkpoint_type,
            "IsSaved": machine.state == SAVED and checkpoint is None,
            "Version": machine.version,
            "IncrementalBackupEnabled": False,
            "VirtualNumaEnabled": machine.numa,
            "IsAutomaticSnapshot": False,
            "SecureBootEnabled": machine.secure_boot,
            "BootOrder": [1, 2, 3, 0] if machine.generation == 1 else [],
            "NetworkBootPreferredProtocol": 4096,
        }
        if machine.generation == 2:
            values["SecureBootTemplateId"] = machine.secure_boot_template
            values["BootSourceOrder"] = [
                self.path("Msvm_BootSourceSettingData", row) for row, _ in self._boot(settings)
            ]
        if checkpoint is not None and checkpoint.parent is not None:
            values["Parent"] = self.path(
                "Msvm_VirtualSystemSettingData",
                {"InstanceID": f"Microsoft:{checkpoint.parent.id}"},
            )
        yield {k: v for k, v in values.items() if self._has("system", k)}, settings

    def _has(self, kind: str, name: str) -> bool:
        return name in self.classes["msvm_virtualsystemsettingdata"].properties

    # --- storage -------------------------------------------------------------------------------

    def _controller_values(self, settings: Settings, controller: Controller) -> dict[str, Any]:
        name, number, sub_type = _IDE if controller.kind == "IDE" else _SCSI
        return {
            "InstanceID": f"{settings.prefix}\\{controller.element_id()}",
            "ElementName": f"{name} {controller.number}" if number == 5 else name,
            "ResourceType": number,
            "ResourceSubType": sub_type,
            "Address": str(controller.number) if controller.kind == "IDE" else "",
            "VirtualSystemIdentifiers": ["{" + controller.instance + "}"],
        }

    def _resources(self, settings: Settings) -> Iterator[tuple[dict[str, Any], Any]]:
        for controller in settings.machine.controllers:
            yield self._controller_values(settings, controller), controller
        for drive, _ in settings.drives():
            yield self._drive_values(settings, drive), drive

    def _drive_values(self, settings: Settings, drive: Drive) -> dict[str, Any]:
        kinds = {"disk": _DISK_DRIVE, "physical": _PHYSICAL, "dvd": _DVD_DRIVE}
        name, number, sub_type = kinds[drive.kind]
        values: dict[str, Any] = {
            "InstanceID": f"{settings.prefix}\\{drive.element_id()}\\D",
            "ElementName": name,
            "ResourceType": number,
            "ResourceSubType": sub_type,
            "AddressOnParent": str(drive.location),
            "Parent": self.path(
                "Msvm_ResourceAllocationSettingData",
                {"InstanceID": f"{settings.prefix}\\{drive.controller.element_id()}"},
            ),
        }
        if drive.kind == "physical":
            disk = f"Microsoft:353B3BE8-310C-4CF4-839E-4E1B14616136\\{drive.disk_number}"
            values["HostResource"] = [
                f"\\\\{self.host.name.upper()}\\root\\virtualization\\v2:Msvm_DiskDrive."
                f'CreationClassName="Msvm_DiskDrive",DeviceID="{disk}"'
            ]
        return values

    def _storage(self, settings: Settings) -> Iterator[tuple[dict[str, Any], Any]]:
        for drive, path in settings.drives():
            parent = self.path(
                "Msvm_ResourceAllocationSettingData",
                {"InstanceID": f"{settings.prefix}\\{drive.element_id()}\\D"},
            )
            if drive.kind == "dvd" and drive.iso:
                file, sub_type, number = drive.iso, VIRTUAL_DVD, 31
            elif drive.kind == "disk" and path is not None:
                file, sub_type, number = (
                    self.world.storage.windows(self.host.name, path),
                    VIRTUAL_DISK,
                    31,
                )
            else:
                continue
            yield (
                {
                    "InstanceID": f"{settings.prefix}\\{drive.element_id()}\\L",
                    "ElementName": "Hard Disk Image"
                    if sub_type == VIRTUAL_DISK
                    else "ISO Disk Image",
                    "ResourceType": number,
                    "ResourceSubType": sub_type,
                    "HostResource": [file],
                    "Parent": parent,
                    "PersistentReservationsSupported": drive.is_shared,
                    "CachingMode": 0,
                    "Access": 3,
                    "VirtualQuantity": 1,
                    "VirtualQuantityUnits": "count",
                    "AutomaticAllocation": True,
                    "AutomaticDeallocation": True,
                },
                drive,
            )

    # --- the rest of the hardware --------------------------------------------------------------

    def _processor(self, settings: Settings) -> Iterator[tuple[dict[str, Any], Any]]:
        yield (
            {
                "InstanceID": f"{settings.prefix}\\{PROCESSOR}\\0",
                "ElementName": "Processor",
                "ResourceType": 3,
                "ResourceSubType": "Microsoft:Hyper-V:Processor",
                "VirtualQuantity": settings.machine.processors,
                "VirtualQuantityUnits": "count",
                "Limit": 100_000,
                "Reservation": 0,
                "Weight": 100,
                "LimitProcessorFeatures": False,
                "ExposeVirtualizationExtensions": False,
            },
            settings.machine,
        )

    def _memory(self, settings: Settings) -> Iterator[tuple[dict[str, Any], Any]]:
        machine = settings.machine
        is_dynamic = machine.dynamic_memory
        yield (
            {
                "InstanceID": f"{settings.prefix}\\{MEMORY}",
                "ElementName": "Memory",
                "ResourceType": 4,
                "ResourceSubType": "Microsoft:Hyper-V:Memory",
                "AllocationUnits": "byte * 2^20",
                "VirtualQuantityUnits": "byte * 2^20",
                "VirtualQuantity": machine.memory // MiB,
                "Reservation": (machine.memory_minimum if is_dynamic else machine.memory) // MiB,
                "Limit": (machine.memory_maximum if is_dynamic else machine.memory) // MiB,
                "Weight": 5000,
                "DynamicMemoryEnabled": is_dynamic,
                "TargetMemoryBuffer": 20,
            },
            machine,
        )

    def _adapter_values(self, settings: Settings, adapter: Adapter) -> dict[str, Any]:
        identifier = adapter.identifiers[0] if adapter.identifiers else adapter.instance
        return {
            "InstanceID": f"{settings.prefix}\\{adapter.instance}",
            "ElementName": adapter.name,
            "ResourceType": 10,
            "ResourceSubType": "Microsoft:Hyper-V:Emulated Ethernet Port"
            if adapter.is_legacy
            else "Microsoft:Hyper-V:Synthetic Ethernet Port",
            "Address": adapter.mac,
            "StaticMacAddress": adapter.is_static,
            "VirtualSystemIdentifiers": ["{" + identifier.strip("{}") + "}"],
            "ClusterMonitored": True,
        }

    def _adapters(self, settings: Settings) -> Iterator[tuple[dict[str, Any], Any]]:
        for adapter in settings.machine.adapters:
            if not adapter.is_legacy:
                yield self._adapter_values(settings, adapter), adapter

    def _legacy(self, settings: Settings) -> Iterator[tuple[dict[str, Any], Any]]:
        for adapter in settings.machine.adapters:
            if adapter.is_legacy:
                yield self._adapter_values(settings, adapter), adapter

    def _connections(self, settings: Settings) -> Iterator[tuple[dict[str, Any], Any]]:
        for adapter in settings.machine.adapters:
            class_name = "Msvm_SyntheticEthernetPortSettingData"
            if adapter.is_legacy:
                class_name = "Msvm_EmulatedEthernetPortSettingData"
            values = {
                "InstanceID": f"{settings.prefix}\\{adapter.instance}\\C",
                "ElementName": "Dynamic Ethernet Switch Port",
                "ResourceType": 33,
                "ResourceSubType": "Microsoft:Hyper-V:Ethernet Connection",
                "Parent": self.path(
                    class_name, {"InstanceID": f"{settings.prefix}\\{adapter.instance}"}
                ),
                "HostResource": [],
                "EnabledState": 2 if adapter.switch else 3,
            }
            if adapter.switch:
                values["HostResource"] = [
                    self.path(
                        "Msvm_VirtualEthernetSwitch", switch_values(self.host, adapter.switch)
                    )
                ]
                values["LastKnownSwitchName"] = adapter.switch
            yield values, adapter

    def _vlans(self, settings: Settings) -> Iterator[tuple[dict[str, Any], Any]]:
        for adapter in settings.machine.adapters:
            if not adapter.mode:
                continue
            feature = "952C5004-4465-451C-8CB8-FA9AB382B773"
            yield (
                {
                    "InstanceID": f"{settings.prefix}\\{adapter.instance}\\C\\{feature}",
                    "ElementName": "Ethernet Switch Port VLAN Settings",
                    "OperationMode": adapter.mode,
                    "AccessVlanId": adapter.vlan,
                    "NativeVlanId": adapter.native_vlan,
                    "TrunkVlanIdArray": list(adapter.trunk),
                },
                adapter,
            )

    def _boot(self, settings: Settings) -> Iterator[tuple[dict[str, Any], Any]]:
        for number, entry in enumerate(settings.machine.boot_entries):
            description, device, _, kind = entry
            yield (
                {
                    "InstanceID": f"{settings.prefix}\\Boot{number:04X}",
                    "ElementName": "Boot Source",
                    "BootSourceType": kind,
                    "BootSourceDescription": description,
                    "FirmwareDevicePath": device,
                },
                entry,
            )

    def _security(self, settings: Settings) -> Iterator[tuple[dict[str, Any], Any]]:
        yield (
            {
                "InstanceID": f"{settings.prefix}\\{SECURITY}",
                "ElementName": "Security Settings",
                "TpmEnabled": settings.machine.tpm,
                "ShieldingRequested": settings.machine.shielded,
                "KsdEnabled": False,
                "EncryptStateAndVmMigrationTraffic": settings.machine.tpm,
            },
            settings.machine,
        )

    def _component(self, settings: Settings, middle: str) -> Iterator[tuple[dict[str, Any], Any]]:
        yield (
            {
                "InstanceID": f"{settings.prefix}\\{COMPONENTS[middle]}",
                "ElementName": middle,
                "ResourceType": 1,
                "EnabledState": settings.machine.integration.get(middle, 2),
            },
            settings.machine,
        )

    def _heartbeats(self) -> Iterator[tuple[dict[str, Any], Any]]:
        for machine in self.world.on_host(self.host.name):
            if not machine.runs:
                continue
            yield (
                {
                    "SystemCreationClassName": "Msvm_ComputerSystem",
                    "SystemName": machine.id,
                    "CreationClassName": "Msvm_HeartbeatComponent",
                    "DeviceID": f"Microsoft:{machine.id}\\{COMPONENTS['Heartbeat']}",
                    "ElementName": "Heartbeat",
                    "EnabledState": machine.integration.get("Heartbeat", 2),
                    "OperationalStatus": list(machine.heartbeat),
                },
                machine,
            )

    def _points(self) -> Iterator[tuple[dict[str, Any], Any]]:
        for machine in self.world.on_host(self.host.name):
            for point in machine.points:
                yield point_values(point), point

    # --- services, jobs, the host --------------------------------------------------------------

    def service_values(self, name: str) -> dict[str, Any]:
        """A service, of which each host has one."""
        return {
            "SystemCreationClassName": "Msvm_ComputerSystem",
            "SystemName": self.host.name.upper(),
            "CreationClassName": name,
            "Name": SERVICES[name],
            "ElementName": name,
            "EnabledState": 2,
            "Started": name not in self.host.stopped,
        }

    def _service(self, name: str) -> Iterator[tuple[dict[str, Any], Any]]:
        known = self.classes[name.lower()].properties
        yield {k: v for k, v in self.service_values(name).items() if k in known}, name

    def _jobs(self, class_name: str) -> Iterator[tuple[dict[str, Any], Any]]:
        for job in list(self.world.jobs.values()):
            if job.host == self.host.name and job.class_name == class_name:
                yield job_values(job), job

    def _switches(self) -> Iterator[tuple[dict[str, Any], Any]]:
        for name in self.host.switches:
            yield (
                {
                    **switch_values(self.host, name),
                    "ElementName": name,
                    "EnabledState": 2,
                    "OperationalStatus": [2],
                },
                name,
            )

    def _volumes(self) -> Iterator[tuple[dict[str, Any], Any]]:
        for volume in self.world.storage.seen_by(self.host.name):
            yield (
                {
                    "DeviceID": f"\\\\?\\Volume{{{volume.id}}}\\",
                    "Name": volume.windows.rstrip("\\") + "\\",
                    "FileSystem": volume.file_system,
                    "Capacity": volume.size,
                    "FreeSpace": volume.free,
                    "BlockSize": 4096,
                },
                volume,
            )

    def _system_of_host(self) -> Iterator[tuple[dict[str, Any], Any]]:
        now = self.world.clock.now() + timedelta(seconds=self.host.skew_s)
        yield (
            {
                "Caption": f"Microsoft Windows Server {self.host.version} Datacenter",
                "CSName": self.host.name.upper(),
                "Version": f"10.0.{BUILDS[self.host.version]}",
                "BuildNumber": BUILDS[self.host.version],
                "LocalDateTime": now,
                "LastBootUpTime": now - timedelta(days=3),
                "FreePhysicalMemory": self.host.memory_free // 1024,
                "TotalVisibleMemorySize": self.host.memory // 1024,
                "OSLanguage": self.host.language,
                "ProductType": 3,
            },
            self.host,
        )

    def _computer_of_host(self) -> Iterator[tuple[dict[str, Any], Any]]:
        yield (
            {
                "Name": self.host.name.upper(),
                "DNSHostName": self.host.name,
                "Domain": self.host.domain,
                "PartOfDomain": True,
                "NumberOfLogicalProcessors": self.host.processors,
                "TotalPhysicalMemory": self.host.memory,
            },
            self.host,
        )

    # --- the cluster ---------------------------------------------------------------------------

    def _members(self) -> list[Host]:
        hosts = self.world.hosts.values()
        return [h for h in hosts if self.host.cluster and h.cluster == self.host.cluster]

    def _cluster(self) -> Iterator[tuple[dict[str, Any], Any]]:
        if self.host.cluster:
            levels = {2016: 9, 2019: 10, 2022: 11, 2025: 12}
            level = min(levels[h.version] for h in self._members())
            yield {"Name": self.host.cluster, "ClusterFunctionalLevel": level}, self.host

    def _nodes(self) -> Iterator[tuple[dict[str, Any], Any]]:
        for number, host in enumerate(self._members(), 1):
            yield (
                {
                    "Name": host.name,
                    "Id": str(number),
                    "State": host.node_state,
                    "NodeDrainStatus": host.drain_status,
                },
                host,
            )

    def _clustered(self) -> Iterator[Machine]:
        names = {host.name for host in self._members()}
        for machine in self.world.machines.values():
            if machine.is_clustered and machine.host in names:
                yield machine

    def _groups(self) -> Iterator[tuple[dict[str, Any], Any]]:
        for machine in self._clustered():
            yield (
                {
                    "Name": machine.name,
                    "Id": machine.group_id,
                    "State": 0 if machine.runs else 1,
                    "OwnerNode": machine.host,
                    "GroupType": 111,
                    "Priority": machine.priority,
                },
                machine,
            )

    def _resources_of_cluster(self) -> Iterator[tuple[dict[str, Any], Any]]:
        for machine in self._clustered():
            yield (
                {
                    "Name": f"Virtual Machine {machine.name}",
                    "Id": machine.id.lower(),
                    "Type": "Virtual Machine",
                    "State": 2 if machine.runs else 3,
                    "OwnerGroup": machine.name,
                    "OwnerNode": machine.host,
                },
                machine,
            )

    def _shared_volumes(self) -> Iterator[tuple[dict[str, Any], Any]]:
        for volume in self.world.storage.seen_by(self.host.name):
            if self.host.cluster and volume.owner:
                yield {"Name": volume.windows, "VolumeName": volume.id, "FaultState": 0}, volume

    def _partitions(self) -> Iterator[tuple[dict[str, Any], Any]]:
        for volume in self.world.storage.seen_by(self.host.name):
            if self.host.cluster and volume.owner:
                yield (
                    {
                        "Path": volume.windows,
                        "VolumeGuid": volume.id,
                        "FileSystem": volume.file_system,
                        "TotalSize": volume.size // MiB,
                        "FreeSpace": volume.free // MiB,
                    },
                    volume,
                )


def point_values(point: ReferencePoint) -> dict[str, Any]:
    """A reference point as Msvm_VirtualSystemReferencePoint."""
    return {
        "InstanceID": point.instance_id,
        "VirtualSystemIdentifier": point.vm.id,
        "ReferencePointType": point.kind,
        "ConsistencyLevel": point.consistency,
        "HasAssociatedData": False,
        "VirtualDiskIdentifiers": [disk for disk, _ in point.disks],
        "ResilientChangeTrackingIdentifiers": [identifier for _, identifier in point.disks],
    }


def job_values(job: Job) -> dict[str, Any]:
    """A job as Msvm_ConcreteJob or Msvm_StorageJob."""
    is_well = job.state in (7, 32768)
    return {
        "InstanceID": job.id,
        "Name": job.caption,
        "ElementName": job.caption,
        "Caption": job.caption,
        "JobState": job.state,
        "JobType": job.kind,
        "JobStatus": "Job is completed successfully" if is_well else "Job is running",
        "TimeSubmitted": job.submitted,
        "PercentComplete": 100 if job.is_over else 10,
        "ErrorCode": job.error_code,
        "ErrorDescription": job.error_description or None,
        "OperationalStatus": [2] if not job.is_over or is_well else [6],
        "HealthState": 5,
        "Cancellable": False,
        "DeleteOnCompletion": False,
    }


def switch_values(host: Host, name: str) -> dict[str, Any]:
    """The key of a virtual switch."""
    import uuid

    identifier = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{host.name}/{name}")).upper()
    return {"CreationClassName": "Msvm_VirtualEthernetSwitch", "Name": identifier}


def is_recovery(settings: Settings) -> bool:
    """Whether they are a recovery snapshot's."""
    return settings.checkpoint is not None and settings.checkpoint.kind == RECOVERY
