"""Which VMs a folder host has, what their disks say, and which files a disk is made of."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from standby.disk import vhdx
from standby.errors import (
    ConfigurationError,
    DiskError,
    HostError,
    ParentRefused,
    SourceChanged,
    UnknownName,
)
from standby.host.folder import (
    Boot,
    FolderHost,
    create_replica_machine,
    inventory,
    new_machine,
    update_replica_machine,
)
from standby.model.machine import Machine, NetworkAdapter
from standby.units import MiB


def write_vm(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vm.toml").write_text(text)
    return folder


def names(host: FolderHost, *, replicas: bool = False) -> list[str]:
    return [machine.name for machine in host.machines(replicas=replicas)]


def test_an_empty_folder_has_no_machines(tmp_path: Path) -> None:
    assert FolderHost("dr", tmp_path).machines() == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"nowhere cannot be listed: .*Is it mounted"):
        FolderHost("dr", tmp_path / "nowhere").machines()


def test_folders_without_vm_toml_and_hidden_ones_are_no_machines(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("x")
    write_vm(tmp_path / ".trash", 'id = "a"\nname = "a"')
    assert names(FolderHost("dr", tmp_path)) == []


def test_replicas_are_listed_only_when_asked_for(tmp_path: Path) -> None:
    write_vm(tmp_path / "web01", 'id = "a"\nname = "web01"')
    write_vm(tmp_path / "web01_replica", 'id = "b"\nname = "web01_replica"')
    (tmp_path / "web01_replica" / "replica.json").write_text("{}")
    host = FolderHost("dr", tmp_path)
    assert names(host) == ["web01"]
    assert names(host, replicas=True) == ["web01", "web01_replica"]
    assert host.machine("web01_replica", replicas=True).id == "b"
    assert host.machine_in("web01_replica").name == "web01_replica"
    with pytest.raises(UnknownName, match="web01"):
        host.machine("web01_replica")


@pytest.mark.parametrize(
    ("second", "word"), [('id = "A"\nname = "other"', "id"), ('id = "z"\nname = "WEB01"', "name")]
)
def test_two_machines_with_one_id_or_name_are_refused(
    tmp_path: Path, second: str, word: str
) -> None:
    write_vm(tmp_path / "one", 'id = "a"\nname = "web01"')
    write_vm(tmp_path / "two", second)
    with pytest.raises(ConfigurationError) as caught:
        FolderHost("dr", tmp_path).machines()
    assert str(tmp_path / "two" / "vm.toml") in str(caught.value)
    assert word in str(caught.value)
    assert "'one'" in str(caught.value)


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    write_vm(tmp_path / "outside" / "web01", 'id = "a"\nname = "web01"')
    root = tmp_path / "root"
    root.mkdir()
    (root / "web01").symlink_to(tmp_path / "outside" / "web01")
    with pytest.raises(ConfigurationError, match="link"):
        FolderHost("dr", root).machines()


GOOD = 'id = "good"\nname = "good"'


@pytest.mark.parametrize(
    ("text", "name", "identity", "words"),
    [
        ('id = "a"\nname = "web01"\nmemroy = 1', "web01", "a", "unknown key"),
        ('name = \'web01\'\n[[disks]]\nplace = "x"\nid = "of the disk"', "web01", "", "id"),
        ('id = "a"\nname = "web01\n', "", "a", "is not TOML"),
        ("\0\0\0", "", "", "is not TOML"),
        ('id = "a"\nname = "a/b"', "", "a", "must be printable"),
    ],
)
def test_a_vm_that_cannot_be_described_hides_no_other(
    tmp_path: Path, text: str, name: str, identity: str, words: str
) -> None:
    write_vm(tmp_path / "folder", text)
    write_vm(tmp_path / "other", GOOD)
    host = FolderHost("prod", tmp_path)
    found = host.inventory()
    assert [machine.name for machine in found.machines] == ["good"]
    (problem,) = found.problems
    assert (problem.folder, problem.name, problem.id) == ("folder", name, identity)
    assert str(tmp_path / "folder" / "vm.toml") in problem.problem
    assert words in problem.problem
    assert host.machine("good").id == "good"
    with pytest.raises(ConfigurationError, match=words):
        host.machine("folder")
    with pytest.raises(ConfigurationError, match=words):
        host.machines()


def test_all_vms_that_share_an_id_or_a_name_are_problems(tmp_path: Path) -> None:
    write_vm(tmp_path / "one", 'id = "a"\nname = "web01"')
    write_vm(tmp_path / "two", 'id = "A"\nname = "web02"')
    write_vm(tmp_path / "three", 'id = "b"\nname = "WEB02"')
    write_vm(tmp_path / "other", GOOD)
    found = FolderHost("prod", tmp_path).inventory()
    assert [machine.name for machine in found.machines] == ["good"]
    assert [(item.folder, item.name) for item in found.problems] == [
        ("one", "web01"),
        ("three", "WEB02"),
        ("two", "web02"),
    ]
    assert all("too" in item.problem for item in found.problems)


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
def test_a_vm_toml_that_is_no_file_is_a_problem_and_never_waited_for(tmp_path: Path) -> None:
    write_vm(tmp_path / "other", GOOD)
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / "vm.toml")
    (tmp_path / "folder" / "vm.toml").mkdir(parents=True)
    found = FolderHost("prod", tmp_path).inventory()
    assert [machine.name for machine in found.machines] == ["good"]
    assert [item.folder for item in found.problems] == ["fifo", "folder"]
    assert all("is not a regular file" in item.problem for item in found.problems)


def test_a_vm_copied_under_a_checkpoint_is_named_when_it_is_confirmed(tmp_path: Path) -> None:
    made = new_machine(tmp_path, "web01", {"scsi:0:0": 4 * MiB})
    host = FolderHost("prod", tmp_path)
    checkpoint = host.take_checkpoint(made, "x")
    write_vm(tmp_path / "broken", "no toml")
    host.confirm_checkpoint(checkpoint)
    shutil.copytree(tmp_path / "web01", tmp_path / "copy")
    with pytest.raises(SourceChanged, match="copied VM needs its own id"):
        host.confirm_checkpoint(checkpoint)
    host.release_checkpoint(checkpoint)


def test_a_new_machine_is_listed_with_sizes_and_identities(tmp_path: Path) -> None:
    made = new_machine(tmp_path, "web 01", {"scsi:0:0": 64 * MiB, "ide:0:1": 8 * MiB}, processors=3)
    assert made.folder == "web_01"
    (found,) = FolderHost("prod", tmp_path).machines()
    assert found == made
    assert [disk.virtual_size for disk in found.disks] == [64 * MiB, 8 * MiB]
    assert all(len(disk.page83) == 36 for disk in found.disks)
    assert len({disk.host_id for disk in found.disks}) == 2
    with pytest.raises(ConfigurationError, match="already"):
        new_machine(tmp_path, "web 01")


@pytest.mark.parametrize("name", ["nul", "COM1", "Com7.x"])
def test_a_new_machines_folder_is_no_name_that_windows_reserves(tmp_path: Path, name: str) -> None:
    assert new_machine(tmp_path, name, {}).folder == name + "_"


def test_raw_disks_count_their_bytes(tmp_path: Path) -> None:
    folder = write_vm(tmp_path / "a", 'id="a"\nname="a"\n[[disks]]\nplace="scsi:0:0"\nfile="d.raw"')
    with (folder / "d.raw").open("wb") as file:
        file.truncate(3 * MiB)
    (machine,) = FolderHost("prod", tmp_path).machines()
    assert machine.disks[0].virtual_size == 3 * MiB
    assert machine.disks[0].logical_sector_size == 512
    assert machine.disks[0].page83 == ""


@pytest.mark.parametrize("size", [0, 7, 511, 513])
def test_an_image_that_is_no_whole_sectors_is_no_disk(tmp_path: Path, size: int) -> None:
    (tmp_path / "d.raw").write_bytes(bytes(size))
    with pytest.raises(DiskError):
        inventory.read_disk_file(tmp_path / "d.raw")


def test_a_machine_with_a_damaged_disk_is_listed_with_size_zero(tmp_path: Path) -> None:
    folder = write_vm(
        tmp_path / "a", 'id="a"\nname="a"\n[[disks]]\nplace="scsi:0:0"\nfile="d.vhdx"'
    )
    (folder / "d.vhdx").write_bytes(b"vhdxfile" + bytes(1000))
    host = FolderHost("prod", tmp_path)
    assert host.machines()[0].disks[0].virtual_size == 0
    with pytest.raises(DiskError, match=r"d\.vhdx"):
        host.take_checkpoint(host.machines()[0], "intent")


# --- chains ----------------------------------------------------------------------------------


def chain(folder: Path, *files: str) -> None:
    """A base and its children, one on the other, in that order of `files`."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
    vhdx.create(folder / files[0], 8 * MiB).close()
    for parent, child in itertools.pairwise(files):
        vhdx.create_child(folder / child, folder / parent).close()


