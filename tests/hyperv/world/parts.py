"""Msvm_VirtualSystemManagementService, the parts of VMs: added, changed and removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperv.world.building import INVALID, WRONG_STATE, answer, embedded, machine_with, sync_boot
from hyperv.world.errors import ReturnCode
from hyperv.world.machines import OFF, Adapter, Controller, Drive, Machine, new_id
from hyperv.world.power import FileRefused, learned_chain
from hyperv.world.rows_base import DVD_DRIVE, SCSI, VIRTUAL_DISK, Row, Settings, switch_values
from hyperv.world.tracking import Tracker
from standby.disk import vhdx
from standby.units import MiB

if TYPE_CHECKING:
    from hyperv.world.methods import Methods

SCSI_CONTROLLERS, SCSI_PLACES, IDE_PLACES = 4, 64, 2
DISK_DRIVE = "Microsoft:Hyper-V:Synthetic Disk Drive"
SYNTHETIC = "Microsoft:Hyper-V:Synthetic Ethernet Port"
LEGACY = "Microsoft:Hyper-V:Emulated Ethernet Port"
NOT_NOW, NO_FILE = 32775, 32779

Outputs = dict[str, Any]


def referred(path: str | None) -> str:
    """The InstanceID in a WMI path."""
    _, _, quoted = (path or "").partition('.InstanceID="')
    return quoted.removesuffix('"').replace('\\"', '"').replace("\\\\", "\\")


# --- adding ---------------------------------------------------------------------------------------


def add(methods: Methods, row: Row, arguments: Mapping[str, Any]) -> Outputs:
    """AddResourceSettings."""
    settings = arguments.get("AffectedConfiguration")
    if not isinstance(settings, Settings) or settings.checkpoint is not None:
        raise ReturnCode(INVALID)
    machine = settings.machine

    def work() -> Outputs:
        made = add_all(methods, machine, arguments.get("ResourceSettings") or [])
        rows = [
            part
            for of, class_name in made
            for part in methods.rows.parts(settings)
            if part.of is of and part.kind.name == class_name
        ]
        return {"ResultingResourceSettings": rows}

    return answer(methods, "AddResourceSettings", machine, arguments, work)


def add_all(methods: Methods, machine: Machine, texts: list[str]) -> list[tuple[Any, str]]:
    """(what was made, its class) for each of the settings."""
    made = []
    for text in texts:
        class_name, values = embedded(methods, text, "CIM_ResourceAllocationSettingData")
        maker = _MAKERS.get(class_name)
        if maker is None:
            raise ReturnCode(INVALID)
        made.append((maker(methods, machine, values), class_name))
    sync_boot(machine)
    return made


def _resource(methods: Methods, machine: Machine, values: Mapping[str, Any]) -> Any:
    """A SCSI controller, or a drive on a controller."""
    kind, sub_type = values.get("ResourceType"), values.get("ResourceSubType")
    if (kind, sub_type) == SCSI[1:]:
        return add_controller(machine, values.get("VirtualSystemIdentifiers") or [])
    if (kind, sub_type) in ((17, DISK_DRIVE), DVD_DRIVE[1:]):
        controller = _controller(machine, referred(values.get("Parent")))
        place = values.get("AddressOnParent")
        location = free_place(machine, controller) if place in (None, "") else int(place)
        return add_drive(machine, controller, location, "disk" if kind == 17 else "dvd")
    raise ReturnCode(INVALID)


def add_controller(machine: Machine, identifiers: list[str]) -> Controller:
    """One more SCSI controller."""
    count = sum(c.kind == "SCSI" for c in machine.controllers)
    if machine.state != OFF:
        raise ReturnCode(NOT_NOW)
    instance = identifiers[0].strip("{}").upper() if identifiers else new_id()
    if count >= SCSI_CONTROLLERS or instance in (c.instance for c in machine.controllers):
        raise ReturnCode(INVALID)
    controller = Controller("SCSI", count, instance)
    machine.controllers.append(controller)
    return controller


def _controller(machine: Machine, instance_id: str) -> Controller:
    for controller in machine.controllers:
        if f"Microsoft:{machine.id}\\{controller.element_id()}".lower() == instance_id.lower():
            return controller
    raise ReturnCode(INVALID)


def free_place(machine: Machine, controller: Controller) -> int:
    """The first place of a controller that nothing is at."""
    taken = {d.location for d in machine.drives if d.controller is controller}
    count = SCSI_PLACES if controller.kind == "SCSI" else IDE_PLACES
    free = [place for place in range(count) if place not in taken]
    if not free:
        raise ReturnCode(INVALID)
    return free[0]


def add_drive(machine: Machine, controller: Controller, location: int, kind: str) -> Drive:
    """A drive without a medium."""
    count = SCSI_PLACES if controller.kind == "SCSI" else IDE_PLACES
    taken = {d.location for d in machine.drives if d.controller is controller}
    if not 0 <= location < count or location in taken:
        raise ReturnCode(INVALID)
    if controller.kind == "IDE" and machine.state != OFF:
        raise ReturnCode(NOT_NOW)
    drive = Drive(controller, location, kind)
    machine.drives.append(drive)
    machine.drives.sort(key=lambda d: (d.controller.kind, d.controller.number, d.location))
    return drive


def _medium(methods: Methods, machine: Machine, values: Mapping[str, Any]) -> Drive:
    """A virtual hard disk in a drive."""
    files = values.get("HostResource") or []
    if values.get("ResourceSubType") != VIRTUAL_DISK or len(files) != 1:
        raise ReturnCode(INVALID)
    wanted = referred(values.get("Parent")).lower()
    for drive in machine.drives:
        if f"Microsoft:{machine.id}\\{drive.element_id()}\\D".lower() == wanted:
            if drive.kind != "disk" or drive.path is not None:
                raise ReturnCode(INVALID)
            insert(methods, machine, drive, files[0])
            return drive
    raise ReturnCode(INVALID)


def insert(methods: Methods, machine: Machine, drive: Drive, windows: str) -> None:
    """A file into a drive: the VM's identity gets rights to that file, not to those below it."""
    world = methods.world
    path = methods.file(windows)
    if any(d.path == path for d in machine.drives if d is not drive):
        raise ReturnCode(INVALID)
    size = _disk_size(methods, path)
    world.storage.grants.setdefault(path, set()).add(machine.sid)
    if machine.runs:
        try:
            learned_chain(world, machine.host, path)
        except FileRefused as exc:
            raise ReturnCode(32768) from exc
    drive.path = path
    drive.tracker = Tracker(size)
    world.reopen(machine)


