"""The methods of CIM classes: what Invoke-CimMethod makes a host do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hyperv.world import building, parts, power, snapshots, vlans
from hyperv.world.embedded import MalformedError, parsed, rendered
from hyperv.world.errors import SHARING_VIOLATION, ReturnCode, WorkFailed, text_of
from hyperv.world.machines import (
    OFF,
    PAUSED,
    RECOVERY,
    RUNNING,
    SAVED,
    USER,
    Checkpoint,
    Machine,
    ReferencePoint,
)
from hyperv.world.rows import Row, Rows
from hyperv.world.world import Fault
from standby.disk import vhdx

JOB_STARTED = 4096
DENIED, BAD_PARAMETER, IN_USE, INVALID_STATE, NOT_FOUND = 32769, 32773, 32774, 32775, 32779

Outputs = dict[str, Any]
Implementation = Callable[["Methods", Row, Mapping[str, Any]], Outputs]
"""Takes the instance it is called on and the arguments, REF ones as the model's objects; gives the
out parameters, and ReturnValue where it is not 0."""


class Methods:
    """The methods of one host's classes."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.world = rows.world
        self.host = rows.host

    def knows(self, class_name: str, method: str) -> bool:
        """Whether the model can carry it out."""
        return (class_name, method) in _METHODS

    def call(self, row: Row, method: str, arguments: Mapping[str, Any]) -> Outputs:
        """Carry a method out."""
        machine = _machine_of(row, arguments)
        fault = self.world.take_fault(method, self.host.name, machine)
        if method in self.host.denied:
            return {"ReturnValue": DENIED}
        if fault is not None and fault.code is not None:
            return {"ReturnValue": fault.code}
        try:
            return _METHODS[row.kind.name, method](self, row, {**arguments, "fault": fault})
        except ReturnCode as exc:
            return {"ReturnValue": exc.code}

    def begin(
        self,
        kind: int,
        caption: str,
        work: Callable[[], list[Any]],
        arguments: Mapping[str, Any],
        machine: Machine | None,
        *,
        method: str,
        activity: int | None = None,
        class_name: str = "Msvm_ConcreteJob",
    ) -> Outputs:
        """A job that does the work: 4096 and a reference to it."""
        fault: Fault | None = arguments["fault"]
        seconds = 1.0 if machine is None else machine.faults.seconds.get(method, 1.0)
        job = self.world.start_job(
            self.host.name,
            kind,
            caption,
            work,
            seconds=seconds,
            vm=machine,
            class_name=class_name,
            fault=fault,
            activity=activity,
        )
        return {"ReturnValue": JOB_STARTED, "Job": job}

    def file(self, windows: str) -> Path:
        """The file that a script names; ReturnCode where the host has none."""
        path = self.world.storage.path(self.host.name, windows or "")
        if path is None or not path.is_file():
            raise ReturnCode(NOT_FOUND)
        return path

    # --- snapshots -----------------------------------------------------------------------------

    def create_snapshot(self, row: Row, arguments: Mapping[str, Any]) -> Outputs:
        """CreateSnapshot."""
        machine = arguments.get("AffectedSystem")
        kind = {2: USER, 32768: RECOVERY}.get(arguments.get("SnapshotType") or 0)
        if not isinstance(machine, Machine) or kind is None:
            raise ReturnCode(4)
        text = arguments.get("SnapshotSettings") or ""
        values: Mapping[str, Any] = {}
        if text:
            try:
                values = parsed(
                    text, self.rows.classes, "Msvm_VirtualSystemSnapshotSettingData"
                ).values
            except MalformedError as exc:
                raise ReturnCode(BAD_PARAMETER) from exc
        if machine.activity is not None:
            raise ReturnCode(INVALID_STATE)
        level = int(values.get("ConsistencyLevel") or 1)
        if level not in (1, 2):
            raise ReturnCode(BAD_PARAMETER)
        stamp = self.world.clock.now().strftime("(%m/%d/%Y - %I:%M:%S %p)")

        def work() -> list[Any]:
            return [
                snapshots.make_checkpoint(
                    self.world,
                    machine,
                    f"{machine.name} - {stamp}",
                    kind,
                    level,
                    ignores_others=bool(values.get("IgnoreNonSnapshottableDisks")),
                    backup_type=int(values.get("GuestBackupType") or 0),
                )
            ]

        return self.begin(
            70,
            "Creating Virtual Machine Snapshot",
            work,
            arguments,
            machine,
            method="CreateSnapshot",
            activity=32768,
        )

    def _checkpoint(self, arguments: Mapping[str, Any]) -> Checkpoint:
        checkpoint = arguments.get("AffectedSnapshot")
        if checkpoint is None or checkpoint.checkpoint is None:
            raise ReturnCode(4)
        found: Checkpoint = checkpoint.checkpoint
        if found.vm.activity is not None:
            raise ReturnCode(INVALID_STATE)
        return found

    def destroy_snapshot(self, row: Row, arguments: Mapping[str, Any]) -> Outputs:
        """DestroySnapshot."""
        checkpoint = self._checkpoint(arguments)

        def work() -> list[Any]:
            _check_there(checkpoint)
            snapshots.destroy(self.world, checkpoint)
            return []

        return self.begin(
            72,
            "Deleting Virtual Machine Snapshot",
            work,
            arguments,
            checkpoint.vm,
            method="DestroySnapshot",
            activity=32770,
        )

    def convert(self, row: Row, arguments: Mapping[str, Any]) -> Outputs:
        """ConvertToReferencePoint."""
        checkpoint = self._checkpoint(arguments)
        if checkpoint.kind != RECOVERY:
            raise ReturnCode(6)

        def work() -> list[Any]:
            _check_there(checkpoint)
            return [snapshots.convert(self.world, checkpoint)]

        return self.begin(
            200,
            "Converting Snapshot to Reference Point",
            work,
            arguments,
            checkpoint.vm,
            method="ConvertToReferencePoint",
            activity=32770,
        )

    def destroy_point(self, row: Row, arguments: Mapping[str, Any]) -> Outputs:
        """DestroyReferencePoint."""
        point = arguments.get("AffectedReferencePoint")
        if not isinstance(point, ReferencePoint):
            raise ReturnCode(BAD_PARAMETER)

        def work() -> list[Any]:
            if point in point.vm.points:
                snapshots.destroy_point(point)
            return []

        return self.begin(
            202,
            "Deleting Reference Point",
            work,
            arguments,
            point.vm,
            method="DestroyReferencePoint",
        )

    # --- virtual disk files --------------------------------------------------------------------

    def disk_settings(self, row: Row, arguments: Mapping[str, Any]) -> Outputs:
        """GetVirtualHardDiskSettingData."""
        path = self.file(arguments.get("Path"))
        self._check_node(path)
        storage = self.world.storage
        odd = storage.oddities.get(path)
        if odd is not None:
            values: dict[str, Any] = {
                "Type": odd.kind,
                "Format": odd.format,
                "MaxInternalSize": odd.size,
                "BlockSize": 2 << 20,
                "LogicalSectorSize": 512,
                "PhysicalSectorSize": 512,
                "VirtualDiskId": odd.disk_id,
            }
        else:
            try:
                info = vhdx.read_info(path)
            except Exception as exc:  # any damage: the host says no more than that it failed
                raise ReturnCode(32768) from exc
            values = {
                "Type": 4 if info.has_parent else 2 if info.is_fixed else 3,
                "Format": 3,
                "MaxInternalSize": info.virtual_size,
                "BlockSize": info.block_size,
                "LogicalSectorSize": info.logical_sector_size,
                "PhysicalSectorSize": info.physical_sector_size,
                "VirtualDiskId": info.page83.upper(),
            }
            if info.has_parent and not any(handle.path == path for handle in storage.handles):
                with contextlib.suppress(power.FileRefused):
                    power.learned_chain(self.world, self.host.name, path)
            if info.has_parent and path in storage.parents:
                parent = storage.parents[path]
                values["ParentPath"] = storage.windows(self.host.name, parent)
                values["ParentIdentifier"] = info.locator["parent_linkage"].strip("{}").upper()
        values["Path"] = storage.windows(self.host.name, path)
        values["ElementName"] = values["Path"]
        kind = self.rows.classes["msvm_virtualharddisksettingdata"]
        return {"SettingData": rendered(kind, values)}

    def disk_state(self, row: Row, arguments: Mapping[str, Any]) -> Outputs:
        """GetVirtualHardDiskState."""
        path = self.file(arguments.get("Path"))
        self._check_node(path)
        values = {
            "FileSize": path.stat().st_size,
            "InUse": any(handle.path == path for handle in self.world.storage.handles),
            "PhysicalSectorSize": 4096,
            "Alignment": 0,
            "FragmentationPercentage": 0,
            "Timestamp": self.world.clock.now(),
        }
        return {"State": rendered(self.rows.classes["msvm_virtualharddiskstate"], values)}

    def _check_node(self, path: Path) -> None:
        """A file that a VM of another node has open is in use here."""
        for machine in self.world.machines.values():
            if not machine.runs or machine.host == self.host.name:
                continue
            if not self.world.hosts[machine.host].is_up:
                continue
            for drive in machine.disks():
                if drive.path is not None and path in self.world.storage.chain(drive.path):
                    raise ReturnCode(IN_USE)

    def changes(self, row: Row, arguments: Mapping[str, Any]) -> Outputs:
        """GetVirtualDiskChanges."""
        path = self.file(arguments.get("Path"))
        if arguments.get("TargetSnapshotId"):
            raise ReturnCode(BAD_PARAMETER)
        offset, length = arguments.get("ByteOffset"), arguments.get("ByteLength")
        limit = arguments.get("LimitId")
        if offset is None or not length or not limit or len(limit) > 256:
            raise ReturnCode(BAD_PARAMETER)
        try:
            drive, until = snapshots.tracked(self.world, self.host.name, path, limit)
        except snapshots.NoChanges as exc:
            raise ReturnCode(exc.code) from exc
        if offset + length > drive.tracker.size:
            raise ReturnCode(BAD_PARAMETER)
        answer = drive.tracker.changes(limit, until, offset, length)
        return {
            "ProcessedByteLength": answer.processed,
            "ChangedByteOffsets": [start for start, _ in answer.ranges],
            "ChangedByteLengths": [count for _, count in answer.ranges],
        }

    # --- VMs -----------------------------------------------------------------------------------

    def change_state(self, row: Row, arguments: Mapping[str, Any]) -> Outputs:
        """RequestStateChange of a VM: 2 start, 3 off, 9 pause, 11 reset."""
        machine = row.of
        wanted = arguments.get("RequestedState")
        if not isinstance(machine, Machine) or wanted not in (2, 3, 9, 11):
            raise ReturnCode(INVALID_STATE)
        if machine.activity is not None or machine.state not in _FROM[int(wanted)]:
            raise ReturnCode(INVALID_STATE)

        def work() -> list[Any]:
            if wanted == 11:
                self.world.turn_off(machine)
            if wanted in (2, 11):
                self.world.start(machine)
            else:
                self.world.turn_off(machine, int(wanted))
            return []

        return self.begin(
            12, "Changing State", work, arguments, machine, method="RequestStateChange"
        )

    def shut_down(self, row: Row, arguments: Mapping[str, Any]) -> Outputs:
        """InitiateShutdown of a VM's guest."""
        force = bool(arguments.get("Force"))
        return {"ReturnValue": power.shut_down(self.world, row.of, force=force)}

    def create_disk(self, row: Row, arguments: Mapping[str, Any]) -> Outputs:
        """CreateVirtualHardDisk: VHDX files, new ones and children."""
        text = arguments.get("VirtualDiskSettingData") or ""
        try:
            values = parsed(text, self.rows.classes, "Msvm_VirtualHardDiskSettingData").values
        except MalformedError as exc:
            raise ReturnCode(BAD_PARAMETER) from exc
        if values.get("Format") != 3 or values.get("Type") not in (2, 3, 4):
            raise ReturnCode(BAD_PARAMETER)
        path = self.new_file(values.get("Path") or "")
        is_child = values["Type"] == 4
        parent = self.file(values.get("ParentPath") or "") if is_child else None
        size = values.get("MaxInternalSize") or 0
        if parent is None and not size:
            raise ReturnCode(BAD_PARAMETER)

        def work() -> list[Any]:
            self.make_disk(path, parent, size, fixed=values["Type"] == 2)
            return []

        return self.begin(
            10,
            "Creating Virtual Hard Disk",
            work,
            arguments,
            None,
            method="CreateVirtualHardDisk",
            class_name="Msvm_StorageJob",
        )

    def new_file(self, windows: str) -> Path:
        """Where a file is to be that is not there yet, in a folder that is."""
        path = self.world.storage.path(self.host.name, windows)
        if path is None or not path.parent.is_dir():
            raise ReturnCode(NOT_FOUND)
        if path.exists():
            raise ReturnCode(BAD_PARAMETER)
        return path

    def make_disk(self, path: Path, parent: Path | None, size: int, *, fixed: bool) -> None:
        """A real VHDX; WorkFailed where its parent does not take a child now."""
        storage = self.world.storage
        if parent is None:
            storage.make_disk(path, size, fixed=fixed)
            return
        try:
            power.learned_chain(self.world, self.host.name, parent)
        except power.FileRefused as exc:
            raise WorkFailed(32768, str(exc)) from exc
        for handle in storage.handles:
            if handle.path == parent and (handle.writes or "read" not in handle.shares):
                raise WorkFailed(32768, text_of(SHARING_VIOLATION))
        storage.make_child(self.host.name, parent, path)


