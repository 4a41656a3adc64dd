"""vm.toml: strict reading, refusals that name file, table and key, and rendering back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standby.errors import ConfigurationError
from standby.host.folder import vm_toml
from standby.host.folder.vm_toml import Boot
from standby.model.machine import Machine, MachineDisk, NetworkAdapter
from standby.units import GiB

WHOLE = """
id = "5f0c1c9e-6a0f-4f5e-9a1e-3a2b1c0d9e8f"
name = "web01"
generation = 1
memory = "2 GiB"
processors = 4
nvram = "nvram.fd"

[[disks]]
place = "scsi:0:0"
file = "disks/system.vhdx"
id = "D1"

[[disks]]
place = "ide:0:1"
file = "data.vhdx"

[[adapters]]
name = "lan"
network = "br0"
mac = "52:54:00:AB:CD:EF"
vlan = 12

[boot]
kernel = "boot/vmlinuz"
initrd = "boot/initrd"
append = "console=ttyS0 quiet"
"""


def parsed(text: str) -> vm_toml.MachineFile:
    return vm_toml.parse(text, "/vms/web01/vm.toml", "web01")


def test_reads_every_key() -> None:
    item = parsed(WHOLE)
    assert item.machine == Machine(
        id="5f0c1c9e-6a0f-4f5e-9a1e-3a2b1c0d9e8f",
        name="web01",
        folder="web01",
        generation=1,
        memory_bytes=2 * GiB,
        processors=4,
        nvram="nvram.fd",
        disks=(
            MachineDisk("scsi:0:0", "disks/system.vhdx", host_id="D1"),
            MachineDisk("ide:0:1", "data.vhdx"),
        ),
        adapters=(NetworkAdapter("lan", "br0", "525400abcdef", 12),),
    )
    assert item.boot == Boot("boot/vmlinuz", "boot/initrd", "console=ttyS0 quiet")


def test_id_and_name_are_enough() -> None:
    item = parsed('id = "a"\nname = "b"')
    assert (item.machine.generation, item.machine.processors) == (2, 1)
    assert item.machine.memory_bytes == GiB
    assert item.machine.disks == ()
    assert item.boot == Boot()


DISK = '[[disks]]\nplace = "scsi:0:0"\nfile = "a.vhdx"\n'


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('id = "a"', ["name", "missing"]),
        ('name = "b"', ["id", "missing"]),
        ('id = "a"\nname = 7', ["name", "text"]),
        ('id = "a b"\nname = "b"', ["id", "'a b'"]),
        (f'id = "{"a" * 65}"\nname = "b"', ["id", "1 to 64"]),
        ('id = "a"\nname = "../b"', ["name", "'../b'"]),
        ('id = "a"\nname = " b"', ["name"]),
        ('id = "a"\nname = "b"\nmemroy = "1 GiB"', ["memroy", "memory"]),
        ('id = "a"\nname = "b"\nmemory = "much"', ["memory", "'much'"]),
        ('id = "a"\nname = "b"\nmemory = "1 MiB"', ["memory"]),
        ('id = "a"\nname = "b"\nmemory = "65 TiB"', ["memory"]),
        ('id = "a"\nname = "b"\ngeneration = 3', ["generation", "3"]),
        ('id = "a"\nname = "b"\nprocessors = true', ["processors"]),
        ('id = "a"\nname = "b"\nnvram = "../x"', ["nvram", "'..'"]),
        ('id = "a"\nname = "b"\ndisks = 3', ["disks", "[[disks]]"]),
        ('id = "a"\nname = "b"\n[[disks]]\nplace = "scsi:0:0"', ["[disks 1]", "file"]),
        ('id = "a"\nname = "b"\n[[disks]]\nplace = "nvme:0"\nfile = "a"', ["place", "'nvme:0'"]),
        ('id = "a"\nname = "b"\n[[disks]]\nplace = "ide:3:0"\nfile = "a"', ["place"]),
        ('id = "a"\nname = "b"\n[[disks]]\nplace = "scsi:0:01"\nfile = "a"', ["place"]),
        ('id = "a"\nname = "b"\n' + DISK + DISK, ["[disks 2]", "scsi:0:0", "1 too"]),
        ('id = "a"\nname = "b"\n' + DISK + "size = 7", ["[disks 1]", "size"]),
        ('id = "a"\nname = "b"\n[[adapters]]\nname = "l"\nmac = "52"', ["[adapters 1]", "mac"]),
        ('id = "a"\nname = "b"\n[boot]\ninitrd = "x"', ["[boot]", "kernel"]),
        ('id = "a"\nname = "b"\n[boot]\nkernel = "/vmlinuz"', ["[boot]", "kernel", "absolute"]),
        ("id = ", ["TOML"]),
    ],
)
def test_refuses_and_names_file_and_key(change: str, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parsed(change)
    text = str(caught.value)
    assert text.startswith("/vms/web01/vm.toml")
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a//b",
        "./a",
        "a/.",
        "C:/x",
        "a\\b",
        "a\0b",
        "a.",
        "a ",
    ],
)
def test_refuses_paths_that_could_lead_out(path: str) -> None:
    assert vm_toml.path_problem(path)


@pytest.mark.parametrize("path", ["a", "a/b.vhdx", "..a", "a..b", ".hidden/ü 1.vhdx"])
def test_takes_plain_paths(path: str) -> None:
    assert vm_toml.path_problem(path) == ""


def test_what_is_rendered_reads_back() -> None:
    item = parsed(WHOLE)
    assert parsed(vm_toml.render(item.machine, item.boot)) == item


@given(
    name=st.text(min_size=1, max_size=100),
    append=st.text(max_size=200),
    memory=st.integers(16 << 20, 64 << 40),
)
def test_rendering_survives_any_text(name: str, append: str, memory: int) -> None:
    machine = replace(parsed(WHOLE).machine, name=name, memory_bytes=memory)
    boot = Boot("kernel", "", append)
    if vm_toml.name_problem(name):
        with pytest.raises(ConfigurationError):
            vm_toml.render(machine, boot)
    else:
        item = parsed(vm_toml.render(machine, boot))
        assert item == vm_toml.MachineFile(machine, boot)


def test_renders_only_what_it_would_read(tmp_path: Path) -> None:
    machine = Machine("a", "b", "b", disks=(MachineDisk("scsi:0:0", "../x.vhdx"),))
    with pytest.raises(ConfigurationError, match="file"):
        vm_toml.render(machine)


def test_refuses_a_file_that_is_a_link_or_too_long_or_not_text(tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    for data, word in ((b"\xff", "UTF-8"), (b"#" * ((1 << 20) + 1), "longer")):
        path.write_bytes(data)
        with pytest.raises(ConfigurationError, match=word):
            vm_toml.load(path, "x")
    (tmp_path / "real").write_text('id = "a"\nname = "b"')
    path.unlink()
    path.symlink_to(tmp_path / "real")
    with pytest.raises(ConfigurationError, match="regular file"):
        vm_toml.load(path, "x")
