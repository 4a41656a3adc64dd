"""The model's target side: VMs are defined, changed, started and removed as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clocks import HeldClock
from hyperv.dialect.values import UInt16, UInt32, UInt64
from hyperv.shells import Shell
from hyperv.world import Machine, World
from standby.disk import vhdx
from standby.errors import DiskBusy
from standby.units import GiB, MiB

SIZE = 8 * MiB
FOLDER = r"C:\Hyper-V\replica"
SCSI = "Microsoft:Hyper-V:Synthetic SCSI Controller"
DRIVE = "Microsoft:Hyper-V:Synthetic Disk Drive"
DISK = "Microsoft:Hyper-V:Virtual Hard Disk"
PORT = "Microsoft:Hyper-V:Synthetic Ethernet Port"
CONNECTION = "Microsoft:Hyper-V:Ethernet Connection"
GUID = "5D3E0C5A-1111-4222-8333-444455556666"


@pytest.fixture(params=[False, True], ids=["at once", "as jobs"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> World:
    """A host whose methods answer at once, and one where they start jobs."""
    made = World(HeldClock(), tmp_path)
    made.add_host("hv1", methods_are_jobs=request.param)
    (tmp_path / "hv1" / "replica").mkdir()
    return made


@pytest.fixture
def shell(world: World) -> Shell:
    return Shell(world, "hv1")


def call(shell: Shell, method: str, **arguments: Any) -> int:
    """A method of the management service, waited for: its code, or the job's."""
    (service,) = shell.instances("Msvm_VirtualSystemManagementService")
    result = shell.invoke(service, method, **arguments)
    if result.get("ReturnValue") != 4096:
        return int(result.get("ReturnValue"))
    return int(shell.ended(result).get("ErrorCode"))


def define(shell: Shell, **more: Any) -> Machine:
    values = {
        "ElementName": "web",
        "VirtualSystemSubType": "Microsoft:Hyper-V:SubType:2",
        "ConfigurationDataRoot": FOLDER,
        "Notes": ["standby-replica:7"],
        **more,
    }
    text = shell.text(shell.new("Msvm_VirtualSystemSettingData", **values))
    assert call(shell, "DefineSystem", SystemSettings=text) == 0
    return shell.world.machine(values["ElementName"])


def settings(shell: Shell, machine: Machine) -> Any:
    path = f"InstanceID='Microsoft:{machine.id}'"
    (found,) = shell.instances("Msvm_VirtualSystemSettingData", Filter=path)
    return found


def add(shell: Shell, machine: Machine, class_name: str, **values: Any) -> int:
    text = shell.text(shell.new(class_name, **values))
    return call(
        shell,
        "AddResourceSettings",
        AffectedConfiguration=settings(shell, machine),
        ResourceSettings=[text],
    )


def path_of(shell: Shell, instance: Any) -> str:
    return shell.view.rows.path(instance.class_name, dict(instance.properties.items()))


def attach(shell: Shell, machine: Machine, windows: str, location: int = 0) -> int:
    """A drive and a medium, by their parents' paths; a controller where there is none."""
    if not any(c.kind == "SCSI" for c in machine.controllers):
        values = {"ResourceType": UInt16(6), "ResourceSubType": SCSI}
        assert add(shell, machine, "Msvm_ResourceAllocationSettingData", **values) == 0
    parts = shell.associated(settings(shell, machine), "Msvm_ResourceAllocationSettingData")
    controller = next(part for part in parts if part.get("ResourceType") == 6)
    values = {
        "ResourceType": UInt16(17),
        "ResourceSubType": DRIVE,
        "Parent": path_of(shell, controller),
        "AddressOnParent": str(location),
    }
    assert add(shell, machine, "Msvm_ResourceAllocationSettingData", **values) == 0
    parts = shell.associated(settings(shell, machine), "Msvm_ResourceAllocationSettingData")
    drive = next(part for part in parts if part.get("AddressOnParent") == str(location))
    values = {
        "ResourceType": UInt16(31),
        "ResourceSubType": DISK,
        "Parent": path_of(shell, drive),
        "HostResource": [windows],
    }
    return add(shell, machine, "Msvm_StorageAllocationSettingData", **values)


