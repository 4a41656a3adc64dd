"""What each class of a host has for instances: the model's objects as plain values of properties.

A row is (class, values, object).  A host has more rows than its VMs: templates of every kind of
setting (`Microsoft:Definition\\…`), the settings of checkpoints beside those of the VMs, and the
host itself as a computer system.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from hyperv.world.machines import SAVED, Host, Machine
from hyperv.world.rows_base import (
    COMPONENTS,
    DEFINITION,
    LIVE,
    PLANNED,
    SERVICES,
    Found,
    Row,
    Settings,
)
from hyperv.world.rows_hardware import HardwareRows
from hyperv.world.rows_host import HostRows, job_values, point_values
from hyperv.world.world import World

__all__ = ["COMPONENTS", "Row", "Rows", "Settings", "job_values", "point_values"]


class Rows(HardwareRows, HostRows):
    """All instances of one host, made when asked for."""

    def __init__(self, world: World, host: Host) -> None:
        super().__init__(world, host)
        self._makers: dict[str, Callable[[], Found]] = {
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
            "Msvm_HeartbeatComponent": lambda: self._devices("Heartbeat"),
            "Msvm_ShutdownComponent": lambda: self._devices("Shutdown"),
            "Msvm_KvpExchangeComponent": lambda: self._devices("KvpExchange"),
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

    def _of_settings(
        self, maker: Callable[[Settings], Found], template: str = ""
    ) -> Callable[[], Found]:
        def all_of_them() -> Found:
            if template:
                for kind in ("Default", "Minimum", "Maximum", "Increment"):
                    yield {"InstanceID": f"{DEFINITION}{template}\\{kind}"}, None
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

    def _computers(self) -> Found:
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

    def _planned(self) -> Found:
        for machine in self.world.on_host(self.host.name):
            if machine.is_planned:
                values = self.computer(machine) | {
                    "CreationClassName": "Msvm_PlannedComputerSystem"
                }
                known = self.classes["msvm_plannedcomputersystem"].properties
                yield {k: v for k, v in values.items() if k in known}, machine

    def _system(self, settings: Settings) -> Found:
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
            "BootOrder": machine.boot_order if machine.generation == 1 else [],
            "NetworkBootPreferredProtocol": 4096,
        }
        values.update(machine.roots)
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
