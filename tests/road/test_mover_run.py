"""`standby mover run`: processes of their own, TLS between them, kills and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from road.driving import Session, content, write
from road.plain import WAIT_S, Server
from standby.errors import LinkError, PathRefused, StandbyError
from standby.host.folder import new_machine
from standby.road.lease import is_processing
from standby.road.replica import ReplicaFolder
from standby.units import MiB
from standby.wire import tls
from standby.wire.link import Link
from standby.wire.messages import Call, Failed
from wires import Installation

TOML = """\
name = "{name}"
listen = "127.0.0.1:0"
identity = "identity"
state = "state"
roles = {roles}
[roots]
data = "data"
"""


class Process:
    """A service mover as a process; started again on the same folder it is the same mover."""

    def __init__(self, site: Installation, name: str, *roles: str) -> None:
        self.site = site
        self.name = name
        self.role = roles[0]
        self.folder = site.folder / name
        self.data = self.folder / "data"
        self.data.mkdir(parents=True)
        site.identity(name, *roles)
        (self.folder / "identity").mkdir()
        for path in list(self.folder.glob("*.pem")) + list(self.folder.glob("*.json")):
            path.rename(self.folder / "identity" / path.name)
        (self.folder / "mover.toml").write_text(TOML.format(name=name, roles=list(roles)))
        self.errors = self.folder / "errors"
        self.start()

    def start(self, **environment: str) -> None:
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "standby", "mover", "run", "--json"],
                cwd=self.folder,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._address = ""

    @property
    def address(self) -> str:
        if not self._address:  # it says so once it listens
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
            assert line, self.errors.read_text()
            self._address = json.loads(line)["address"]
        return self._address

    def server_link(self, server: str) -> Link:
        return tls.connect(self.address, self.site.identity(server, "server"), self.name, self.role)

    def events(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.errors.read_text().splitlines()]

    def end(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.wait()

    def wait(self) -> int:
        assert self.process.stdout is not None
        try:
            return self.process.wait(WAIT_S)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


@pytest.fixture
def site(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


@pytest.fixture
def movers(site: Installation) -> Iterator[tuple[Process, Process]]:
    source = Process(site, "px1", "source", "host", "repository")
    target = Process(site, "px2", "target")
    new_machine(source.data, "vm1", {"scsi:0:0": 24 * MiB})
    write(source.data / "vm1" / "disk0.vhdx", 512, 5 * MiB)
    yield source, target
    for mover in (source, target):
        if mover.process.poll() is None:
            mover.end()


def newest_content(target: Process) -> bytes:
    folder = ReplicaFolder(target.data / "vm1_replica")
    newest = folder.newest()
    assert newest is not None
    chain = folder.chain_paths(newest, newest.disks[0].disk_id)
    return content(chain[0], chain[1:])


def test_a_session_over_tls_and_a_killed_target_that_comes_back(movers):
    source, target = movers
    disk = source.data / "vm1" / "disk0.vhdx"
    session = Session(source, target)
    session.run()
    session.close()
    assert newest_content(target) == content(disk)
    # Killed when all of the next point is there, before its commit.
    assert target.end() == 0
    target.start(STANDBY_KILL_POINT="verified", STANDBY_KILL_PROCESS="px2")
    write(disk, 10 * MiB, 3 * MiB)
    session = Session(source, target)
    with pytest.raises(LinkError):
        session.run()
    assert target.wait() == -signal.SIGKILL
    session.close()
    target.start()
    session = Session(source, target)
    session.prepare()
    session.take_checkpoint()
    assert session.begin()["acknowledged"] >= 3 * MiB  # nothing of it is sent again
    session.results(session.transfer(baseline="target"))
    assert session.sent["changed"] == 0
    session.release()
    session.commit()
    session.close()
    assert newest_content(target) == content(disk)
    assert {"mover listens", "task begun", "task ended"} <= {
        event["event"] for event in target.events()
    }


def test_a_mover_is_confined_keeps_to_its_roles_and_ends_clean(movers, site):
    source, target = movers
    (target.data / "link").symlink_to(source.data)
    server = Server(target)
    assert server.call("describe")["roots"] == {"data": str(target.data)}
    with pytest.raises(PathRefused):
        server.call("inspect_replica", path="data:link/vm1")
    with pytest.raises(StandbyError, match="knows no"):
        server.call("host_machines", root="data:", host="x")
    assert server.call("certificate_request")["is_due"] is False
    server.close()
    # Another mover does not drive it.
    link = tls.connect(target.address, site.identity("px3", "source"), "px2", "target")
    link.send(Call(1, "ping", {}))
    message, _ = link.receive()
    assert isinstance(message, Failed)
    link.close()
    # SIGTERM closes what is open.
    session = Session(source, target)
    session.prepare()
    replica = ReplicaFolder(target.data / "vm1_replica")
    assert is_processing(replica)
    assert target.end() == 0
    assert not is_processing(replica)
    session.close()
    assert target.events()[-1]["event"] == "mover ended"


def test_a_mover_without_an_identity_says_what_to_do(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "mover.toml").write_text(TOML.format(name="px1", roles=["source"]))
    done = subprocess.run(
        [sys.executable, "-m", "standby", "mover", "run", "--config", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode >= 10
    assert "mover enroll" in done.stderr