def chain(world: World) -> tuple[Path, Path]:
    """A base and a child of it, as a mover makes them: the model is told nothing."""
    folder = world.root / "hv1" / "replica"
    base, child = folder / "base.vhdx", folder / "child.vhdx"
    with vhdx.create(base, SIZE, block_size=MiB) as disk:
        disk.write(0, b"base" * 1024)
    vhdx.create_child(child, base, block_size=MiB).close()
    return base, child


def granted(world: World, machine: Machine) -> None:
    """As icacls grants the folder to the VM's identity."""
    world.storage.grants.setdefault(world.root / "hv1" / "replica", set()).add(machine.sid)


def start(shell: Shell, machine: Machine, state: int = 2) -> Any:
    """RequestStateChange: its job when it is over."""
    result = shell.invoke(
        shell.computer(machine), "RequestStateChange", RequestedState=UInt16(state)
    )
    return shell.ended(result)


def test_a_vm_is_defined_as_it_is_told(world: World, shell: Shell) -> None:
    machine = define(shell, Version="9.0", UserSnapshotType=UInt16(2))
    assert machine.state == 3
    row = settings(shell, machine)
    assert row.get("Notes") == ["standby-replica:7"]
    assert row.get("Version") == "9.0"
    assert row.get("UserSnapshotType") == 2
    assert row.get("ConfigurationDataRoot") == FOLDER
    assert (machine.folder / "Virtual Machines" / f"{machine.id}.vmcx").exists()
    assert (machine.controllers, machine.drives, machine.adapters) == ([], [], [])
    old = define(shell, ElementName="old", VirtualSystemSubType="Microsoft:Hyper-V:SubType:1")
    assert [c.kind for c in old.controllers] == ["IDE", "IDE"]
    assert settings(shell, old).get("SecureBootEnabled") is False


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"VirtualSystemSubType": "Microsoft:Hyper-V:SubType:3"}, 4),
        ({"Version": "12.0"}, 1),
        ({"ConfigurationDataRoot": r"Q:\none"}, 2),
        ({"UserSnapshotType": UInt16(9)}, 4),
    ],
)
def test_what_a_host_does_not_define(shell: Shell, values: dict[str, Any], code: int) -> None:
    text = shell.text(shell.new("Msvm_VirtualSystemSettingData", ElementName="x", **values))
    assert call(shell, "DefineSystem", SystemSettings=text) == code
    assert shell.world.machines == {}


def test_settings_change_as_published(world: World, shell: Shell) -> None:
    machine = define(shell)
    row = settings(shell, machine)
    with pytest.raises(PermissionError):
        row.set("Version", "9.0")
    row.set("BIOSGUID", "{" + GUID + "}")
    row.set("BIOSSerialNumber", "42")
    row.set("SecureBootTemplateId", "272e7447-90a4-4563-a4b9-8e4ab00526ce")
    assert call(shell, "ModifySystemSettings", SystemSettings=shell.text(row)) == 0
    row = settings(shell, machine)
    assert row.get("BIOSGUID") == "{" + GUID + "}"
    assert row.get("BIOSSerialNumber") == "42"
    changed = shell.new(
        "Msvm_VirtualSystemSettingData", InstanceID=row.get("InstanceID"), Version="8.0"
    )
    assert call(shell, "ModifySystemSettings", SystemSettings=shell.text(changed)) == 4
    row.set("BootOrder", [UInt16(n) for n in (3, 2, 1, 0)])
    assert call(shell, "ModifySystemSettings", SystemSettings=shell.text(row)) == 4
    assert start(shell, machine).get("JobState") == 7
    row = settings(shell, machine)
    row.set("BIOSGUID", "{" + GUID.replace("5", "6") + "}")
    assert call(shell, "ModifySystemSettings", SystemSettings=shell.text(row)) == 5


