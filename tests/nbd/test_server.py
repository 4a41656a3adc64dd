"""The server as a whole: sockets, connections, its end."""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

import pytest

from standby.disk.serve import NbdServer, protocol
from standby.errors import ConfigurationError, DiskBusy, DiskIO
from standby.files import ByteLock
from standby.testing.disks import MemoryDisk, content, random_bytes
from standby.testing.nbd_client import NbdClient, NbdError
from standby.units import KiB, MiB

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets")


def test_makes_a_folder_only_its_owner_can_enter(tmp_path: Path) -> None:
    path = tmp_path / "vm" / "nbd.sock"
    with NbdServer({"": MemoryDisk(MiB)}, path):
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


def test_refuses_a_folder_others_can_enter(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigurationError, match="chmod 700"):
        NbdServer({"": MemoryDisk(MiB)}, tmp_path / "nbd.sock")


def test_refuses_a_path_no_socket_can_have(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="shorter"):
        NbdServer({"": MemoryDisk(MiB)}, tmp_path / ("long" * 40) / "nbd.sock")


def test_refuses_a_second_server_and_replaces_a_dead_ones_socket(tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    with NbdServer({"": MemoryDisk(MiB)}, path):
        with pytest.raises(DiskBusy):
            NbdServer({"": MemoryDisk(MiB)}, path)
        client = NbdClient(path)
        client.go()
        client.disconnect()
    with NbdServer({"": MemoryDisk(MiB)}, path):
        NbdClient(path).close()


def test_serves_several_exports_with_rights_of_their_own(tmp_path: Path) -> None:
    disks = {name: MemoryDisk(MiB, name=name) for name in ("a", "b")}
    with NbdServer(disks, tmp_path / "nbd.sock", writable={"b"}):
        for name in disks:
            client = NbdClient(tmp_path / "nbd.sock")
            client.go(name)
            if name == "a":
                with pytest.raises(NbdError):
                    client.write(0, bytes(512))
            else:
                client.write(0, random_bytes(512, 1))
            client.disconnect()
    assert content(disks["a"]) == bytes(MiB)
    assert content(disks["b"])[:512] == random_bytes(512, 1)


def test_many_connections_write_and_a_flush_on_one_covers_all(tmp_path: Path) -> None:
    disk = MemoryDisk(8 * MiB)
    data = random_bytes(8 * MiB, 1)
    with NbdServer({"": disk}, tmp_path / "nbd.sock", writable=True):
        clients = [NbdClient(tmp_path / "nbd.sock") for _ in range(4)]

        def write(number: int) -> None:
            client = clients[number]
            client.go()
            for offset in range(number * 64 * KiB, 8 * MiB, 4 * 64 * KiB):
                client.write(offset, data[offset : offset + 64 * KiB])
                assert client.read(offset, 64 * KiB) == data[offset : offset + 64 * KiB]

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        clients[0].flush()
        assert content(disk.crashed(1)) == data
        for client in clients:
            client.disconnect()


def test_a_slow_read_does_not_hold_other_readers_up(tmp_path: Path) -> None:
    disk = MemoryDisk(MiB)
    entered, go_on = threading.Event(), threading.Event()

    def hold(operation: str, offset: int, _length: int) -> None:
        if operation == "read" and offset == 0:
            entered.set()
            assert go_on.wait(30)

    disk.hook = hold
    with NbdServer({"": disk}, tmp_path / "nbd.sock", writable=True):
        slow, quick = NbdClient(tmp_path / "nbd.sock"), NbdClient(tmp_path / "nbd.sock")
        slow.go()
        quick.go()
        slow.send_request(protocol.CMD_READ, 0, 512)
        assert entered.wait(30)
        assert quick.read(4096, 512) == bytes(512)
        go_on.set()
        slow.close()
        quick.disconnect()


def test_turns_away_more_clients_than_it_has_room_for(tmp_path: Path) -> None:
    disk = MemoryDisk(MiB)
    with NbdServer({"": disk}, tmp_path / "nbd.sock", connections_max=2):
        clients = [NbdClient(tmp_path / "nbd.sock") for _ in range(2)]
        with pytest.raises(ConnectionError):
            NbdClient(tmp_path / "nbd.sock")
        clients[1].go()
        assert clients[1].read(0, 512) == bytes(512)
        for client in clients:
            client.close()


def test_closing_ends_connections_and_flushes(tmp_path: Path) -> None:
    disk = MemoryDisk(MiB)
    server = NbdServer({"": disk}, tmp_path / "nbd.sock", writable=True)
    server.start()
    client = NbdClient(tmp_path / "nbd.sock")
    client.go()
    client.write(0, random_bytes(MiB, 1))
    server.close()
    server.close()
    assert client.socket.recv(1) == b""
    assert content(disk.crashed(1)) == random_bytes(MiB, 1)
    assert not disk.is_closed
    client.close()


def test_closing_says_when_a_flush_failed(tmp_path: Path) -> None:
    disks = {"a": MemoryDisk(MiB), "b": MemoryDisk(MiB)}
    disks["a"].fail("flush")
    server = NbdServer(disks, tmp_path / "nbd.sock", writable=True)
    server.start()
    with pytest.raises(DiskIO):
        server.close()
    assert disks["b"].calls["flush"] == 1
    assert not (tmp_path / "nbd.sock").exists()


def test_serves_a_listening_socket_it_is_given() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with NbdServer({"disk": MemoryDisk(MiB)}, listener) as server:
        assert server.uri("disk").startswith("nbd://127.0.0.1:")
        client = NbdClient(socket.create_connection(listener.getsockname()))
        client.go("disk")
        assert client.read(0, 512) == bytes(512)
        client.disconnect()


def test_leaves_no_lock_file_and_takes_no_lock_on_one_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "vm"
    path = folder / "nbd.sock"
    with NbdServer({"": MemoryDisk(MiB)}, path):
        assert len(list(folder.iterdir())) == 2
    assert list(folder.iterdir()) == []
    acquire = ByteLock.acquire
    looks: list[bool] = []

    def acquire_as_another_ends(lock: ByteLock) -> bool:
        taken = acquire(lock)
        if not looks:  # whoever had it removes the file between our opening and our locking it
            lock.path.unlink()
        looks.append(taken)
        return taken

    monkeypatch.setattr(ByteLock, "acquire", acquire_as_another_ends)
    with NbdServer({"": MemoryDisk(MiB)}, path):
        assert looks == [True, True]
        with pytest.raises(DiskBusy, match="another NBD server"):
            NbdServer({"": MemoryDisk(MiB)}, path)
