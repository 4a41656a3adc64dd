"""The model's commands of the Hyper-V module, called as scripts call them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clocks import HeldClock
from hyperv.dialect.interpreter import Interpreter
from hyperv.dialect.world import PSError
from hyperv.shells import Shell
from hyperv.world import Fault, HostView, Machine, World
from standby.disk import vhdx
from standby.units import GiB, MiB

FOLDER = r"C:\Hyper-V"
SIZE = 8 * MiB


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(HeldClock(), tmp_path)
    made.add_host("hv1")
    with vhdx.create(tmp_path / "hv1" / "base.vhdx", SIZE, block_size=MiB) as disk:
        disk.write(0, b"base" * 1024)
    return made


@pytest.fixture
def shell(world: World) -> Shell:
    return Shell(world, "hv1")


@pytest.fixture
def vm(world: World, shell: Shell) -> Machine:
    """A VM of generation 2 that a script made, off."""
    shell("New-VM", Name="web", Generation=2, MemoryStartupBytes=GiB, NoVHD=True, Path=FOLDER)
    return world.machine("web")


def of(shell: Shell, machine: Machine) -> Any:
    (found,) = shell("Get-VM", Id=machine.id)
    return found


def granted(world: World, machine: Machine) -> None:
    world.storage.grants[world.root / "hv1"] = {machine.sid}


def refused(shell: Shell, name: str, **parameters: Any) -> PSError:
    with pytest.raises(PSError) as caught:
        shell(name, **parameters)
    return caught.value


def test_a_vm_is_found_by_its_id_and_name(shell: Shell, vm: Machine) -> None:
    found = of(shell, vm)
    assert (found.get("Name"), str(found.get("State").name)) == ("web", "Off")
    assert str(found.get("Id")) == vm.id.lower()
    assert len(shell("Get-VM", Name="WEB")) == 1
    assert "unable to find" in refused(shell, "Get-VM", Name="none").message
    assert refused(shell, "Get-VM", Id="none").error_id == "CannotConvertArgumentNoMessage"


def test_hardware_is_set_within_its_bounds(shell: Shell, vm: Machine) -> None:
    one = of(shell, vm)
    shell("Set-VMProcessor", VM=one, Count=4, ExposeVirtualizationExtensions=True)
    shell(
        "Set-VMMemory",
        VM=one,
        DynamicMemoryEnabled=True,
        StartupBytes=2 * GiB,
        MinimumBytes=GiB,
        MaximumBytes=4 * GiB,
    )
    shell(
        "Set-VM",
        VM=one,
        AutomaticStartAction="Nothing",
        AutomaticStopAction="shutdown",
        CheckpointType="Disabled",
        Notes="x",
    )
    assert (vm.processors, vm.nested, vm.memory_maximum) == (4, True, 4 * GiB)
    assert (vm.start_action, vm.stop_action, vm.checkpoint_type, vm.notes) == (2, 4, 2, "x")
    assert refused(shell, "Set-VMProcessor", VM=one, Count=99).error_id == "OperationFailed"
    assert refused(shell, "Set-VMMemory", VM=one, StartupBytes=3).error_id == "OperationFailed"
    wrong = refused(shell, "Set-VM", VM=one, AutomaticStartAction="Never")
    assert wrong.error_id == "CannotConvertArgumentNoMessage"
    shell("Set-VMFirmware", VM=one, EnableSecureBoot="Off", SecureBootTemplate="MicrosoftWindows")
    assert not vm.secure_boot


def test_a_drive_is_added_changed_and_removed(world: World, shell: Shell, vm: Machine) -> None:
    one = of(shell, vm)
    base = FOLDER + r"\base.vhdx"
    place = {"ControllerType": "SCSI", "ControllerNumber": 0, "ControllerLocation": 3}
    (drive,) = shell("Add-VMHardDiskDrive", VM=one, Path=base, Passthru=True, **place)
    assert drive.get("Path") == base
    assert [entry[2] for entry in vm.boot_entries if entry[3] == 1] == ["scsi:0:3"]
    assert refused(shell, "Add-VMHardDiskDrive", VM=one, Path=base, **place)
    shell("New-VHD", Path=FOLDER + r"\undo.vhdx", ParentPath=base, Differencing=True)
    shell("Set-VMHardDiskDrive", VMHardDiskDrive=drive, Path=FOLDER + r"\undo.vhdx")
    granted(world, vm)
    shell("Start-VM", VM=one)
    world.write(vm, MiB, b"new " * 1024)
    assert world.content(world.root / "hv1" / "base.vhdx")[MiB : MiB + 4] == bytes(4)
    shell("Stop-VM", VM=one, TurnOff=True)
    assert world.content(world.root / "hv1" / "undo.vhdx")[MiB : MiB + 4] == b"new "
    shell("Remove-VMHardDiskDrive", VMHardDiskDrive=shell("Get-VMHardDiskDrive", VM=one)[0])
    assert shell("Get-VMHardDiskDrive", VM=one) == []
    exists = refused(shell, "New-VHD", Path=base, ParentPath=base, Differencing=True)
    assert exists.error_id == "OperationFailed"


def test_a_parent_that_a_vm_writes_takes_no_child(world: World, shell: Shell) -> None:
    running = world.add_machine("busy", "hv1", [SIZE])
    leaf = running.disks()[0].path
    assert leaf is not None
    windows = world.storage.windows("hv1", leaf)
    child = {"Path": FOLDER + r"\child.vhdx", "ParentPath": windows}
    assert "0x80070020" in refused(shell, "New-VHD", Differencing=True, **child).message


def test_adapters_are_told_apart_by_their_ids(shell: Shell, vm: Machine) -> None:
    one = of(shell, vm)
    (first,) = shell("Get-VMNetworkAdapter", VM=one)
    shell("Remove-VMNetworkAdapter", VMNetworkAdapter=first)
    assert "not there" in refused(shell, "Remove-VMNetworkAdapter", VMNetworkAdapter=first).message
    (lan,) = shell("Add-VMNetworkAdapter", VM=one, Name="lan", Passthru=True)
    shell("Set-VMNetworkAdapter", VMNetworkAdapter=lan, StaticMacAddress="00-15-5D-01-02-03")
    shell("Connect-VMNetworkAdapter", VMNetworkAdapter=lan, SwitchName="External")
    shell("Set-VMNetworkAdapterVlan", VMNetworkAdapter=lan, Access=True, VlanId=20)
    shell("Rename-VMNetworkAdapter", VMNetworkAdapter=lan, NewName="prod")
    (nic,) = vm.adapters
    assert (nic.name, nic.mac, nic.is_static) == ("prod", "00155D010203", True)
    assert (nic.switch, nic.mode, nic.vlan) == ("External", 1, 20)
    assert lan.get("Id") == f"Microsoft:{vm.id}\\{nic.instance}"
    shell("Disconnect-VMNetworkAdapter", VMNetworkAdapter=lan)
    shell("Set-VMNetworkAdapterVlan", VMNetworkAdapter=lan, Untagged=True)
    assert (nic.switch, nic.mode) == ("", 0)
    none = refused(shell, "Connect-VMNetworkAdapter", VMNetworkAdapter=lan, SwitchName="None")
    assert "virtual switch" in none.message
    assert refused(shell, "Add-VMNetworkAdapter", VM=one, IsLegacy=True)


def test_a_vm_is_stopped_by_its_guest_or_by_force(world: World, shell: Shell, vm: Machine) -> None:
    one = of(shell, vm)
    shell("Start-VM", VM=one)
    assert refused(shell, "Remove-VM", VM=one, Force=True).category == "InvalidOperation"
    assert "32780" in refused(shell, "Stop-VM", VM=one, Force=True).message
    world.clock.sleep(30)
    shell("Stop-VM", VM=one, Force=True)
    assert vm.state == 3
    world.faults.append(Fault("Start-VM", vm="web", code=32768))
    assert refused(shell, "Start-VM", VM=one)
    assert refused(shell, "Remove-VM", VM=one).category == "InvalidOperation"
    shell("Remove-VM", VM=one, Force=True)
    assert world.machines == {}


def test_a_guest_that_never_ends_is_waited_for_in_vain(
    world: World, shell: Shell, vm: Machine
) -> None:
    shell("Start-VM", VM=of(shell, vm))
    vm.guest.stops_after_s = None
    world.clock.sleep(30)
    stuck = refused(shell, "Stop-VM", VM=of(shell, vm), Force=True)
    assert stuck.category == "OperationTimeout"
    assert vm.state == 2


def test_hosts_say_what_they_run(world: World, shell: Shell) -> None:
    versions = [row.get("Version") for row in shell("Get-VMHostSupportedVersion")]
    assert "10.0" in versions
    assert "12.0" not in versions
    (newest,) = shell("Get-VMHostSupportedVersion", Default=True)
    assert newest.get("Version") == "10.0"
    (host,) = shell("Get-VMHost")
    assert host.get("LogicalProcessorCount") == 16
    wrong = refused(shell, "New-VM", Name="x", Version="12.0")
    assert "not supported" in wrong.message


def test_what_the_model_does_not_follow_is_no_silent_success(shell: Shell, vm: Machine) -> None:
    with pytest.raises(NotImplementedError):
        shell("Set-VM", VM=of(shell, vm), SmartPagingFilePath="x")
    assert refused(shell, "Set-VM", VM=of(shell, vm), None_="x").error_id == (
        "NamedParameterNotFound"
    )


def test_rights_and_attributes_of_files(world: World, vm: Machine) -> None:
    powershell = Interpreter(HostView(world, world.hosts["hv1"]), "hv1", world.clock)
    world.storage.attributes[world.root / "hv1" / "base.vhdx"] = {"SparseFile", "Compressed"}
    left = powershell.run(
        f"$said = @(icacls.exe 'C:\\Hyper-V' '/grant' '*{vm.sid}:(OI)(CI)F' '/q')\n"
        '[Console]::Out.Write("$LASTEXITCODE ")\n'
        "$said = @(icacls.exe 'C:\\None' '/grant' '*S-1-1-0:(OI)(CI)F' '/q')\n"
        '[Console]::Out.Write("$LASTEXITCODE ")\n'
        "[Console]::Out.Write([int][IO.File]::GetAttributes('C:\\Hyper-V\\base.vhdx'))\n"
    )
    assert left.stdout == f"0 2 {0x20 + 0x200 + 0x800}"
    assert world.storage.may_write(world.root / "hv1" / "web" / "any.vhdx", vm.sid)
    assert not world.storage.may_write(world.root / "hv1", "S-1-5-83-1-0-0-0-0")


def test_a_clustered_vm_takes_files_of_the_cluster(tmp_path: Path) -> None:
    world = World(HeldClock(), tmp_path / "prod")
    world.add_cluster("prod", ["n1"])
    with vhdx.create(world.root / "n1" / "own.vhdx", SIZE, block_size=MiB):
        pass
    vm = world.add_machine("web", "n1", [SIZE], state=3)
    shell = Shell(world, "n1")
    one = of(shell, vm)
    path = FOLDER + r"\own.vhdx"
    assert refused(shell, "Add-VMHardDiskDrive", VM=one, Path=path).category == "InvalidOperation"
    shell("Add-VMHardDiskDrive", VM=one, Path=path, AllowUnverifiedPaths=True)
    assert len(vm.disks()) == 2