def test_boot_entries_come_with_devices_and_are_put_in_order(world: World, shell: Shell) -> None:
    machine = define(shell)
    chain(world)
    assert attach(shell, machine, FOLDER + r"\base.vhdx") == 0
    entry = shell.new(
        "Msvm_BootSourceSettingData",
        BootSourceType=UInt32(3),
        BootSourceDescription="shim",
        FirmwareDevicePath="\\HD(1)",
        OtherLocation="\\EFI\\shim.efi",
    )
    code = call(
        shell,
        "AddBootSourceSettings",
        AffectedConfiguration=settings(shell, machine),
        BootSourceSettings=[shell.text(entry)],
    )
    assert code == 0
    row = settings(shell, machine)
    order = row.get("BootSourceOrder")
    assert len(order) == 2
    row.set("BootSourceOrder", order[::-1])
    assert call(shell, "ModifySystemSettings", SystemSettings=shell.text(row)) == 0
    assert settings(shell, machine).get("BootSourceOrder") == order[::-1]
    row.set("BootSourceOrder", order[:1])
    assert call(shell, "ModifySystemSettings", SystemSettings=shell.text(row)) == 4


def test_adapters_have_addresses_switches_and_vlans(world: World, shell: Shell) -> None:
    machine = define(shell)
    values = {"ResourceType": UInt16(10), "ResourceSubType": PORT, "ElementName": "lan"}
    mac = {"Address": "00155D010203", "StaticMacAddress": True}
    name = "Msvm_SyntheticEthernetPortSettingData"
    identifiers = {"VirtualSystemIdentifiers": ["{" + GUID + "}"]}
    assert add(shell, machine, name, **values, **mac, **identifiers) == 0
    assert add(shell, machine, name, **values, Address="x", StaticMacAddress=True) == 4
    (port,) = shell.associated(settings(shell, machine), name)
    assert port.get("VirtualSystemIdentifiers") == ["{" + GUID + "}"]
    (switch,) = shell.instances("Msvm_VirtualEthernetSwitch")
    wire = {
        "ResourceType": UInt16(33),
        "ResourceSubType": CONNECTION,
        "Parent": path_of(shell, port),
        "HostResource": [path_of(shell, switch)],
    }
    name = "Msvm_EthernetPortAllocationSettingData"
    assert add(shell, machine, name, **wire) == 0
    assert machine.adapters[0].switch == "External"
    (connection,) = shell.associated(settings(shell, machine), name)
    vlan = shell.new(
        "Msvm_EthernetSwitchPortVlanSettingData",
        OperationMode=UInt32(1),
        AccessVlanId=UInt16(20),
    )
    code = call(
        shell,
        "AddFeatureSettings",
        AffectedConfiguration=connection,
        FeatureSettings=[shell.text(vlan)],
    )
    assert code == 0
    (row,) = shell.associated(connection, "Msvm_EthernetSwitchPortVlanSettingData")
    assert row.get("AccessVlanId") == 20
    row.set("AccessVlanId", UInt16(30))
    assert call(shell, "ModifyFeatureSettings", FeatureSettings=[shell.text(row)]) == 0
    assert machine.adapters[0].vlan == 30
    assert call(shell, "RemoveFeatureSettings", FeatureSettings=[row]) == 0
    assert machine.adapters[0].mode == 0
    assert call(shell, "RemoveResourceSettings", ResourceSettings=[port]) == 0
    assert machine.adapters == []


def test_processors_and_memory_change_while_the_vm_is_off(world: World, shell: Shell) -> None:
    machine = define(shell)
    (found,) = shell.associated(settings(shell, machine), "Msvm_ProcessorSettingData")
    class_name, instance_id = "Msvm_ProcessorSettingData", found.get("InstanceID")
    many = shell.new(class_name, InstanceID=instance_id, VirtualQuantity=UInt64(4))
    assert call(shell, "ModifyResourceSettings", ResourceSettings=[shell.text(many)]) == 0
    assert machine.processors == 4
    (memory,) = shell.associated(settings(shell, machine), "Msvm_MemorySettingData")
    memory.set("VirtualQuantity", UInt64(2048))
    assert call(shell, "ModifyResourceSettings", ResourceSettings=[shell.text(memory)]) == 0
    assert machine.memory == 2 * GiB
    memory.set("VirtualQuantity", UInt64(3))
    assert call(shell, "ModifyResourceSettings", ResourceSettings=[shell.text(memory)]) == 4


