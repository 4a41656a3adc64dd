"""Which instances belong to which, and by what association."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hyperv.world.machines import Adapter, Job, Machine, ReferencePoint
from hyperv.world.rows import COMPONENTS, Row, Rows, Settings, point_values

Found = Iterator[tuple[str, Row]]

ASSOCIATIONS = (
    "Msvm_SettingsDefineState",
    "Msvm_SnapshotOfVirtualSystem",
    "Msvm_LastAppliedSnapshot",
    "Msvm_MostCurrentSnapshotInBranch",
    "Msvm_SystemDevice",
    "Msvm_ReferencePointOfVirtualSystem",
    "Msvm_VirtualSystemSettingDataComponent",
    "Msvm_ParentChildSettingData",
    "Msvm_AffectedJobElement",
    "Msvm_EthernetPortSettingDataComponent",
)
"""Those that the model has; any other name is an error, never an empty answer."""


def associated(rows: Rows, row: Row) -> Found:
    """(association, instance) of all that belongs to one instance, each once per association."""
    finder = _FINDERS.get(row.kind.name)
    if finder is None:
        raise KeyError(row.kind.name)
    yield from finder(rows, row)


def _system_row(rows: Rows, settings: Settings) -> Row:
    wanted = settings.prefix
    for row in rows.of("Msvm_VirtualSystemSettingData"):
        if row.values["InstanceID"] == wanted:
            return row
    raise KeyError(wanted)


def _computer_row(rows: Rows, machine: Machine) -> Row:
    kind = rows.classes["msvm_computersystem"]
    return Row(kind, rows.computer(machine), machine)


def _of_computer(rows: Rows, row: Row) -> Found:
    machine = row.of
    if not isinstance(machine, Machine):
        return
    yield "Msvm_SettingsDefineState", _system_row(rows, Settings(machine))
    for checkpoint in machine.checkpoints:
        settings = Settings(machine, checkpoint)
        yield "Msvm_SnapshotOfVirtualSystem", _system_row(rows, settings)
    if machine.checkpoints:
        newest = Settings(machine, machine.checkpoints[-1])
        yield "Msvm_MostCurrentSnapshotInBranch", _system_row(rows, newest)
    if machine.last_applied is not None:
        applied = Settings(machine, machine.last_applied)
        yield "Msvm_LastAppliedSnapshot", _system_row(rows, applied)
    for middle in ("Heartbeat", "Shutdown", "KvpExchange"):
        for found in rows.of(f"Msvm_{middle}Component"):
            if found.of is machine:
                yield "Msvm_SystemDevice", found
    for point in machine.points:
        yield "Msvm_ReferencePointOfVirtualSystem", _point_row(rows, point)


def _point_row(rows: Rows, point: ReferencePoint) -> Row:
    kind = rows.classes["msvm_virtualsystemreferencepoint"]
    return Row(kind, point_values(point), point)


def _of_system(rows: Rows, row: Row) -> Found:
    settings = row.of
    machine, checkpoint = settings.machine, settings.checkpoint
    for part in rows.parts(settings):
        yield "Msvm_VirtualSystemSettingDataComponent", part
    if checkpoint is None:
        yield "Msvm_SettingsDefineState", _computer_row(rows, machine)
    else:
        yield "Msvm_SnapshotOfVirtualSystem", _computer_row(rows, machine)
        if machine.last_applied is checkpoint:
            yield "Msvm_LastAppliedSnapshot", _computer_row(rows, machine)
        if checkpoint.parent is not None:
            above = Settings(machine, checkpoint.parent)
            yield "Msvm_ParentChildSettingData", _system_row(rows, above)
    for other in machine.checkpoints:
        if other.parent is checkpoint and checkpoint is not None:
            below = Settings(machine, other)
            yield "Msvm_ParentChildSettingData", _system_row(rows, below)


def _of_job(rows: Rows, row: Row) -> Found:
    job = row.of
    assert isinstance(job, Job)
    for affected in job.affected:
        if isinstance(affected, Machine):
            if affected.id in rows.world.machines and affected.host == rows.host.name:
                yield "Msvm_AffectedJobElement", _computer_row(rows, affected)
        elif isinstance(affected, ReferencePoint):
            if affected in affected.vm.points:
                yield "Msvm_AffectedJobElement", _point_row(rows, affected)
        elif affected in affected.vm.checkpoints and affected.vm.host == rows.host.name:
            settings = Settings(affected.vm, affected)
            yield "Msvm_AffectedJobElement", _system_row(rows, settings)


def _of_point(rows: Rows, row: Row) -> Found:
    yield "Msvm_ReferencePointOfVirtualSystem", _computer_row(rows, row.of.vm)


def _of_part(rows: Rows, row: Row) -> Found:
    """The settings object that a part belongs to, by the head of its InstanceID."""
    head = str(row.values["InstanceID"]).split("\\")[0]
    for system in rows.of("Msvm_VirtualSystemSettingData"):
        if system.values["InstanceID"] == head:
            yield "Msvm_VirtualSystemSettingDataComponent", system
    if row.kind.name == "Msvm_EthernetPortAllocationSettingData" and isinstance(row.of, Adapter):
        for vlan in rows.of("Msvm_EthernetSwitchPortVlanSettingData"):
            if str(vlan.values["InstanceID"]).startswith(f"{row.values['InstanceID']}\\"):
                yield "Msvm_EthernetPortSettingDataComponent", vlan


def _of_vlan(rows: Rows, row: Row) -> Found:
    for port in rows.of("Msvm_EthernetPortAllocationSettingData"):
        if str(row.values["InstanceID"]).startswith(f"{port.values['InstanceID']}\\"):
            yield "Msvm_EthernetPortSettingDataComponent", port


def _of_device(rows: Rows, row: Row) -> Found:
    yield "Msvm_SystemDevice", _computer_row(rows, row.of)


_FINDERS: dict[str, Callable[[Rows, Row], Found]] = {
    "Msvm_ComputerSystem": _of_computer,
    "Msvm_VirtualSystemSettingData": _of_system,
    "Msvm_ConcreteJob": _of_job,
    "Msvm_StorageJob": _of_job,
    "Msvm_VirtualSystemReferencePoint": _of_point,
    **dict.fromkeys(
        ("Msvm_HeartbeatComponent", "Msvm_ShutdownComponent", "Msvm_KvpExchangeComponent"),
        _of_device,
    ),
    "Msvm_EthernetSwitchPortVlanSettingData": _of_vlan,
    **dict.fromkeys(
        (
            "Msvm_StorageAllocationSettingData",
            "Msvm_ResourceAllocationSettingData",
            "Msvm_ProcessorSettingData",
            "Msvm_MemorySettingData",
            "Msvm_SyntheticEthernetPortSettingData",
            "Msvm_EmulatedEthernetPortSettingData",
            "Msvm_EthernetPortAllocationSettingData",
            "Msvm_SecuritySettingData",
            *(f"Msvm_{middle}ComponentSettingData" for middle in COMPONENTS),
        ),
        _of_part,
    ),
}
