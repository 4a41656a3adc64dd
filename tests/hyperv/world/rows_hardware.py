"""The rows of a VM's hardware: storage, processors, memory, adapters, integration components."""

from __future__ import annotations

import zlib
from typing import Any

from hyperv.world.machines import Adapter, Controller, Drive
from hyperv.world.rows_base import (
    COMPONENTS,
    DISK_DRIVE,
    DVD_DRIVE,
    IDE,
    MEMORY,
    PHYSICAL,
    PROCESSOR,
    SCSI,
    SECURITY,
    VIRTUAL_DISK,
    VIRTUAL_DVD,
    Found,
    RowsBase,
    Settings,
    switch_values,
)
from standby.units import MiB


class HardwareRows(RowsBase):
    """Storage and all else that belongs to settings."""

    # --- storage -------------------------------------------------------------------------------

    def _controller_values(self, settings: Settings, controller: Controller) -> dict[str, Any]:
        name, number, sub_type = IDE if controller.kind == "IDE" else SCSI
        return {
            "InstanceID": f"{settings.prefix}\\{controller.element_id()}",
            "ElementName": f"{name} {controller.number}" if number == 5 else name,
            "ResourceType": number,
            "ResourceSubType": sub_type,
            "Address": str(controller.number) if controller.kind == "IDE" else "",
            "VirtualSystemIdentifiers": ["{" + controller.instance + "}"],
        }

    def _resources(self, settings: Settings) -> Found:
        for controller in settings.machine.controllers:
            yield self._controller_values(settings, controller), controller
        for drive, _ in settings.drives():
            yield self._drive_values(settings, drive), drive

    def _drive_values(self, settings: Settings, drive: Drive) -> dict[str, Any]:
        kinds = {"disk": DISK_DRIVE, "physical": PHYSICAL, "dvd": DVD_DRIVE}
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

    def _storage(self, settings: Settings) -> Found:
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

    def _processor(self, settings: Settings) -> Found:
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
                "LimitProcessorFeatures": settings.machine.limits_features,
                "ExposeVirtualizationExtensions": settings.machine.nested,
            },
            settings.machine,
        )

    def _memory(self, settings: Settings) -> Found:
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

    def _adapters(self, settings: Settings) -> Found:
        for adapter in settings.machine.adapters:
            if not adapter.is_legacy:
                yield self._adapter_values(settings, adapter), adapter

    def _legacy(self, settings: Settings) -> Found:
        for adapter in settings.machine.adapters:
            if adapter.is_legacy:
                yield self._adapter_values(settings, adapter), adapter

    def _connections(self, settings: Settings) -> Found:
        for adapter in settings.machine.adapters:
            if not adapter.has_connection:
                continue
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

    def _vlans(self, settings: Settings) -> Found:
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

    def _boot(self, settings: Settings) -> Found:
        for entry in settings.machine.boot_entries:
            description, device, other, kind = entry
            number = zlib.crc32(repr(entry).encode())
            yield (
                {
                    "InstanceID": f"{settings.prefix}\\Boot{number:08X}",
                    "ElementName": "Boot Source",
                    "BootSourceType": kind,
                    "BootSourceDescription": description,
                    "FirmwareDevicePath": device,
                    "OtherLocation": other if kind == 3 else None,
                },
                entry,
            )

    def _security(self, settings: Settings) -> Found:
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

    def _component(self, settings: Settings, middle: str) -> Found:
        yield (
            {
                "InstanceID": f"{settings.prefix}\\{COMPONENTS[middle]}",
                "ElementName": middle,
                "ResourceType": 1,
                "EnabledState": settings.machine.integration.get(middle, 2),
            },
            settings.machine,
        )
