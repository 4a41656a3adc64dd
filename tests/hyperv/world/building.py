"""Msvm_VirtualSystemManagementService, VMs as wholes: defined, changed, destroyed.

Published: parameters, return codes, which properties are read/write.  That properties documented as
read-only are taken from the instance that DefineSystem gets, and ElementName, Notes and the
automatic actions from that of ModifySystemSettings, is general knowledge (assumed.toml); what
stands in neither list is refused when it differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hyperv.world import snapshots
from hyperv.world.embedded import MalformedError, parsed
from hyperv.world.errors import ReturnCode, WorkFailed
from hyperv.world.machines import OFF, VERSIONS, Controller, Machine
from hyperv.world.rows_base import Row, Settings

if TYPE_CHECKING:
    from hyperv.world.methods import Methods

NOT_SUPPORTED, FAILED, INVALID, WRONG_STATE = 1, 2, 4, 5
TEMPLATES = {
    "1734C6E8-3154-4DDA-BA5F-A874CC483422": "MicrosoftWindows",
    "272E7447-90A4-4563-A4B9-8E4AB00526CE": "MicrosoftUEFICertificateAuthority",
    "4292AE2B-EE2C-42B5-A969-DD8F8689F6F3": "OpenSourceShieldedVM",
}
ROOTS = ("SnapshotDataRoot", "SuspendDataRoot", "SwapFileDataRoot", "LogDataRoot")
AT_CREATION = {"VirtualSystemSubType", "Version", "ConfigurationDataRoot", *ROOTS}
"""What stays as it was made."""
_BUS = "\\AcpiEx(VMBus,0,0)\\VenHw"
SERIALS = {
    "BIOSSerialNumber": "bios",
    "BaseBoardSerialNumber": "board",
    "ChassisSerialNumber": "chassis",
    "ChassisAssetTag": "tag",
}
WHEN_OFF = {
    "BIOSGUID",
    "BootOrder",
    "BootSourceOrder",
    "SecureBootEnabled",
    "SecureBootTemplateId",
    "VirtualNumaEnabled",
    *SERIALS,
}
"""What changes only while the VM is off."""
PLAIN = {
    "ElementName": "name",
    "BIOSGUID": "bios_guid",
    "VirtualNumaEnabled": "numa",
    "AutomaticSnapshotsEnabled": "automatic_checkpoints",
}
CHOICES = {
    "AutomaticStartupAction": ("start_action", (2, 3, 4)),
    "AutomaticShutdownAction": ("stop_action", (2, 3, 4)),
    "UserSnapshotType": ("checkpoint_type", (2, 3, 4, 5)),
}


def answer(
    methods: Methods,
    method: str,
    machine: Machine | None,
    arguments: Mapping[str, Any],
    work: Callable[[], dict[str, Any]],
    affected: Callable[[], list[Any]] = list,
) -> dict[str, Any]:
    """Do it at once and return 0, or start a job, as the host is told to."""
    if not methods.host.methods_are_jobs and arguments["fault"] is None:
        try:
            return work()
        except WorkFailed as exc:
            raise ReturnCode(exc.code) from exc

    def job() -> list[Any]:
        try:
            work()
        except ReturnCode as exc:
            raise WorkFailed(exc.code, f"'{method}' failed: {exc.code}") from exc
        return affected()

    return methods.begin(10, method, job, arguments, machine, method=method)


def embedded(methods: Methods, text: Any, wanted: str) -> tuple[str, dict[str, Any]]:
    """Class and values of an instance that came as text."""
    try:
        found = parsed(text or "", methods.rows.classes, wanted)
    except MalformedError as exc:
        raise ReturnCode(INVALID) from exc
    return found.class_name, dict(found.values)


def machine_with(methods: Methods, instance_id: str) -> Machine:
    """The VM whose settings, or parts of them, have that InstanceID."""
    head = instance_id.split("\\")[0].removeprefix("Microsoft:").lower()
    for machine in methods.world.on_host(methods.host.name):
        if machine.id.lower() == head:
            return machine
    raise ReturnCode(INVALID)


# --- DefineSystem ---------------------------------------------------------------------------------


def define(methods: Methods, row: Row, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """DefineSystem."""
    from hyperv.world.parts import add_all

    if arguments.get("ReferenceConfiguration") is not None:
        raise NotImplementedError("the model has no ReferenceConfiguration")
    text = arguments.get("SystemSettings")
    _, values = embedded(methods, text, "Msvm_VirtualSystemSettingData")
    host, world = methods.host, methods.world
    sub_type = values.get("VirtualSystemSubType") or "Microsoft:Hyper-V:SubType:1"
    if sub_type not in ("Microsoft:Hyper-V:SubType:1", "Microsoft:Hyper-V:SubType:2"):
        raise ReturnCode(INVALID)
    version = values.get("Version") or VERSIONS[host.version]
    if version not in host.supported:
        raise ReturnCode(NOT_SUPPORTED)
    folder = world.storage.path(
        host.name, values.get("ConfigurationDataRoot") or host.default_folder
    )
    if folder is None:
        raise ReturnCode(FAILED)
    machine = Machine(
        values.get("ElementName") or "New Virtual Machine",
        host.name,
        folder,
        generation=int(sub_type[-1]),
        version=version,
        state=OFF,
        processors=1,
        memory=1 << 30,
        memory_minimum=512 << 20,
        memory_maximum=1 << 40,
        created=world.clock.now(),
        is_made=True,
        guest=replace(host.guest),
        stop_action=3,
        start_action=3,
    )
    if machine.generation == 1:
        machine.controllers = [Controller.ide(0), Controller.ide(1)]
        machine.secure_boot = False
    for root in ROOTS:
        if values.get(root):
            machine.roots[root] = values[root]
    _apply(methods, machine, values, is_new=True)
    done = Settings(machine)

    def work() -> dict[str, Any]:
        world.machines[machine.id] = machine
        try:
            add_all(methods, machine, arguments.get("ResourceSettings") or [])
        except (ReturnCode, WorkFailed):
            del world.machines[machine.id]
            raise
        configuration = folder / "Virtual Machines"
        configuration.mkdir(parents=True, exist_ok=True)
        for suffix in (".vmcx", ".vmrs"):
            (configuration / (machine.id + suffix)).write_bytes(bytes(512))
        computer = methods.rows.classes["msvm_computersystem"]
        return {"ResultingSystem": Row(computer, methods.rows.computer(done.machine), machine)}

    return answer(methods, "DefineSystem", None, arguments, work, lambda: [machine])


# --- ModifySystemSettings -------------------------------------------------------------------------


def modify(methods: Methods, row: Row, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """ModifySystemSettings."""
    text = arguments.get("SystemSettings")
    _, values = embedded(methods, text, "Msvm_VirtualSystemSettingData")
    machine = machine_with(methods, values.get("InstanceID") or "")
    _apply(methods, machine, values, is_new=False, only_look=True)

    def work() -> dict[str, Any]:
        _apply(methods, machine, values, is_new=False)
        return {}

    return answer(methods, "ModifySystemSettings", machine, arguments, work)


def _apply(
    methods: Methods,
    machine: Machine,
    values: Mapping[str, Any],
    *,
    is_new: bool,
    only_look: bool = False,
) -> None:
    """What differs from the VM as it is; ReturnCode for what cannot be changed."""
    now = next(iter(methods.rows._system(Settings(machine))))[0]
    changes = {k: v for k, v in values.items() if v is not None and v != now.get(k)}
    if is_new:
        changes = {k: v for k, v in changes.items() if k not in AT_CREATION}
    for name, value in changes.items():
        if name in ("Caption", "Description", "InstanceID"):
            continue
        if name in WHEN_OFF and machine.state != OFF:
            raise ReturnCode(WRONG_STATE)
        change = _change(methods, machine, name, value)
        if not only_look:
            change()


def _change(methods: Methods, machine: Machine, name: str, value: Any) -> Callable[[], None]:
    """What sets one property; ReturnCode where the value is not one of it."""
    if name in AT_CREATION:
        raise ReturnCode(INVALID)
    if name in PLAIN:
        return lambda: setattr(machine, PLAIN[name], value)
    if name in CHOICES:
        attribute, allowed = CHOICES[name]
        if value not in allowed:
            raise ReturnCode(INVALID)
        return lambda: setattr(machine, attribute, int(value))
    if name in SERIALS:
        return lambda: machine.serials.__setitem__(SERIALS[name], str(value))
    if name == "Notes":
        return lambda: setattr(machine, "notes", "\n".join(value))
    if name == "AutomaticStartupActionDelay":
        return lambda: setattr(machine, "start_delay", int(value.total_seconds()))
    if name == "BootOrder":
        if machine.generation != 1 or sorted(value) != [0, 1, 2, 3]:
            raise ReturnCode(INVALID)
        return lambda: setattr(machine, "boot_order", [int(each) for each in value])
    if machine.generation == 2 and name == "BootSourceOrder":
        entries = _boot_order(methods, machine, value)
        return lambda: setattr(machine, "boot_entries", entries)
    if machine.generation == 2 and name == "SecureBootEnabled":
        return lambda: setattr(machine, "secure_boot", bool(value))
    if machine.generation == 2 and name == "SecureBootTemplateId":
        if str(value).upper().strip("{}") not in TEMPLATES:
            raise ReturnCode(INVALID)
        return lambda: setattr(machine, "secure_boot_template", str(value).upper().strip("{}"))
    if name in ("SecureBootEnabled", "SecureBootTemplateId", "BootSourceOrder"):
        raise ReturnCode(INVALID)
    raise NotImplementedError(f"the model cannot set {name} of a VM")


def _boot_order(methods: Methods, machine: Machine, paths: list[str]) -> list[Any]:
    """The VM's boot entries in another order."""
    rows = methods.rows
    known = {
        rows.path("Msvm_BootSourceSettingData", values).lower(): entry
        for values, entry in rows._boot(Settings(machine))
    }
    if sorted(known) != sorted(path.lower() for path in paths):
        raise ReturnCode(INVALID)
    return [known[path.lower()] for path in paths]


