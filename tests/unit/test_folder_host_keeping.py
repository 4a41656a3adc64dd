"""Writes that a disk server acknowledged and did not flush, and what a kill does to them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from standby.clock import SYSTEM_CLOCK
from standby.disk import open_disk, vhdx
from standby.errors import DiskFull, DiskIO
from standby.files import File
from standby.host.folder import keeping, power, processes
from standby.host.folder.keeping import KeptDisk
from standby.testing.disks import MemoryDisk, content, random_operations
from standby.testing.nbd_client import NbdClient
from standby.units import KiB, MiB


def test_what_was_written_since_the_last_flush_is_done_again(tmp_path: Path) -> None:
    disk = MemoryDisk(2 * MiB)
    plain = bytearray(2 * MiB)
    kept = KeptDisk(disk, tmp_path / "kept")
    flushed = MemoryDisk(2 * MiB)  # what a server's death leaves: the state at the last flush
    for operation in random_operations(11, 2 * MiB, 200):
        operation.apply(kept, plain)
        if operation.name == "flush":
            flushed.write(0, plain)
    assert content(disk) == plain
    assert content(flushed) != plain
    next_server = KeptDisk(flushed, tmp_path / "kept")
    assert next_server.repeated > 0
    assert content(flushed) == plain
    assert (tmp_path / "kept").stat().st_size == 0
    assert flushed.calls["flush"] == 1
    next_server.close()
    next_server.close()
    assert not (tmp_path / "kept").exists()


def test_a_flush_forgets_what_was_kept(tmp_path: Path) -> None:
    disk = MemoryDisk(1 * MiB)
    kept = KeptDisk(disk, tmp_path / "kept")
    kept.write(0, b"x" * 512)
    assert (tmp_path / "kept").stat().st_size == 24 + 512
    kept.flush()
    assert (tmp_path / "kept").stat().st_size == 0
    assert KeptDisk(MemoryDisk(1 * MiB), tmp_path / "kept").repeated == 0


@pytest.mark.parametrize("left", [0, 1, 23, 24, 24 + 511])
def test_a_record_cut_short_is_the_end(tmp_path: Path, left: int) -> None:
    kept = KeptDisk(MemoryDisk(1 * MiB), tmp_path / "kept")
    kept.write(0, b"a" * 512)
    kept.write(512, b"b" * 512)
    with (tmp_path / "kept").open("r+b") as file:
        file.truncate(24 + 512 + left)
        if left >= 20:  # the header comes after its data: it is not there yet
            file.seek(24 + 512)
            file.write(bytes(min(left, 24)))
    disk = MemoryDisk(1 * MiB)
    assert KeptDisk(disk, tmp_path / "kept").repeated == 1
    assert content(disk)[:1024] == b"a" * 512 + bytes(512)


def test_a_write_larger_than_what_may_be_kept_is_flushed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_KEPT_MAX", 64 * KiB)
    disk = MemoryDisk(1 * MiB)
    kept = KeptDisk(disk, tmp_path / "kept")
    for offset in range(0, 1 * MiB, 16 * KiB):
        kept.write(offset, b"y" * 16 * KiB)
        assert (tmp_path / "kept").stat().st_size <= 64 * KiB
    kept.write(0, b"z" * 128 * KiB)
    left = MemoryDisk(1 * MiB)
    KeptDisk(left, tmp_path / "kept")
    assert disk.crashed(1) is not None
    assert content(disk) == b"z" * 128 * KiB + b"y" * (1 * MiB - 128 * KiB)


def test_without_room_to_keep_every_write_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = MemoryDisk(1 * MiB)
    kept = KeptDisk(disk, tmp_path / "kept")

    def full(self: File, data: object, offset: int) -> None:
        raise DiskFull(str(self.path), 1, 0)

    monkeypatch.setattr(File, "write", full)
    kept.write(0, b"x" * 512)
    kept.zero(4096, 512)
    assert content(disk.crashed(1)) == content(disk)
    assert content(disk)[:512] == b"x" * 512


def test_a_flush_that_fails_forgets_nothing(tmp_path: Path) -> None:
    disk = MemoryDisk(1 * MiB)
    kept = KeptDisk(disk, tmp_path / "kept")
    kept.write(0, b"x" * 512)
    disk.fail("flush")
    with pytest.raises(DiskIO):
        kept.flush()
    with pytest.raises(DiskIO):
        kept.close()
    again = MemoryDisk(1 * MiB)
    assert KeptDisk(again, tmp_path / "kept").repeated == 1
    assert content(again)[:512] == b"x" * 512


# --- the server, killed ----------------------------------------------------------------------


class Servers:
    """Disk servers for child.vhdx in `folder`, one after the other at one socket."""

    def __init__(self, folder: Path, runtime: Path) -> None:
        self.socket = runtime / "s"
        self.command = [
            *(sys.executable, "-m", "standby.host.folder.disk_server"),
            *("--socket", str(self.socket), "--kept", f"{self.socket}.kept"),
            *("--folder", str(folder), f"d0={folder / 'child.vhdx'}"),
        ]
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        """The next server, ready."""
        process = subprocess.Popen(self.command, stdout=subprocess.PIPE)
        self.started.append(process)
        assert process.stdout is not None
        assert b"ready\n" in iter(process.stdout.readline, b"")
        return process

    def client(self) -> NbdClient:
        """A client of the disk."""
        client = NbdClient(self.socket)
        client.go("d0")
        return client


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """A base and a child on it, and servers for the child; nothing is left in their folder."""
    vhdx.create(tmp_path / "base.vhdx", 64 * MiB).close()
    vhdx.create_child(tmp_path / "child.vhdx", tmp_path / "base.vhdx").close()
    with tempfile.TemporaryDirectory(prefix="sb-") as runtime:
        made = Servers(tmp_path, Path(runtime))
        yield made
        for process in made.started:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        assert list(Path(runtime).glob("*.kept*")) == []


def test_a_killed_server_loses_no_acknowledged_write(tmp_path: Path, servers: Servers) -> None:
    """A client that reconnects reads all it wrote, flushed or not, through any number of kills."""
    plain = bytearray(64 * MiB)
    operations = list(random_operations(5, 64 * MiB, 90, length_max=1 * MiB))
    for start in range(0, len(operations), 30):
        server = servers.start()
        client = servers.client()
        assert client.read(0, 16 * MiB) == plain[: 16 * MiB]
        for operation in operations[start : start + 30]:
            if operation.name == "flush":
                client.flush()
            else:
                data = operation.data or bytes(operation.length)
                client.write(operation.offset, data)
                plain[operation.offset : operation.offset + operation.length] = data
        server.kill()
        server.wait()
        client.close()
    server = servers.start()
    client = servers.client()
    for offset in range(0, 64 * MiB, 16 * MiB):
        assert client.read(offset, 16 * MiB) == plain[offset : offset + 16 * MiB]
    client.disconnect()
    server.terminate()
    assert server.wait(timeout=60) == 0
    with open_disk(tmp_path / "child.vhdx") as disk:
        assert content(disk) == plain


def test_a_server_tells_who_it_is_by_its_socket(servers: Servers) -> None:
    server = servers.start()
    socket_path = str(servers.socket)
    assert power.listener_pid(socket_path) == server.pid
    start = processes.started(server.pid)
    os.kill(server.pid, 9)
    assert processes.wait_for_end(server.pid, start, SYSTEM_CLOCK, timeout_s=30)
    assert power.listener_pid(socket_path) == 0
    assert power.listener_pid(socket_path + "x") == 0
    server = servers.start()
    server.terminate()
    assert server.wait(timeout=60) == 0