def test_a_chain_is_found_newest_first_across_folders_of_the_machine(tmp_path: Path) -> None:
    chain(tmp_path, "base/base.vhdx", "c1.vhdx", "new/c2.vhdx")
    found = inventory.disk_chain(tmp_path, "new/c2.vhdx")
    assert [layer.path.relative_to(tmp_path).as_posix() for layer in found] == [
        "new/c2.vhdx",
        "c1.vhdx",
        "base/base.vhdx",
    ]
    assert [layer.has_parent for layer in found] == [True, True, False]


def test_a_parent_outside_the_machines_folder_is_refused(tmp_path: Path) -> None:
    chain(tmp_path, "other/base.vhdx", "vm/child.vhdx")
    with pytest.raises(ParentRefused, match="outside"):
        inventory.disk_chain(tmp_path / "vm", "child.vhdx")


def test_a_parent_behind_a_link_is_refused(tmp_path: Path) -> None:
    chain(tmp_path / "vm", "base.vhdx", "child.vhdx")
    shutil.move(tmp_path / "vm" / "base.vhdx", tmp_path / "elsewhere.vhdx")
    (tmp_path / "vm" / "base.vhdx").symlink_to(tmp_path / "elsewhere.vhdx")
    with pytest.raises(ParentRefused, match="link"):
        inventory.disk_chain(tmp_path / "vm", "child.vhdx")


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    chain(tmp_path, "base.vhdx", "child.vhdx")
    (tmp_path / "base.vhdx").unlink()
    with pytest.raises(ParentRefused, match=r"base\.vhdx"):
        inventory.disk_chain(tmp_path, "child.vhdx")


