"""The model's CIM cmdlets: what a script gets, and what is an error as on Windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clocks import HeldClock
from hyperv import published
from hyperv.dialect.values import Byte, CimInstance, UInt64
from hyperv.dialect.world import PSError
from hyperv.shells import NS, Shell
from hyperv.world import (
    Fault,
    Machine,
    World,
    make_classes,
    make_cmdlets,
    schema,
)
from hyperv.world.embedded import parsed, rendered
from standby.units import MiB

SIZE = 8 * MiB


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(HeldClock(), tmp_path)
    made.add_cluster("prod", ["hv1", "hv2"])
    return made


@pytest.fixture
def vm(world: World) -> Machine:
    return world.add_machine("web", "hv1", [SIZE, SIZE])


@pytest.fixture
def shell(world: World) -> Shell:
    return Shell(world, "hv1")


def test_a_cycle_of_snapshot_conversion_and_changes(
    world: World, vm: Machine, shell: Shell
) -> None:
    job = shell.ended(shell.snapshot(vm))
    assert job.get("JobState") == 7
    (snapshot,) = shell.associated(job, "Msvm_VirtualSystemSettingData")
    assert snapshot.get("VirtualSystemType") == "Microsoft:Hyper-V:Snapshot:Recovery"
    assert len(shell.associated(snapshot, "Msvm_StorageAllocationSettingData")) == 2
    world.write(vm, MiB, b"x" * 4096)
    service = shell.instances("Msvm_VirtualSystemSnapshotService")[0]
    job = shell.ended(shell.invoke(service, "ConvertToReferencePoint", AffectedSnapshot=snapshot))
    (point,) = shell.associated(job, "Msvm_VirtualSystemReferencePoint")
    world.clock.sleep(10)
    shell.computer(vm)
    assert world.depth(vm) == 1
    ids = dict(
        zip(
            point.get("VirtualDiskIdentifiers"),
            point.get("ResilientChangeTrackingIdentifiers"),
            strict=True,
        )
    )
    job = shell.ended(shell.snapshot(vm))
    (snapshot,) = shell.associated(job, "Msvm_VirtualSystemSettingData")
    (images,) = shell.instances("Msvm_ImageManagementService")
    expected = {"0": ([MiB], [32 * 1024]), "1": ([], [])}
    for disk in shell.associated(snapshot, "Msvm_StorageAllocationSettingData"):
        place = disk.get("InstanceID").split("\\")[-2]
        since = next(value for key, value in ids.items() if key.split("\\")[-2] == place)
        result = shell.invoke(
            images,
            "GetVirtualDiskChanges",
            Path=disk.get("HostResource")[0],
            LimitId=since,
            ByteOffset=UInt64(0),
            ByteLength=UInt64(SIZE),
        )
        assert result.get("ReturnValue") == 0
        assert result.get("ProcessedByteLength") == SIZE
        found = (result.get("ChangedByteOffsets"), result.get("ChangedByteLengths"))
        assert found == expected[place]
    points = shell.instances("Msvm_VirtualSystemReferencePointService")[0]
    shell.ended(shell.invoke(points, "DestroyReferencePoint", AffectedReferencePoint=point))
    assert shell.instances("Msvm_VirtualSystemReferencePoint") == []


def test_a_disk_is_described_as_its_file_says(world: World, vm: Machine, shell: Shell) -> None:
    (images,) = shell.instances("Msvm_ImageManagementService")
    path = r"C:\ClusterStorage\Volume1\web\web-0.vhdx"
    result = shell.invoke(images, "GetVirtualHardDiskSettingData", Path=path)
    values = parsed(
        result.get("SettingData"), shell.view.rows.classes, "Msvm_VirtualHardDiskSettingData"
    ).values
    assert values["MaxInternalSize"] == SIZE
    assert values["Path"] == path
    leaf = vm.disks()[0].path
    assert leaf is not None
    assert values["VirtualDiskId"] == world.storage.disk_id(leaf)
    result = shell.invoke(images, "GetVirtualHardDiskSettingData", Path=path + "x")
    assert result.get("ReturnValue") == 32779
    elsewhere = Shell(world, "hv2")
    (images,) = elsewhere.instances("Msvm_ImageManagementService")
    result = elsewhere.invoke(images, "GetVirtualHardDiskSettingData", Path=path)
    assert result.get("ReturnValue") == 32774


@pytest.mark.parametrize(
    ("parameters", "error_id"),
    [
        ({"ClassName": "Msvm_None"}, "HRESULT 0x80041010"),
        ({"ClassName": "Msvm_ComputerSystem", "Namespace": r"root\none"}, "HRESULT 0x8004100e"),
        ({"ClassName": "Msvm_ComputerSystem", "Filter": "Nam='x'"}, "HRESULT 0x80041017"),
        ({"ClassName": "Msvm_ComputerSystem", "Filter": "Name='x"}, "HRESULT 0x80041017"),
        ({"ClassName": "Msvm_ComputerSystem", "Property": ["Nam"]}, "HRESULT 0x80041017"),
        ({"ClassName": "Msvm_ComputerSystem", "Where": "x"}, "NamedParameterNotFound"),
        ({"Filter": "Name='x'"}, "MissingMandatoryParameter"),
    ],
)
def test_what_does_not_exist_is_an_error(
    shell: Shell, parameters: dict[str, Any], error_id: str
) -> None:
    with pytest.raises(PSError) as caught:
        shell("Get-CimInstance", **{"Namespace": NS, **parameters})
    assert caught.value.error_id == error_id


@pytest.mark.parametrize(
    ("method", "arguments", "hresult"),
    [
        ("GetVirtualDiskChange", {}, 0x80041055),
        ("GetVirtualDiskChanges", {"Offset": UInt64(0)}, 0x8004102F),
        ("GetVirtualDiskChanges", {"ByteOffset": 0}, 0x80041005),
        ("GetVirtualDiskChanges", {"Path": ["x"]}, 0x80041005),
    ],
)
def test_a_method_takes_its_own_arguments_in_their_own_types(
    shell: Shell, method: str, arguments: dict[str, Any], hresult: int
) -> None:
    (images,) = shell.instances("Msvm_ImageManagementService")
    with pytest.raises(PSError) as caught:
        shell.invoke(images, method, **arguments)
    assert caught.value.hresult == hresult


def test_a_property_of_another_type_is_refused(shell: Shell, vm: Machine) -> None:
    with pytest.raises(PSError):
        shell.snapshot(vm, GuestBackupType=2)
    with pytest.raises(PSError):
        shell.snapshot(vm, Consistency=Byte(2))


def test_the_oldest_host_knows_no_copy_type(world: World) -> None:
    world.add_host("old", 2016)
    vm = world.add_machine("app", "old", [SIZE])
    with pytest.raises(PSError):
        Shell(world, "old").snapshot(vm, GuestBackupType=Byte(2))


def test_templates_and_the_host_itself_stand_among_the_rows(shell: Shell, vm: Machine) -> None:
    names = [row.get("Name") for row in shell.instances("Msvm_ComputerSystem")]
    assert names == ["HV1", vm.id]
    ids = [row.get("InstanceID") for row in shell.instances("Msvm_StorageAllocationSettingData")]
    assert sum(id.startswith("Microsoft:Definition\\") for id in ids) == 4
    doubled = f"Microsoft:{vm.id}\\{vm.disks()[0].element_id()}\\L".replace("\\", "\\\\")
    (row,) = shell.instances("Msvm_StorageAllocationSettingData", Filter=f"InstanceID='{doubled}'")
    assert row.get("HostResource") == [r"C:\ClusterStorage\Volume1\web\web-0.vhdx"]


def test_a_vm_that_moved_is_not_found_where_it_was(world: World, vm: Machine, shell: Shell) -> None:
    computer = shell.computer(vm)
    world.hooks.append(lambda host, what, arguments: world.move(vm, "hv2"))
    with pytest.raises(PSError) as caught:
        shell("Get-CimInstance", InputObject=computer)
    assert caught.value.category == "ObjectNotFound"
    assert Shell(world, "hv2").computer(vm).get("ElementName") == "web"


def test_denied_rights_and_told_faults(world: World, vm: Machine, shell: Shell) -> None:
    world.faults.append(Fault("CreateSnapshot", vm="web", code=32775))
    assert shell.snapshot(vm).get("ReturnValue") == 32775
    world.faults.append(Fault("CreateSnapshot", job=(10, 32768, "no room")))
    assert shell.ended(shell.snapshot(vm)).get("ErrorDescription") == "no room"
    world.hosts["hv1"].denied.add("CreateSnapshot")
    assert shell.snapshot(vm).get("ReturnValue") == 32769
    world.hosts["hv1"].denied.add("Msvm_ComputerSystem")
    with pytest.raises(PSError) as caught:
        shell.instances("Msvm_ComputerSystem")
    assert caught.value.category == "PermissionDenied"


def test_every_class_with_instances_gives_them(world: World, vm: Machine, shell: Shell) -> None:
    """All rows fit their classes, with types and keys."""
    world.recovery_snapshot(vm)
    count = 0
    for name in shell.view.rows._makers:
        for row in shell.view.rows.of(name):
            instance = schema.new_instance(row.kind, row.values)
            assert isinstance(instance, CimInstance)
            assert None not in instance.key
            rendered(row.kind, row.values)
            count += 1
    assert count > 50


def test_classes_are_those_that_are_published() -> None:
    excerpt = make_classes.excerpt(published.facts(published.WMI))
    assert make_classes.CLASSES.read_text() == make_classes.rendered(excerpt)


def test_cmdlets_are_those_that_are_published() -> None:
    excerpt = make_cmdlets.excerpt(published.facts(published.CMDLETS))
    assert make_cmdlets.CMDLETS.read_text() == make_cmdlets.rendered(excerpt)
