"""`standby demo`: the whole road in under a minute, on disks of real content."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from standby.cli.demo_disks import (
    DATABASE_SIZE,
    FILES_SIZE,
    Database,
    archive,
    library_files,
    read_content,
    write_content,
)
from standby.cli.output import json_option, print_json, print_table, size
from standby.clock import SYSTEM_CLOCK
from standby.disk import open_disk
from standby.errors import VerifyFailed
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


class _Demo:
    """The demo's folder, its VM, and what each step says."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.say = say
        self.rows: list[dict[str, str | int | float]] = []
        self.expected: dict[str, dict[str, str]] = {}
        self.notes = ["the VM was made"]
        self.files = library_files()

    def make_machine(self) -> None:
        """Two folder hosts; on one of them a VM with two disks."""
        from standby.host.folder import new_machine

        (self.folder / "standby.toml").write_text(CONFIGURATION)
        for name in ("production", "recovery"):
            (self.folder / name).mkdir(parents=True)
        new_machine(
            self.folder / "production",
            "web01",
            disks={"scsi:0:0": FILES_SIZE, "scsi:0:1": DATABASE_SIZE},
        )
        self.paths = sorted((self.folder / "production" / "web01").glob("*.vhdx"))
        self.database = Database(self.folder / "guest.sqlite", self.files)
        written = self.write()
        self.say(f"made VM web01 with two disks; its guest wrote {size(written)}")

    def write(self) -> int:
        """What the guest holds now goes to the two disks."""
        written = write_content(self.paths[0], archive(self.files, self.notes))
        return written + write_content(self.paths[1], self.database.content())

    def spend_a_day(self, day: int) -> None:
        """A few files are edited, rows change, a log grows."""
        self.notes += [f"day {day}: entry {number}" for number in range(5000)]
        for index in range(day, len(self.files), 97):
            name, content = self.files[index]
            edited = content.replace(b"import", b"Import", 2)
            self.files[index] = (name, edited)
        self.database.spend_a_day(day)
        self.say(f"day {day}: the guest wrote {size(self.write())}")

    def record(self, title: str, report: SessionReport, seconds: float) -> None:
        """Remember what the session did, and what each disk must read as at its point."""
        machine = report.machines[0]
        if machine.outcome != "done":
            raise click.ClickException(f"{title}: {machine.outcome}: {machine.error}")
        disks = machine.disks
        self.rows.append(
            {
                "session": title,
                "point": machine.point,
                "read": sum(disk.read for disk in disks),
                "sent": sum(disk.sent for disk in disks),
                "written": sum(disk.written for disk in disks),
                "seconds": round(seconds, 2),
            }
        )
        self.expected[machine.point] = {
            f"disk{number}": hashlib.sha256(read_content(path)).hexdigest()
            for number, path in enumerate(self.paths)
        }
        self.say(f"{title}: restore point {machine.point}")


@click.command()
@click.option("--keep", is_flag=True, help="Keep the demo's folder and say where it is.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where; default a temporary one.")
@json_option
def demo(keep: bool, folder: Path | None, as_json: bool) -> None:
    """Replicate a VM, change it, replicate again, fail over, undo; under a minute, no root.

    \b
    Example: standby demo --keep
    """
    place = folder or Path(tempfile.mkdtemp(prefix="standby-demo-"))
    place.mkdir(parents=True, exist_ok=True)
    if any(place.iterdir()):
        raise click.UsageError(f"{place} is not empty")
    say: Callable[[str], None] = lambda text: click.echo(text, err=as_json)  # noqa: E731
    try:
        shown = _run(_Demo(place, say))
        if as_json:
            print_json({"sessions": shown.rows})
        else:
            _show(shown)
    finally:
        if keep:
            click.echo(f"kept in {place}; see `standby replica list --target {place}/recovery`")
        else:
            shutil.rmtree(place, ignore_errors=True)


def _run(shown: _Demo) -> _Demo:
    from standby import BackupServer

    shown.make_machine()
    with BackupServer(shown.folder / "standby.toml") as server:
        for day, title in enumerate(("full", "incremental 1", "incremental 2")):
            if day:
                shown.spend_a_day(day)
            started = SYSTEM_CLOCK.monotonic()
            shown.record(title, server.start("demo"), SYSTEM_CLOCK.monotonic() - started)
        name = server.replicas.all()[0].name
        points = list(shown.expected)
        for point, disks in shown.expected.items():
            for disk, digest in disks.items():
                chain = server.replicas.point_chain(name, point, disk)
                if hashlib.sha256(read_content(chain[0], chain[1:])).hexdigest() != digest:
                    raise VerifyFailed(name, disk, 0)
        shown.say(f"read back {len(points)} points: every byte is what the source held then")
        older = points[1]
        result = server.replicas.failover(name, point=older)
        ready = result.record.ready or {}
        path = server.replicas.folder(name).path / ready["disk0"].file
        if hashlib.sha256(read_content(path)).hexdigest() != shown.expected[older]["disk0"]:
            raise VerifyFailed(name, "disk0", 0)
        disk = open_disk(path, writable=True)
        disk.write(0, b"written by the replica VM".ljust(4096, b"\0"))
        disk.close()
        shown.say(f"failed over to {older}; the replica VM wrote to its ready layer")
        server.replicas.undo_failover(name)
        if hashlib.sha256(read_content(path)).hexdigest() != shown.expected[points[-1]]["disk0"]:
            raise VerifyFailed(name, "disk0", 0)
        shown.say("failover undone: the ready layer is above the newest point again")
        bad = [item for item in server.replicas.verify(name) if not item.is_ok]
        if bad:
            raise VerifyFailed(name, bad[0].point_id, 0)
        shown.say("verified: all points match their digests")
    return shown


def _show(shown: _Demo) -> None:
    rows = [
        (
            str(row["session"]),
            str(row["point"]),
            size(int(row["read"])),
            size(int(row["sent"])),
            size(int(row["written"])),
            f"{row['seconds']} s",
        )
        for row in shown.rows
    ]
    print_table("", ("session", "restore point", ">read", ">sent", ">written", ">time"), rows)
    click.echo(
        "\nThe first session copied what the disks hold; the next two read the disks, compared\n"
        "them with the repository's digests and sent only the 4 KiB pieces that had changed. Each\n"
        "point is a VHDX file; failing over to one took no copying, and undoing it dropped only\n"
        "what the replica VM wrote."
    )