def test_a_started_vm_writes_to_its_leaf_and_holds_it(world: World, shell: Shell) -> None:
    machine = define(shell)
    base, child = chain(world)
    assert attach(shell, machine, FOLDER + r"\child.vhdx") == 0
    granted(world, machine)
    assert start(shell, machine).get("JobState") == 7
    before = base.read_bytes()
    world.write(machine, MiB, b"new " * 1024)
    assert base.read_bytes() == before
    with pytest.raises(DiskBusy):
        vhdx.open_vhdx(child, writable=True)
    assert start(shell, machine, 3).get("JobState") == 7
    vhdx.open_vhdx(child, writable=True).close()
    content = world.content(child)
    assert content[:4] == b"base"
    assert content[MiB : MiB + 4] == b"new "


def test_a_start_meets_what_is_wrong_with_the_files(world: World, shell: Shell) -> None:
    machine = define(shell)
    base, child = chain(world)
    assert attach(shell, machine, FOLDER + r"\child.vhdx") == 0

    def failure() -> str:
        job = start(shell, machine)
        assert (job.get("JobState"), machine.state) == (10, 3)
        return str(job.get("ErrorDescription"))

    assert "0x80070005" in failure()  # the base has no rights of its own
    granted(world, machine)
    world.storage.attributes[child] = {"SparseFile"}
    assert "0xC03A001A" in failure()
    del world.storage.attributes[child]
    with vhdx.open_vhdx(child, writable=True):
        assert "0x80070020" in failure()
    reader = world.open_for_reading(child, shares=("read",))
    assert "0x80070020" in failure()
    reader.close()
    base.rename(base.with_name("gone.vhdx"))
    assert "0xC03A000D" in failure()
    with vhdx.create(base, SIZE, block_size=MiB):
        pass
    assert "0xC03A000E" in failure()
    base.with_name("gone.vhdx").replace(base)
    assert start(shell, machine).get("JobState") == 7


def test_a_start_needs_memory_switches_and_addresses_of_its_own(world: World, shell: Shell) -> None:
    machine = define(shell)
    world.hosts["hv1"].memory_free = GiB // 2
    assert "0x800705AA" in start(shell, machine).get("ErrorDescription")
    world.hosts["hv1"].memory_free = 64 * GiB
    other = world.add_machine("web2", "hv1", [SIZE])
    other.adapters[0].is_static = True
    values = {"ResourceType": UInt16(10), "ResourceSubType": PORT}
    mac = {"Address": other.adapters[0].mac, "StaticMacAddress": True}
    assert add(shell, machine, "Msvm_SyntheticEthernetPortSettingData", **values, **mac) == 0
    assert "static MAC" in start(shell, machine).get("ErrorDescription")
    world.turn_off(other)
    machine.adapters[0].switch = "Gone"
    assert "switch" in start(shell, machine).get("ErrorDescription")
    machine.adapters[0].switch = ""
    machine.version = "5.0"
    assert "configuration version" in start(shell, machine).get("ErrorDescription")
    machine.version = "10.0"
    assert start(shell, machine).get("JobState") == 7
    result = shell.invoke(shell.computer(machine), "RequestStateChange", RequestedState=UInt16(2))
    assert result.get("ReturnValue") == 32775


def test_a_guest_comes_up_and_goes_down(world: World, shell: Shell) -> None:
    machine = define(shell)
    assert shell.instances("Msvm_HeartbeatComponent") == []
    assert start(shell, machine).get("JobState") == 7

    def heartbeat() -> int:
        (found,) = shell.associated(shell.computer(machine), "Msvm_HeartbeatComponent")
        return int(found.get("OperationalStatus")[0])

    def stop(force: bool) -> int:
        (found,) = shell.associated(shell.computer(machine), "Msvm_ShutdownComponent")
        result = shell.invoke(found, "InitiateShutdown", Force=force, Reason="failover")
        return int(result.get("ReturnValue"))

    assert (heartbeat(), stop(True)) == (12, 32780)
    world.clock.sleep(30)
    assert heartbeat() == 2
    (told,) = shell.associated(shell.computer(machine), "Msvm_KvpExchangeComponent")
    assert any("guest.example.test" in text for text in told.get("GuestIntrinsicExchangeItems"))
    machine.guest.is_locked = True
    assert (stop(False), stop(True), stop(True)) == (32781, 0, 32782)
    world.clock.sleep(30)
    assert shell.computer(machine).get("EnabledState") == 3
    machine.guest.boots_after_s = None
    assert start(shell, machine).get("JobState") == 7
    world.clock.sleep(600)
    assert heartbeat() == 12


