"""The Hyper-V module's commands about drives, adapters and disk files; rights and attributes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from hyperv.dialect.values import PSEnum, PSObject
from hyperv.dialect.world import Call, Cmdlet, DotNetType
from hyperv.world import building, parts, vlans
from hyperv.world.binding import Bound
from hyperv.world.errors import ReturnCode
from hyperv.world.file_types import file_types
from hyperv.world.machines import OFF, Adapter, Controller, Drive, Machine
from hyperv.world.storage import Storage
from hyperv.world.vm_commands import SPACE, Commands, Failed, listed


class DriveObject(PSObject):
    """What Get-VMHardDiskDrive emits."""

    def __init__(self, storage: Storage, machine: Machine, drive: Drive) -> None:
        kind = drive.controller.kind
        path = "" if drive.path is None else storage.windows(machine.host, drive.path)
        properties = {
            "Id": f"Microsoft:{machine.id}\\{drive.element_id()}\\D",
            "Path": path,
            "DiskNumber": drive.disk_number if drive.kind == "physical" else None,
            "ControllerType": PSEnum(f"{SPACE}.ControllerType", kind, int(kind == "SCSI")),
            "ControllerNumber": drive.controller.number,
            "ControllerLocation": drive.location,
            "VMId": uuid.UUID(machine.id),
            "VMName": machine.name,
        }
        super().__init__(
            (f"{SPACE}.HardDiskDrive", "System.Object"), properties, read_only=properties
        )
        self.machine = machine
        self.drive = drive
        self.boot_place = drive.place


class AdapterObject(PSObject):
    """What Get-VMNetworkAdapter emits."""

    def __init__(self, machine: Machine, adapter: Adapter) -> None:
        properties = {
            "Id": f"Microsoft:{machine.id}\\{adapter.instance}",
            "Name": adapter.name,
            "MacAddress": adapter.mac,
            "DynamicMacAddressEnabled": not adapter.is_static,
            "SwitchName": adapter.switch or None,
            "Connected": bool(adapter.switch),
            "IsLegacy": adapter.is_legacy,
            "VMId": uuid.UUID(machine.id),
            "VMName": machine.name,
        }
        super().__init__(
            (f"{SPACE}.VMNetworkAdapter", "System.Object"), properties, read_only=properties
        )
        self.machine = machine
        self.adapter = adapter
        self.boot_place = adapter.instance


class DeviceCommands(Commands):
    """Drives, adapters, files."""

    def cmdlets(self) -> dict[str, Cmdlet]:
        """By name."""
        place = "ControllerType ControllerNumber ControllerLocation"
        adapters = "VM VMName Name VMNetworkAdapter"
        return {
            **self.made(
                {
                    "Get-VMHardDiskDrive": (self.get_drives, f"VM VMName {place}"),
                    "Add-VMHardDiskDrive": (
                        self.add_drive,
                        f"VM VMName {place} Path AllowUnverifiedPaths",
                    ),
                    "Set-VMHardDiskDrive": (
                        self.set_drive,
                        f"VMHardDiskDrive VMName {place} Path AllowUnverifiedPaths",
                    ),
                    "Remove-VMHardDiskDrive": (
                        self.remove_drive,
                        f"VMHardDiskDrive VMName {place}",
                    ),
                    "Add-VMScsiController": (self.add_controller, "VM VMName"),
                    "Get-VMNetworkAdapter": (self.get_adapters, "VM VMName Name IsLegacy"),
                    "Add-VMNetworkAdapter": (
                        self.add_adapter,
                        "VM VMName Name IsLegacy SwitchName StaticMacAddress DynamicMacAddress",
                    ),
                    "Set-VMNetworkAdapter": (
                        self.set_adapter,
                        f"{adapters} StaticMacAddress DynamicMacAddress",
                    ),
                    "Rename-VMNetworkAdapter": (self.rename_adapter, f"{adapters} NewName"),
                    "Remove-VMNetworkAdapter": (self.remove_adapter, adapters),
                    "Connect-VMNetworkAdapter": (self.connect, f"{adapters} SwitchName"),
                    "Disconnect-VMNetworkAdapter": (self.disconnect, adapters),
                    "Set-VMNetworkAdapterVlan": (
                        self.set_vlan,
                        "VMNetworkAdapter VM VMName VMNetworkAdapterName Access VlanId Untagged "
                        "Trunk NativeVlanId AllowedVlanIdList",
                    ),
                    "New-VHD": (
                        self.new_disk,
                        "Path ParentPath Differencing SizeBytes Dynamic Fixed",
                    ),
                }
            ),
            "icacls.exe": self.icacls,
        }

    # --- drives --------------------------------------------------------------------------------

    def _drives(self, bound: Bound) -> list[tuple[Machine, Drive]]:
        given = listed(bound.get("VMHardDiskDrive"))
        if given:
            for each in given:
                if each.drive not in each.machine.drives:
                    raise Failed("The hard disk drive is not there any more.", "ObjectNotFound")
            return [(each.machine, each.drive) for each in given]
        names = {"ControllerNumber": "number", "ControllerType": "kind"}
        return [
            (machine, drive)
            for machine in self.machines(bound)
            for drive in machine.drives
            if drive.kind != "dvd"
            and bound.get("ControllerLocation") in (None, drive.location)
            and all(
                bound.get(name) in (None, getattr(drive.controller, attribute))
                for name, attribute in names.items()
            )
        ]

    def get_drives(self, bound: Bound) -> Iterator[object]:
        """Get-VMHardDiskDrive."""
        for machine, drive in self._drives(bound):
            yield DriveObject(self.world.storage, machine, drive)

    def _check_cluster(self, bound: Bound, machine: Machine) -> None:
        path = self.world.storage.path(self.host.name, bound.get("Path") or "")
        if path is None or not machine.is_clustered or bound.get("AllowUnverifiedPaths"):
            return
        shared = [v for v in self.world.storage.seen_by(self.host.name) if v.owner]
        if not any(path.is_relative_to(volume.folder) for volume in shared):
            raise Failed("The path is not one that the cluster has.", "InvalidOperation")

    def add_drive(self, bound: Bound) -> Iterator[object]:
        """Add-VMHardDiskDrive: without a type IDE is tried first."""
        for machine in self.machines(bound):
            self._check_cluster(bound, machine)
            controller = self._free_controller(bound, machine)
            location = bound.get("ControllerLocation")
            if location is None:
                location = parts.free_place(machine, controller)
            drive = parts.add_drive(machine, controller, location, "disk")
            if bound.get("Path"):
                try:
                    parts.insert(self.methods, machine, drive, bound.get("Path"))
                except ReturnCode:
                    machine.drives.remove(drive)
                    raise
            building.sync_boot(machine)
            yield DriveObject(self.world.storage, machine, drive)

    def _free_controller(self, bound: Bound, machine: Machine) -> Controller:
        for controller in machine.controllers:
            if bound.get("ControllerType") not in (None, controller.kind):
                continue
            if bound.get("ControllerNumber") not in (None, controller.number):
                continue
            taken = sum(d.controller is controller for d in machine.drives)
            limit = parts.SCSI_PLACES if controller.kind == "SCSI" else parts.IDE_PLACES
            if taken < limit or bound.get("ControllerNumber") is not None:
                return controller
        raise Failed("There is no such controller.", "ObjectNotFound")

    def set_drive(self, bound: Bound) -> Iterator[object]:
        """Set-VMHardDiskDrive -Path: another file in a drive."""
        for machine, drive in self._drives(bound):
            self._check_cluster(bound, machine)
            if machine.state != OFF and drive.controller.kind == "IDE":
                raise Failed("The virtual machine is not off.", "InvalidOperation")
            if machine.checkpoints:
                raise Failed("The virtual machine has checkpoints.", "InvalidOperation")
            if bound.get("Path"):
                parts.insert(self.methods, machine, drive, bound.get("Path"))
            yield DriveObject(self.world.storage, machine, drive)

    def remove_drive(self, bound: Bound) -> Iterator[object]:
        """Remove-VMHardDiskDrive."""
        for machine, drive in self._drives(bound):
            if machine.state != OFF and drive.controller.kind == "IDE":
                raise Failed("The virtual machine is not off.", "InvalidOperation")
            machine.drives.remove(drive)
            building.sync_boot(machine)
            self.world.reopen(machine)
            yield DriveObject(self.world.storage, machine, drive)

    def add_controller(self, bound: Bound) -> Iterator[object]:
        """Add-VMScsiController."""
        for machine in self.machines(bound):
            controller = parts.add_controller(machine, [])
            values = {"ControllerNumber": controller.number, "VMName": machine.name}
            yield PSObject((f"{SPACE}.VMScsiController", "System.Object"), values)

    # --- adapters ------------------------------------------------------------------------------

    def _adapters(self, bound: Bound, name: str = "Name") -> list[AdapterObject]:
        given = listed(bound.get("VMNetworkAdapter"))
        for each in given:
            if each.adapter not in each.machine.adapters:
                raise Failed("The network adapter is not there any more.", "ObjectNotFound")
        if given:
            return given
        names = [str(each).lower() for each in listed(bound.get(name))]
        machines = Bound.__new__(Bound)
        machines.values = {k: v for k, v in bound.values.items() if k in ("VM", "VMName")}
        return [
            AdapterObject(machine, adapter)
            for machine in self.machines(machines)
            for adapter in machine.adapters
            if (not names or adapter.name.lower() in names)
            and bound.get("IsLegacy") in (None, adapter.is_legacy)
        ]

    def get_adapters(self, bound: Bound) -> Iterator[object]:
        """Get-VMNetworkAdapter."""
        yield from self._adapters(bound)

    def add_adapter(self, bound: Bound) -> Iterator[object]:
        """Add-VMNetworkAdapter."""
        is_legacy = bool(bound.get("IsLegacy"))
        values: dict[str, Any] = {
            "ResourceSubType": parts.LEGACY if is_legacy else parts.SYNTHETIC,
            "ElementName": bound.get("Name") or "Network Adapter",
        }
        if bound.get("StaticMacAddress"):
            values["Address"] = _mac(bound)
            values["StaticMacAddress"] = True
        machines = Bound.__new__(Bound)
        machines.values = {k: v for k, v in bound.values.items() if k in ("VM", "VMName")}
        for machine in self.machines(machines):
            switch = bound.get("SwitchName")
            if switch:
                self._check_switch(switch)
            adapter = parts.add_adapter(machine, values, is_legacy=is_legacy)
            adapter.has_connection, adapter.switch = True, switch or ""
            building.sync_boot(machine)
            yield AdapterObject(machine, adapter)

    def _check_switch(self, name: str) -> None:
        if name not in self.host.switches:
            raise Failed(
                f'Hyper-V was unable to find a virtual switch with name "{name}".',
                "InvalidArgument",
            )

    def set_adapter(self, bound: Bound) -> Iterator[object]:
        """Set-VMNetworkAdapter: its MAC address, while the VM is off."""
        for each in self._adapters(bound):
            wanted = {"StaticMacAddress": False}
            if bound.get("StaticMacAddress"):
                wanted = {"StaticMacAddress": True, "Address": _mac(bound)}
            if each.machine.state != OFF:
                raise Failed("The virtual machine is not off.", "InvalidOperation")
            parts.change_adapter(each.adapter, wanted)
            yield each

    def rename_adapter(self, bound: Bound) -> Iterator[object]:
        """Rename-VMNetworkAdapter."""
        for each in self._adapters(bound):
            each.adapter.name = bound.get("NewName")
            yield each

    def remove_adapter(self, bound: Bound) -> Iterator[object]:
        """Remove-VMNetworkAdapter."""
        for each in self._adapters(bound):
            is_fixed = each.adapter.is_legacy or each.machine.generation == 1
            if is_fixed and each.machine.state != OFF:
                raise Failed("The virtual machine is not off.", "InvalidOperation")
            each.machine.adapters.remove(each.adapter)
            building.sync_boot(each.machine)
            yield each

    def connect(self, bound: Bound) -> Iterator[object]:
        """Connect-VMNetworkAdapter."""
        self._check_switch(bound.get("SwitchName"))
        for each in self._adapters(bound):
            each.adapter.switch, each.adapter.has_connection = bound.get("SwitchName"), True
            yield each

    def disconnect(self, bound: Bound) -> Iterator[object]:
        """Disconnect-VMNetworkAdapter."""
        for each in self._adapters(bound):
            each.adapter.switch = ""
            yield each

    def set_vlan(self, bound: Bound) -> Iterator[object]:
        """Set-VMNetworkAdapterVlan: access, trunk or none."""
        for each in self._adapters(bound, "VMNetworkAdapterName"):
            adapter = each.adapter
            if bound.get("Untagged"):
                adapter.mode, adapter.vlan = 0, 0
            elif bound.get("Access"):
                vlans.set_vlan(
                    adapter, {"OperationMode": 1, "AccessVlanId": bound.get("VlanId") or 0}
                )
            elif bound.get("Trunk"):
                allowed = [int(n) for n in str(bound.get("AllowedVlanIdList")).split(",")]
                native = bound.get("NativeVlanId") or 0
                values = {"NativeVlanId": native, "TrunkVlanIdArray": allowed}
                vlans.set_vlan(adapter, {"OperationMode": 2, **values})
            else:
                raise Failed("Neither -Access nor -Trunk nor -Untagged is given.")
            yield each

    # --- files ---------------------------------------------------------------------------------

    def new_disk(self, bound: Bound) -> Iterator[object]:
        """New-VHD, VHDX only."""
        for windows in listed(bound.get("Path")):
            if not windows.lower().endswith((".vhdx", ".avhdx")):
                raise NotImplementedError("the model makes VHDX files only")
            path = self.methods.new_file(windows)
            parent = None
            if bound.get("ParentPath"):
                parent = self.methods.file(bound.get("ParentPath"))
            fixed = bool(bound.get("Fixed"))
            self.methods.make_disk(path, parent, bound.get("SizeBytes") or 0, fixed=fixed)
            values = {"Path": windows, "ParentPath": bound.get("ParentPath") or ""}
            yield PSObject(("Microsoft.Vhd.PowerShell.VirtualHardDisk", "System.Object"), values)

    def icacls(self, call: Call) -> Iterator[object]:
        """icacls.exe PATH /grant *SID:(OI)(CI)F: full rights, inherited by all that is below."""
        arguments = [a for a in call.parameters["arguments"] if a.lower() not in ("/q", "/t", "/c")]
        if len(arguments) != 3 or arguments[1].lower() != "/grant":
            raise NotImplementedError(f"the model has no icacls.exe {' '.join(arguments)}")
        path = self.world.storage.path(self.host.name, arguments[0])
        if path is None or not path.exists():
            call.exit_code = 2
            yield f"{arguments[0]}: The system cannot find the file specified."
            return
        sid, _, rights = arguments[2].partition(":")
        if not sid.startswith("*S-1-") or rights not in ("F", "(F)", "(OI)(CI)F", "(OI)(CI)(F)"):
            call.exit_code = 87
            yield f'Invalid parameter "{arguments[2]}"'
            return
        if path.is_dir() and "(OI)" not in rights:
            raise NotImplementedError("rights to a folder that nothing inherits")
        self.world.storage.grants.setdefault(path, set()).add(sid[1:])
        yield "Successfully processed 1 files; Failed processing 0 files"

    def types(self) -> dict[str, DotNetType]:
        """[IO.File], [IO.Directory]."""
        return file_types(self.world, self.host)


def _mac(bound: Bound) -> str:
    return str(bound.get("StaticMacAddress")).replace("-", "").replace(":", "").upper()