# --- boot entries, the end ------------------------------------------------------------------------


def add_boot_sources(methods: Methods, row: Row, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """AddBootSourceSettings: entries of files; those of devices come with the devices."""
    settings = arguments.get("AffectedConfiguration")
    if not isinstance(settings, Settings) or settings.machine.generation != 2:
        raise ReturnCode(INVALID)
    machine = settings.machine
    made = []
    for text in arguments.get("BootSourceSettings") or []:
        _, values = embedded(methods, text, "Msvm_BootSourceSettingData")
        if values.get("BootSourceType") != 3 or not values.get("FirmwareDevicePath"):
            raise ReturnCode(INVALID)
        made.append(
            (
                values.get("BootSourceDescription") or "",
                values["FirmwareDevicePath"],
                values.get("OtherLocation") or "",
                3,
            )
        )

    def work() -> dict[str, Any]:
        machine.boot_entries += [entry for entry in made if entry not in machine.boot_entries]
        kind = methods.rows.classes["msvm_bootsourcesettingdata"]
        rows = [Row(kind, v, e) for v, e in methods.rows._boot(settings) if e in made]
        return {"ResultingBootSourceSettings": rows}

    return answer(methods, "AddBootSourceSettings", machine, arguments, work)


def remove_boot_sources(methods: Methods, row: Row, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """RemoveBootSourceSettings."""
    rows = arguments.get("BootSourceSettings") or []

    def work() -> dict[str, Any]:
        for each in rows:
            machine_with(methods, each.values["InstanceID"]).boot_entries.remove(each.of)
        return {}

    return answer(methods, "RemoveBootSourceSettings", None, arguments, work)


def destroy(methods: Methods, row: Row, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """DestroySystem: the configuration goes, the disks stay."""
    machine = arguments.get("AffectedSystem")
    if not isinstance(machine, Machine):
        raise ReturnCode(INVALID)
    if machine.runs or machine.activity is not None:
        raise ReturnCode(WRONG_STATE)

    def work() -> dict[str, Any]:
        remove(methods, machine)
        return {}

    return answer(methods, "DestroySystem", None, arguments, work)


def remove(methods: Methods, machine: Machine) -> None:
    """A VM is no more; its checkpoints are merged in a while, its disks stay where they are."""
    world = methods.world
    for checkpoint in list(machine.checkpoints):
        snapshots.destroy(world, checkpoint)
    world.storage.close_all(machine.owner)
    world.machines.pop(machine.id, None)
    for suffix in (".vmcx", ".vmrs"):
        (machine.folder / "Virtual Machines" / (machine.id + suffix)).unlink(missing_ok=True)


def sync_boot(machine: Machine) -> None:
    """Generation 2: a drive and an adapter have their boot entries while they are there."""
    if machine.generation != 2 or not machine.is_made:
        return
    wanted = [
        (
            "EFI SCSI Device",
            f"{_BUS}({d.controller.instance})\\Scsi({d.location})",
            d.place,
            1,
        )
        for d in machine.drives
        if d.kind != "disk" or d.path is not None
    ] + [("EFI Network", f"{_BUS}({a.instance})\\MAC", a.instance, 2) for a in machine.adapters]
    kept = [entry for entry in machine.boot_entries if entry[3] == 3 or entry in wanted]
    machine.boot_entries = kept + [entry for entry in wanted if entry not in kept]
