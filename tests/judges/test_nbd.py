"""Independent NBD clients: libnbd's tools and QEMU's."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import judging
from standby.disk.raw import create_raw
from standby.disk.serve import NbdServer
from standby.testing.disks import MemoryDisk, content, fill, random_bytes
from standby.units import MiB

pytestmark = [
    pytest.mark.judge,
    pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets"),
]

SIZE = 9 * MiB + 4096


@pytest.fixture
def disks() -> dict[str, MemoryDisk]:
    made = {
        "system": MemoryDisk(SIZE),
        "data 4k": MemoryDisk(SIZE, logical_sector_size=4096),
        "scratch": MemoryDisk(SIZE),
    }
    for seed, disk in enumerate((made["system"], made["data 4k"])):
        fill(disk, seed, length_max=MiB)
    return made


@pytest.fixture
def server(tmp_path: Path, disks: dict[str, MemoryDisk]) -> Iterator[NbdServer]:
    with NbdServer(disks, tmp_path / "s" / "nbd.sock", writable={"scratch"}) as made:
        yield made


def test_nbdinfo_lists_everything(server: NbdServer, disks: dict[str, MemoryDisk]) -> None:
    any_uri = server.uri("system").replace("/system?", "/?")
    told = json.loads(
        judging.run(judging.require_tool("nbdinfo"), "--json", "--list", any_uri).stdout
    )
    assert told["protocol"] == "newstyle-fixed"
    assert told["structured"] is True
    found = {export["export-name"]: export for export in told["exports"]}
    assert set(found) == set(disks)
    for name, export in found.items():
        assert export["export-size"] == SIZE
        assert export["contexts"] == ["base:allocation"]
        assert export["is_read_only"] == (name != "scratch")
        assert export["can_multi_conn"] is True
        assert export["block_size_minimum"] == disks[name].logical_sector_size
    assert found["scratch"]["can_fua"] is True
    assert found["scratch"]["can_trim"] is True
    assert found["scratch"]["can_zero"] is True


@pytest.mark.parametrize("name", ["system", "data 4k"])
def test_nbdinfo_maps_what_the_extents_tell(
    server: NbdServer, disks: dict[str, MemoryDisk], name: str
) -> None:
    tool = judging.require_tool("nbdinfo")
    told = json.loads(judging.run(tool, "--json", "--map", server.uri(name)).stdout)
    expected: list[list[int]] = []
    for extent in disks[name].extents():
        state = 0 if extent.kind.name == "DATA" else 3
        if expected and expected[-1][2] == state:
            expected[-1][1] += extent.length
        else:
            expected.append([extent.offset, extent.length, state])
    assert [[run["offset"], run["length"], run["type"]] for run in told] == expected


@pytest.mark.parametrize("name", ["system", "data 4k"])
def test_nbdcopy_reads_the_content(
    server: NbdServer, disks: dict[str, MemoryDisk], name: str, tmp_path: Path
) -> None:
    judging.run(judging.require_tool("nbdcopy"), server.uri(name), tmp_path / "copy.raw")
    assert (tmp_path / "copy.raw").read_bytes() == content(disks[name])


def test_nbdcopy_writes_the_content(
    server: NbdServer, disks: dict[str, MemoryDisk], tmp_path: Path
) -> None:
    fill(disks["scratch"], 5)
    source = tmp_path / "source.raw"
    with create_raw(source, SIZE) as disk:
        fill(disk, 6, length_max=MiB)
    judging.run(judging.require_tool("nbdcopy"), "--flush", source, server.uri("scratch"))
    assert content(disks["scratch"]) == source.read_bytes()
    assert disks["scratch"].calls["flush"] >= 1


def test_nbdcopy_from_export_to_export(server: NbdServer, disks: dict[str, MemoryDisk]) -> None:
    copy = judging.require_tool("nbdcopy")
    judging.run(copy, "--destination-is-zero", server.uri("system"), server.uri("scratch"))
    assert content(disks["scratch"]) == content(disks["system"])


@pytest.mark.parametrize("name", ["system", "data 4k"])
def test_qemu_img_reads_the_content(
    server: NbdServer, disks: dict[str, MemoryDisk], name: str, tmp_path: Path
) -> None:
    raw = tmp_path / "copy.raw"
    tool = judging.require_tool("qemu-img")
    judging.run(tool, "convert", "-f", "raw", "-O", "raw", server.uri(name), raw)
    assert raw.read_bytes() == content(disks[name])
    judging.run(tool, "compare", "-f", "raw", "-F", "raw", server.uri(name), raw)


def test_qemu_img_writes_the_content(
    server: NbdServer, disks: dict[str, MemoryDisk], tmp_path: Path
) -> None:
    fill(disks["scratch"], 7)
    source = tmp_path / "source.raw"
    source.write_bytes(random_bytes(MiB, 1) + bytes(2 * MiB) + random_bytes(SIZE - 3 * MiB, 2))
    tool = judging.require_tool("qemu-img")
    judging.run(tool, "convert", "-n", "-f", "raw", "-O", "raw", source, server.uri("scratch"))
    assert content(disks["scratch"]) == source.read_bytes()


def test_qemu_img_maps_the_disk(server: NbdServer, disks: dict[str, MemoryDisk]) -> None:
    tool = judging.require_tool("qemu-img")
    uri = server.uri("system")
    told = json.loads(judging.run(tool, "map", "--output=json", "-f", "raw", uri).stdout)
    kinds = bytearray(SIZE // 512)
    for run in told:
        first, stop = run["start"] // 512, (run["start"] + run["length"]) // 512
        kinds[first:stop] = bytes([not run["zero"]]) * (stop - first)
    for extent in disks["system"].extents():
        first, stop = extent.offset // 512, extent.stop // 512
        assert set(kinds[first:stop]) == {extent.kind.name == "DATA"}, extent


def test_qemu_io_writes_zeroes_discards_and_flushes(
    server: NbdServer, disks: dict[str, MemoryDisk]
) -> None:
    judging.run(
        judging.require_tool("qemu-io"),
        "-f",
        "raw",
        *("-c", "write -P 7 0 4M"),
        *("-c", "write -z 64k 64k"),
        *("-c", "write -z -u 1M 512k"),
        *("-c", "discard 2M 1M"),
        *("-c", "write -f -P 9 4k 512"),
        *("-c", "flush"),
        *("-c", "read -P 9 4k 512"),
        server.uri("scratch"),
    )
    expected = bytearray(b"\7" * 4 * MiB)
    expected[64 << 10 : 128 << 10] = bytes(64 << 10)
    expected[MiB : MiB + MiB // 2] = bytes(MiB // 2)
    expected[2 * MiB : 3 * MiB] = bytes(MiB)
    expected[4096:4608] = b"\11" * 512
    assert content(disks["scratch"])[: 4 * MiB] == expected
    assert disks["scratch"].calls["flush"] >= 2
