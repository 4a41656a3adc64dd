"""What `standby demo` does: two folder hosts, a VM, three sessions, a failover, an undo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from standby import BackupServer
from standby.cli.demo_disks import (
    DATABASE_SIZE,
    FILES_SIZE,
    Database,
    archive,
    content_digest,
    library_files,
    write_content,
)
from standby.cli.output import size
from standby.clock import SYSTEM_CLOCK
from standby.disk import open_disk
from standby.errors import VerifyFailed
from standby.host.folder import new_machine
from standby.model.report import SessionReport

CONFIGURATION = """\
[standby]
installation = "demo"

[hosts.production]
kind = "folder"
path = "production"

[hosts.recovery]
kind = "folder"
path = "recovery"

[repositories.main]
path = "repository"

[jobs.demo]
source = "production"
target = "recovery"
machines = ["web01"]
restore_points = 7
"""


@dataclass(frozen=True, slots=True)
class DemoSession:
    """One session: bytes, and seconds from its start to its durable commit."""

    session: str
    point: str
    read: int
    sent: int
    written: int
    seconds: float


class Demo:
    """The demo's folder and VM; `run` does everything and fails loudly."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        """`say` is called with a sentence as each step has been done."""
        self.sessions: list[DemoSession] = []
        self.steps: list[str] = []
        self._folder = folder
        self._tell = say
        self._expected: dict[str, dict[str, str]] = {}
        self._notes = ["the VM was made"]
        self._files = library_files()

    def _say(self, text: str) -> None:
        self.steps.append(text)
        self._tell(text)

    # --- the VM ------------------------------------------------------------------------------

    def _make_machine(self) -> None:
        (self._folder / "standby.toml").write_text(CONFIGURATION)
        for name in ("production", "recovery"):
            (self._folder / name).mkdir()
        new_machine(
            self._folder / "production",
            "web01",
            disks={"scsi:0:0": FILES_SIZE, "scsi:0:1": DATABASE_SIZE},
        )
        self._paths = sorted((self._folder / "production" / "web01").glob("*.vhdx"))
        self._database = Database(self._folder / "guest.sqlite", self._files)
        self._say(
            f"made VM web01: {size(self._write())} of files and a database on two VHDX disks of "
            f"{size(FILES_SIZE)} and {size(DATABASE_SIZE)}"
        )

    def _write(self) -> int:
        """What the VM holds now goes to its two disks."""
        written = write_content(self._paths[0], archive(self._files, self._notes))
        return written + write_content(self._paths[1], self._database.content())

    def _spend_a_day(self, day: int) -> None:
        self._notes += [f"day {day}: entry {number}" for number in range(5000)]
        for index in range(day, len(self._files), 97):
            name, content = self._files[index]
            self._files[index] = (name, content.replace(b"import", b"Import", 2))
        self._database.spend_a_day(day)
        written = size(self._write())
        self._say(f"day {day}: files edited, rows changed, a log grew: {written} written")

    # --- the steps ---------------------------------------------------------------------------

    def run(self) -> None:
        """Everything, in order."""
        self._make_machine()
        with BackupServer(self._folder / "standby.toml") as server:
            self._replicate(server)
            name = server.replicas.all()[0].name
            self._read_back(server, name)
            self._fail_over(server, name)

    def _replicate(self, server: BackupServer) -> None:
        for day, title in enumerate(("full", "incremental 1", "incremental 2")):
            if day:
                self._spend_a_day(day)
            started = SYSTEM_CLOCK.monotonic()
            report = server.start("demo")
            self._record(title, report, SYSTEM_CLOCK.monotonic() - started)

    def _record(self, title: str, report: SessionReport, seconds: float) -> None:
        """Remember what the session did, and what each disk must read as at its point."""
        machine = report.machines[0]
        if machine.outcome != "done":
            raise click.ClickException(f"{title}: {machine.outcome}: {machine.error}")
        self.sessions.append(
            DemoSession(
                title,
                machine.point,
                sum(disk.read for disk in machine.disks),
                sum(disk.sent for disk in machine.disks),
                sum(disk.written for disk in machine.disks),
                round(seconds, 2),
            )
        )
        self._expected[machine.point] = {
            f"disk{number}": content_digest(path) for number, path in enumerate(self._paths)
        }
        self._say(f"{title}: restore point {machine.point}")

    def _read_back(self, server: BackupServer, name: str) -> None:
        for point, disks in self._expected.items():
            for disk, digest in disks.items():
                chain = server.replicas.point_chain(name, point, disk)
                if content_digest(chain[0], chain[1:]) != digest:
                    raise VerifyFailed(name, disk)
        count = len(self._expected)
        self._say(f"read back {count} points: every byte is what the source held then (SHA-256)")

    def _fail_over(self, server: BackupServer, name: str) -> None:
        points = list(self._expected)
        older = points[1]
        result = server.replicas.failover(name, point=older)
        path = server.replicas.folder(name).path / (result.record.ready or {})["disk0"].file
        self._check(path, name, older)
        disk = open_disk(path, writable=True)
        disk.write(0, b"written by the replica VM".ljust(4096, b"\0"))
        disk.close()
        self._say(f"failed over to {older}, wrote to its ready layer as the replica VM would")
        server.replicas.undo_failover(name)
        self._check(path, name, points[-1])
        self._say(f"undid the failover: that write is gone, the VM would start from {points[-1]}")
        bad = [item for item in server.replicas.verify(name) if not item.is_ok]
        if bad:
            raise VerifyFailed(name, bad[0].point_id)
        self._say("verified the replica: all points match their digests")

    def _check(self, path: Path, name: str, point: str) -> None:
        if content_digest(path) != self._expected[point]["disk0"]:
            raise VerifyFailed(name, "disk0")