def _disk_size(methods: Methods, path: Path) -> int:
    odd = methods.world.storage.oddities.get(path)
    if odd is not None:
        return odd.size
    try:
        return vhdx.read_info(path).virtual_size
    except Exception as exc:  # no disk file at all
        raise ReturnCode(32768) from exc


def _adapter(methods: Methods, machine: Machine, values: Mapping[str, Any]) -> Adapter:
    return add_adapter(machine, values, is_legacy=False)


def _legacy(methods: Methods, machine: Machine, values: Mapping[str, Any]) -> Adapter:
    return add_adapter(machine, values, is_legacy=True)


def add_adapter(machine: Machine, values: Mapping[str, Any], *, is_legacy: bool) -> Adapter:
    """A network adapter that is connected to nothing."""
    if values.get("ResourceType", 10) != 10 or values.get("ResourceSubType") != (
        LEGACY if is_legacy else SYNTHETIC
    ):
        raise ReturnCode(INVALID)
    if machine.state != OFF and (is_legacy or machine.generation == 1):
        raise ReturnCode(NOT_NOW)
    if is_legacy and machine.generation == 2:
        raise ReturnCode(INVALID)
    adapter = Adapter(has_connection=False, is_legacy=is_legacy, mac="000000000000")
    change_adapter(adapter, values)
    machine.adapters.append(adapter)
    return adapter