def test_a_chain_that_bites_its_tail_is_refused(tmp_path: Path) -> None:
    chain(tmp_path, "base.vhdx", "child.vhdx")
    (tmp_path / "base.vhdx").unlink()
    shutil.copyfile(tmp_path / "child.vhdx", tmp_path / "base.vhdx")
    with pytest.raises(ParentRefused, match="loop"):
        inventory.disk_chain(tmp_path, "child.vhdx")


# --- the VM of a replica ---------------------------------------------------------------------

SOURCE = Machine(
    "vm-1",
    "web01_replica",
    "web01",
    memory_bytes=512 * MiB,
    adapters=(NetworkAdapter("lan", "br0", "525400000001"),),
)


def replica_source(tmp_path: Path) -> Machine:
    made = new_machine(tmp_path / "source", "web01", {"scsi:0:0": 8 * MiB, "scsi:0:1": 8 * MiB})
    return Machine("vm-1", "web01_replica", "web01", disks=made.disks, adapters=SOURCE.adapters)


def test_a_replica_machine_is_written_updated_and_deleted(tmp_path: Path) -> None:
    source = replica_source(tmp_path)
    root = tmp_path / "target"
    folder = root / "web01_replica"
    chain(folder, "d1/base.vhdx", "d1/ready.vhdx")
    made = create_replica_machine(folder, source, {"scsi:0:0": "d1/ready.vhdx"}, Boot("k"))
    (folder / "replica.json").write_text("{}")
    host = FolderHost("dr", root)
    assert host.machines() == []
    (found,) = host.machines(replicas=True)
    assert found.name == made.name == "web01_replica"
    assert [disk.file for disk in found.disks] == ["d1/ready.vhdx"]
    assert found.adapters == SOURCE.adapters
    before = (folder / "vm.toml").stat().st_mtime_ns, (folder / "vm.toml").stat().st_ino
    update_replica_machine(folder, source, {"scsi:0:0": "d1/ready.vhdx"})
    assert before == ((folder / "vm.toml").stat().st_mtime_ns, (folder / "vm.toml").stat().st_ino)
    update_replica_machine(folder, source, {"scsi:0:1": "d1/ready.vhdx"})
    assert [disk.place for disk in host.machines(replicas=True)[0].disks] == ["scsi:0:1"]
    assert 'kernel = "k"' in (folder / "vm.toml").read_text()


def test_a_replica_machine_has_no_disk_that_the_source_lacks(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    with pytest.raises(ConfigurationError, match="scsi:0:9"):
        create_replica_machine(folder, replica_source(tmp_path), {"scsi:0:9": "d/ready.vhdx"})


@pytest.mark.parametrize("name", ["", "vars/web01.fd"])
def test_uefi_variables_are_a_state_file_wherever_they_are(tmp_path: Path, name: str) -> None:
    line = f'nvram = "{name}"' if name else ""
    folder = write_vm(tmp_path / "vm", f'id = "a"\nname = "a"\n{line}')
    host = FolderHost("prod", tmp_path)
    assert host.state_files(host.machine("a")) == {}
    file = folder / (name or "nvram.fd")
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"variables")
    assert host.state_files(host.machine("a")) == {name or "nvram.fd": "dmFyaWFibGVz"}
    (folder / "vm.toml").write_text('id = "a"\nname = "a"\ngeneration = 1')
    assert host.state_files(host.machine("a")) == {}


def test_a_replica_keeps_its_uefi_variables_under_a_name_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    source = replace(replica_source(tmp_path), nvram="replica.json")
    assert create_replica_machine(folder, source, {}).nvram == "nvram.fd"
    assert update_replica_machine(folder, source, {}).nvram == "nvram.fd"
