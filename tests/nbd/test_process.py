"""The server as a process of its own: start, clean end, and the end by SIGKILL."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.processes import state_of, wait_until
from standby.disk import open_disk, vhdx
from standby.disk.check import check_disk
from standby.disk.raw import create_raw
from standby.disk.serve import protocol
from standby.testing.disks import content, fill, random_bytes, random_operations
from standby.testing.nbd_client import NbdClient
from standby.units import KiB, MiB

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets and signals")


class ServerProcess:
    """`python -m standby.disk.serve`, ready."""

    def __init__(self, *arguments: str | Path) -> None:
        command = [sys.executable, "-m", "standby.disk.serve", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.ready: dict[str, Any] = json.loads(line) if line else {}

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal; the exit code and what was said on stderr."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        out, error = self.process.communicate(timeout=60)
        assert out == ""
        return self.process.returncode, error


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    disk = vhdx.create(tmp_path / "base.vhdx", 8 * MiB, block_size=2 * MiB)
    fill(disk, 1)
    disk.close()
    return disk.path


@pytest.fixture
def child(tmp_path: Path, parent: Path) -> Path:
    vhdx.create_child(tmp_path / "ready.vhdx", parent, block_size=MiB).close()
    return tmp_path / "ready.vhdx"


@contextlib.contextmanager
def serving(*arguments: str | Path) -> Iterator[ServerProcess]:
    server = ServerProcess(*arguments)
    try:
        yield server
    finally:
        server.end(signal.SIGKILL)


def test_says_when_it_is_ready_and_where(tmp_path: Path, child: Path) -> None:
    raw = tmp_path / "plain.raw"
    create_raw(raw, MiB).close()
    socket = tmp_path / "s" / "nbd.sock"
    with serving("--socket", socket, f"system={child}", f"data={raw}") as server:
        assert server.ready["ready"] is True
        assert server.ready["pid"] == server.process.pid
        assert server.ready["socket"] == str(socket)
        assert set(server.ready["exports"]) == {"system", "data"}
        client = NbdClient(socket)
        client.go("system")
        assert client.flags & protocol.FLAG_READ_ONLY
        assert client.size == 8 * MiB
        client.disconnect()


def test_sigterm_ends_clean_with_everything_stored(tmp_path: Path, child: Path) -> None:
    socket = tmp_path / "s" / "nbd.sock"
    with serving("--socket", socket, "--writable", f"system={child}") as server:
        client = NbdClient(socket)
        client.go("system")
        client.write(0, random_bytes(3 * MiB, 1))
        assert server.end(signal.SIGTERM) == (0, "")
        client.close()
    assert not socket.exists()
    info = vhdx.read_info(child)
    assert not info.log_is_dirty
    with contextlib.closing(open_disk(child)) as disk:
        assert content(disk)[: 3 * MiB] == random_bytes(3 * MiB, 1)


def test_sigterm_that_another_thread_receives_ends_it(tmp_path: Path, child: Path) -> None:
    with serving("--socket", tmp_path / "s" / "nbd.sock", f"system={child}") as server:
        pid = server.process.pid
        wait_until(lambda: state_of(pid) == "S", "the main thread waits")
        others = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
        others.remove(pid)
        assert ctypes.CDLL(None).tgkill(pid, others[0], signal.SIGTERM) == 0
        assert server.process.wait(timeout=20) == 0


def test_an_overlay_ends_with_the_server_and_touches_nothing(tmp_path: Path, child: Path) -> None:
    before = child.read_bytes()
    socket = tmp_path / "s" / "nbd.sock"
    arguments = ("--socket", socket, "--overlay", tmp_path, f"system={child}")
    with serving(*arguments) as server:
        client = NbdClient(socket)
        client.go("system")
        client.write(0, random_bytes(MiB, 1))
        client.flush()
        assert client.read(0, MiB) == random_bytes(MiB, 1)
        client.close()
        assert server.end(signal.SIGTERM)[0] == 0
    assert child.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"base.vhdx", "ready.vhdx", "s"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nonsense"], 10, "NAME=DISK"),
        (["a={folder}/missing.vhdx"], 11, "missing.vhdx"),
        (["a={folder}/ready.vhdx", "a={folder}/base.vhdx"], 10, "second disk"),
    ],
)
def test_refuses_with_the_exit_code_of_the_error(
    tmp_path: Path, child: Path, arguments: list[str], code: int, said: str
) -> None:
    disks = [argument.format(folder=tmp_path) for argument in arguments]
    with serving("--socket", tmp_path / "s" / "nbd.sock", *disks) as server:
        found, error = server.end(signal.SIGTERM)
        assert found == code
        assert said in error


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_server_loses_no_flushed_write(tmp_path: Path, child: Path, seed: int) -> None:
    socket = tmp_path / "s" / "nbd.sock"
    with contextlib.closing(open_disk(child)) as disk:
        flushed = bytearray(content(disk))
    rng = np.random.default_rng(seed)
    pending: list[tuple[int, bytes]] = []
    for life in range(2):
        with serving("--socket", socket, "--writable", f"system={child}") as server:
            client = NbdClient(socket)
            client.go("system")
            last = int(rng.integers(5, 40))
            operations = random_operations(
                seed * 10 + life, 8 * MiB, last + 1, length_max=512 * KiB, around=(MiB, 4 * MiB)
            )
            for number, operation in enumerate(operations):
                if number == last:
                    # Under way when the process dies: it may have happened or not.
                    data = operation.data or bytes(4096)
                    with contextlib.suppress(OSError):
                        offset = min(operation.offset, 8 * MiB - len(data))
                        client.send_request(protocol.CMD_WRITE, offset, len(data), 0, data)
                        pending.append((offset, data))
                    break
                if operation.name == "flush" or number % 7 == 6:
                    client.flush()
                    for offset, data in pending:
                        flushed[offset : offset + len(data)] = data
                    pending.clear()
                elif operation.name == "write":
                    client.write(operation.offset, operation.data)
                    pending.append((operation.offset, operation.data))
                else:
                    command = protocol.CMD_WRITE_ZEROES
                    client.command(command, operation.offset, operation.length)
                    pending.append((operation.offset, bytes(operation.length)))
            os.kill(server.process.pid, signal.SIGKILL)
            server.process.wait(60)
            client.close()
        flushed = _survivors(child, flushed, pending)
        pending.clear()
    check_disk(child)


def _survivors(path: Path, flushed: bytearray, pending: list[tuple[int, bytes]]) -> bytearray:
    """What the disk holds, each sector of it checked to be as flushed or as written since."""
    disk = open_disk(path)
    try:
        found = np.frombuffer(content(disk), np.uint8).reshape(-1, 512)
    finally:
        disk.close()
    fits = (found == np.frombuffer(bytes(flushed), np.uint8).reshape(-1, 512)).all(axis=1)
    for offset, data in pending:
        first, stop = offset // 512, (offset + len(data)) // 512
        written = np.frombuffer(data, np.uint8).reshape(-1, 512)
        fits[first:stop] |= (found[first:stop] == written).all(axis=1)
    assert fits.all(), f"sectors lost: {np.flatnonzero(~fits)[:10]}"
    return bytearray(found.tobytes())