def change_adapter(adapter: Adapter, values: Mapping[str, Any]) -> None:
    """What the settings of an adapter say; the others stay."""
    is_static = values.get("StaticMacAddress", adapter.is_static)
    mac = (values.get("Address") or adapter.mac).upper()
    is_well = len(mac) == 12 and set(mac) <= set("0123456789ABCDEF")
    if not is_well or (is_static and (not mac.strip("0") or int(mac[:2], 16) & 1)):
        raise ReturnCode(INVALID)
    adapter.name = values.get("ElementName") or adapter.name
    adapter.is_static, adapter.mac = bool(is_static), mac
    identifiers = values.get("VirtualSystemIdentifiers")
    if identifiers:
        adapter.identifiers = tuple(identifiers)


def _connection(methods: Methods, machine: Machine, values: Mapping[str, Any]) -> Adapter:
    wanted = referred(values.get("Parent")).lower()
    for adapter in machine.adapters:
        if f"Microsoft:{machine.id}\\{adapter.instance}".lower() == wanted:
            if adapter.has_connection:
                raise ReturnCode(INVALID)
            adapter.switch = switch_of(methods, values)
            adapter.has_connection = True
            return adapter
    raise ReturnCode(INVALID)


def switch_of(methods: Methods, values: Mapping[str, Any]) -> str:
    """The switch that a connection's HostResource names; '' for none."""
    paths = values.get("HostResource") or []
    if not paths or values.get("EnabledState", 2) == 3:
        return ""
    for name in methods.host.switches:
        known = switch_values(methods.host, name)
        if methods.rows.path("Msvm_VirtualEthernetSwitch", known).lower() == paths[0].lower():
            return name
    raise ReturnCode(INVALID)


_MAKERS: dict[str, Callable[[Methods, Machine, Mapping[str, Any]], Any]] = {
    "Msvm_ResourceAllocationSettingData": _resource,
    "Msvm_StorageAllocationSettingData": _medium,
    "Msvm_SyntheticEthernetPortSettingData": _adapter,
    "Msvm_EmulatedEthernetPortSettingData": _legacy,
    "Msvm_EthernetPortAllocationSettingData": _connection,
}


# --- changing -------------------------------------------------------------------------------------


def modify(methods: Methods, row: Row, arguments: Mapping[str, Any]) -> Outputs:
    """ModifyResourceSettings."""
    wanted = [
        embedded(methods, text, "CIM_ResourceAllocationSettingData")[1]
        for text in arguments.get("ResourceSettings") or []
    ]
    found = [(_part(methods, values.get("InstanceID") or ""), values) for values in wanted]

    def work() -> Outputs:
        for (machine, part), values in found:
            _modify(methods, machine, part, values)
        return {"ResultingResourceSettings": [part for (_, part), _ in found]}

    machine = found[0][0][0] if found else None
    return answer(methods, "ModifyResourceSettings", machine, arguments, work)


def _part(methods: Methods, instance_id: str) -> tuple[Machine, Row]:
    machine = machine_with(methods, instance_id)
    for part in methods.rows.parts(Settings(machine)):
        if str(part.values["InstanceID"]).lower() == instance_id.lower():
            return machine, part
    raise ReturnCode(INVALID)