def _check_there(checkpoint: Checkpoint) -> None:
    if checkpoint not in checkpoint.vm.checkpoints:
        raise WorkFailed(32768, "The snapshot does not exist any more.")


def _machine_of(row: Row, arguments: Mapping[str, Any]) -> Machine | None:
    for of in (row.of, *arguments.values()):
        if isinstance(of, Machine):
            return of
        machine = getattr(of, "vm", None) or getattr(of, "machine", None)
        if isinstance(machine, Machine):
            return machine
    return None


_FROM = {2: (OFF, SAVED, PAUSED), 3: (RUNNING, PAUSED), 9: (RUNNING,), 11: (RUNNING, PAUSED)}
"""RequestedState to the states that it is possible in."""

_MANAGEMENT = "Msvm_VirtualSystemManagementService"
_SNAPSHOTS = "Msvm_VirtualSystemSnapshotService"
_POINTS = "Msvm_VirtualSystemReferencePointService"
_IMAGES = "Msvm_ImageManagementService"
_METHODS: dict[tuple[str, str], Implementation] = {
    (_SNAPSHOTS, "CreateSnapshot"): Methods.create_snapshot,
    (_SNAPSHOTS, "DestroySnapshot"): Methods.destroy_snapshot,
    (_SNAPSHOTS, "ConvertToReferencePoint"): Methods.convert,
    (_POINTS, "DestroyReferencePoint"): Methods.destroy_point,
    (_IMAGES, "GetVirtualHardDiskSettingData"): Methods.disk_settings,
    (_IMAGES, "GetVirtualHardDiskState"): Methods.disk_state,
    (_IMAGES, "GetVirtualDiskChanges"): Methods.changes,
    (_IMAGES, "CreateVirtualHardDisk"): Methods.create_disk,
    ("Msvm_ComputerSystem", "RequestStateChange"): Methods.change_state,
    ("Msvm_ShutdownComponent", "InitiateShutdown"): Methods.shut_down,
    (_MANAGEMENT, "DefineSystem"): building.define,
    (_MANAGEMENT, "ModifySystemSettings"): building.modify,
    (_MANAGEMENT, "DestroySystem"): building.destroy,
    (_MANAGEMENT, "AddBootSourceSettings"): building.add_boot_sources,
    (_MANAGEMENT, "RemoveBootSourceSettings"): building.remove_boot_sources,
    (_MANAGEMENT, "AddResourceSettings"): parts.add,
    (_MANAGEMENT, "ModifyResourceSettings"): parts.modify,
    (_MANAGEMENT, "RemoveResourceSettings"): parts.remove,
    (_MANAGEMENT, "AddFeatureSettings"): vlans.add_features,
    (_MANAGEMENT, "ModifyFeatureSettings"): vlans.modify_features,
    (_MANAGEMENT, "RemoveFeatureSettings"): vlans.remove_features,
}