def test_a_destroyed_vm_leaves_its_disks(world: World, shell: Shell) -> None:
    machine = define(shell)
    base, child = chain(world)
    assert attach(shell, machine, FOLDER + r"\child.vhdx") == 0
    granted(world, machine)
    start(shell, machine)
    computer = shell.computer(machine)
    assert call(shell, "DestroySystem", AffectedSystem=computer) == 5
    start(shell, machine, 3)
    assert call(shell, "DestroySystem", AffectedSystem=computer) == 0
    assert shell.instances("Msvm_ComputerSystem", Filter=f"Name='{machine.id}'") == []
    assert base.exists()
    assert child.exists()
    assert list((world.root / "hv1" / "replica").glob("Virtual Machines/*")) == []


def test_a_destroyed_vms_checkpoints_are_merged(world: World, shell: Shell) -> None:
    machine = define(shell)
    base, child = chain(world)
    child.unlink()
    assert attach(shell, machine, FOLDER + r"\base.vhdx") == 0
    world.user_checkpoint(machine, "before")
    leaf = machine.disks()[0].path
    assert leaf is not None
    assert leaf != base
    assert call(shell, "DestroySystem", AffectedSystem=shell.computer(machine)) == 0
    world.clock.sleep(30)
    world.settle()
    assert not leaf.exists()
    assert world.content(base)[:4] == b"base"


def test_controllers_and_places_have_limits(world: World, shell: Shell) -> None:
    machine = define(shell)
    values = {"ResourceType": UInt16(6), "ResourceSubType": SCSI}
    name = "Msvm_ResourceAllocationSettingData"
    identified = {"VirtualSystemIdentifiers": ["{" + GUID + "}"]}
    assert add(shell, machine, name, **values, **identified) == 0
    assert machine.controllers[0].instance == GUID
    assert add(shell, machine, name, **values, **identified) == 4
    for _ in range(3):
        assert add(shell, machine, name, **values) == 0
    assert add(shell, machine, name, **values) == 4
    chain(world)
    assert attach(shell, machine, FOLDER + r"\none.vhdx") == 32779
    parts = shell.instances(name, Filter=f"InstanceID LIKE 'Microsoft:{machine.id}%'")
    drive = next(part for part in parts if part.get("ResourceType") == 17)
    controllers = [part for part in parts if part.get("ResourceType") == 6]
    assert call(shell, "RemoveResourceSettings", ResourceSettings=[controllers[0]]) == 4
    assert call(shell, "RemoveResourceSettings", ResourceSettings=[drive]) == 0
    assert call(shell, "RemoveResourceSettings", ResourceSettings=controllers) == 0
    assert machine.controllers == []


def test_a_disk_is_made_over_another(world: World, shell: Shell) -> None:
    base, _ = chain(world)
    (images,) = shell.instances("Msvm_ImageManagementService")
    made = shell.new(
        "Msvm_VirtualHardDiskSettingData",
        Type=UInt16(4),
        Format=UInt16(3),
        Path=FOLDER + r"\undo.vhdx",
        ParentPath=FOLDER + r"\base.vhdx",
    )
    text = shell.text(made)
    result = shell.invoke(images, "CreateVirtualHardDisk", VirtualDiskSettingData=text)
    assert shell.ended(result).get("JobState") == 7
    assert world.content(base.with_name("undo.vhdx"))[:4] == b"base"
    result = shell.invoke(images, "CreateVirtualHardDisk", VirtualDiskSettingData=text)
    assert result.get("ReturnValue") == 32773