def _modify(methods: Methods, machine: Machine, part: Row, values: Mapping[str, Any]) -> None:
    values = {k: v for k, v in values.items() if v is not None}
    if part.kind.name == "Msvm_ProcessorSettingData":
        set_processors(
            methods,
            machine,
            values.get("VirtualQuantity", machine.processors),
            values.get("LimitProcessorFeatures", machine.limits_features),
            values.get("ExposeVirtualizationExtensions", machine.nested),
        )
    elif part.kind.name == "Msvm_MemorySettingData":
        set_memory(
            machine,
            values.get("VirtualQuantity", machine.memory // MiB) * MiB,
            values.get("Reservation", machine.memory_minimum // MiB) * MiB,
            values.get("Limit", machine.memory_maximum // MiB) * MiB,
            values.get("DynamicMemoryEnabled", machine.dynamic_memory),
        )
    elif part.kind.name == "Msvm_StorageAllocationSettingData":
        files = values.get("HostResource") or []
        if len(files) != 1:
            raise ReturnCode(INVALID)
        if machine.state != OFF and part.of.controller.kind == "IDE":
            raise ReturnCode(WRONG_STATE)
        insert(methods, machine, part.of, files[0])
    elif part.kind.name == "Msvm_EthernetPortAllocationSettingData":
        part.of.switch = switch_of(methods, values)
    elif isinstance(part.of, Adapter):
        if machine.state != OFF and values.get("Address", part.of.mac) != part.of.mac:
            raise ReturnCode(WRONG_STATE)
        change_adapter(part.of, values)
    else:
        raise NotImplementedError(f"the model cannot change {part.kind.name}")


def set_processors(
    methods: Methods, machine: Machine, count: int, limits: bool, nested: bool
) -> None:
    """All that the model knows of a VM's processors."""
    new = (int(count), bool(limits), bool(nested))
    old = (machine.processors, machine.limits_features, machine.nested)
    if machine.state != OFF and new != old:
        raise ReturnCode(WRONG_STATE)
    if not 1 <= count <= methods.host.processors:
        raise ReturnCode(INVALID)
    machine.processors, machine.limits_features, machine.nested = new


def set_memory(machine: Machine, startup: int, low: int, high: int, is_dynamic: bool) -> None:
    """Of a VM that is off, in bytes; minimum and maximum count where it is dynamic."""
    if machine.state != OFF:
        raise ReturnCode(WRONG_STATE)
    if startup < 32 * MiB or startup % (2 * MiB):
        raise ReturnCode(INVALID)
    if is_dynamic and not 32 * MiB <= low <= startup <= high:
        raise ReturnCode(INVALID)
    machine.memory, machine.dynamic_memory = int(startup), bool(is_dynamic)
    if is_dynamic:
        machine.memory_minimum, machine.memory_maximum = int(low), int(high)


# --- removing -------------------------------------------------------------------------------------


def remove(methods: Methods, row: Row, arguments: Mapping[str, Any]) -> Outputs:
    """RemoveResourceSettings."""
    parts = [
        (machine_with(methods, part.values["InstanceID"]), part)
        for part in arguments.get("ResourceSettings") or []
    ]

    def work() -> Outputs:
        for machine, part in parts:
            remove_part(methods, machine, part)
        return {}

    machine = parts[0][0] if parts else None
    return answer(methods, "RemoveResourceSettings", machine, arguments, work)


def remove_part(methods: Methods, machine: Machine, part: Row) -> None:
    """A controller that nothing hangs on, a drive with its medium, a medium, an adapter."""
    of = part.of
    if isinstance(of, Controller):
        if of.kind == "IDE" or any(d.controller is of for d in machine.drives):
            raise ReturnCode(INVALID)
        if machine.state != OFF:
            raise ReturnCode(WRONG_STATE)
        machine.controllers.remove(of)
        for number, left in enumerate(c for c in machine.controllers if c.kind == "SCSI"):
            left.number = number
    elif isinstance(of, Drive):
        if of.controller.kind == "IDE" and machine.state != OFF:
            raise ReturnCode(WRONG_STATE)
        if part.kind.name == "Msvm_StorageAllocationSettingData":
            of.path = None
        else:
            machine.drives.remove(of)
        methods.world.reopen(machine)
    elif part.kind.name == "Msvm_EthernetPortAllocationSettingData":
        of.switch, of.has_connection, of.mode = "", False, 0
    elif isinstance(of, Adapter):
        machine.adapters.remove(of)
    else:
        raise ReturnCode(INVALID)
    sync_boot(machine)
