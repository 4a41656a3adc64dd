"""`standby disk serve` as a process: says how to connect, serves, throws its overlay away."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.processes import started
from judging import require_tool
from standby.disk import open_disk
from standby.testing.nbd_client import NbdClient, NbdError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets and signals")


@pytest.fixture
def newest(target: Path) -> Path:
    """The newest point's file of the replica's first disk: a differencing VHDX."""
    return max((target / "vm1_replica" / "disk0").glob("2*.vhdx"))


def guest_bytes(path: Path) -> bytes:
    disk = open_disk(path)
    try:
        data = bytearray(disk.virtual_size)
        disk.read_into(0, data)
        return bytes(data)
    finally:
        disk.close()


def test_a_restore_point_is_served_read_only_until_it_is_ended(
    newest: Path, tmp_path: Path
) -> None:
    with started("disk", "serve", newest, "--json", TMPDIR=str(tmp_path)) as process:
        ready = json.loads(process.stdout.readline())
        assert set(ready) == {"ready", "path", "uri", "socket", "virtual_size", "writable"}
        client = NbdClient(Path(ready["socket"]))
        client.info("disk", go=True)
        assert client.size == ready["virtual_size"]
        assert client.read(0, 1 << 20) == guest_bytes(newest)[: 1 << 20]
        with pytest.raises(NbdError):
            client.write(0, bytes(512))
        client.socket.close()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("standby-nbd")] == []


def test_an_overlay_is_writable_and_thrown_away(newest: Path, tmp_path: Path) -> None:
    before = newest.read_bytes()
    socket = tmp_path / "nbd" / "point.sock"
    serve = ("disk", "serve", newest, "--overlay", "--socket", socket, "--name", "point")
    for _ in range(2):
        with started(*serve, "--json") as process:
            ready = json.loads(process.stdout.readline())
            assert ready["writable"] is True
            client = NbdClient(socket)
            client.info("point", go=True)
            assert client.read(0, 512) != b"w" * 512
            client.write(0, b"w" * 512)
            assert client.read(0, 512) == b"w" * 512
            client.socket.close()
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        assert process.returncode == 0
    assert newest.read_bytes() == before


@pytest.mark.judge
def test_the_words_it_prints_work_as_they_stand(newest: Path, tmp_path: Path) -> None:
    nbdcopy = require_tool("nbdcopy")
    with started("disk", "serve", newest) as process:
        lines = [process.stdout.readline() for _ in range(7)]
        assert "read-only" in lines[0]
        assert lines[-1] == "Ctrl-C ends it.\n"
        (line,) = [line.strip() for line in lines if "nbdcopy" in line]
        command = line.replace("nbdcopy", str(nbdcopy), 1)
        subprocess.run(command, shell=True, cwd=tmp_path, check=True, timeout=60)
        assert (tmp_path / "copy.raw").read_bytes() == guest_bytes(newest)


def test_a_socket_that_others_can_reach_is_refused(run, newest: Path, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    ended = run("disk", "serve", newest, "--socket", tmp_path / "open" / "x.sock", expect=10)
    assert "chmod 700" in ended.err
