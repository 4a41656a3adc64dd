"""Two folder hosts, a repository and a job on real files: what the simulation tests share.

`Site` makes them below one folder, plays the guest (writes to the source disks), runs sessions in
this process (movers are threads of it) or as the command line (movers are processes), and knows
what every restore point must read as.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import standby
from standby import killpoints
from standby.clock import Clock
from standby.disk import open_disk, vhdx
from standby.host.folder import FolderHost, new_machine
from standby.repository import Repository
from standby.road.replica import ReplicaFolder
from standby.road.source_host import SourceVerbs
from standby.road.target_host import TargetVerbs
from standby.server.config import load_config
from standby.server.movers import MoverPair
from standby.server.replicas import Replicas
from standby.server.store import Store
from standby.testing.movers import thread_movers
from standby.units import MiB

if TYPE_CHECKING:
    from net.nursery import Nursery

TOML = """\
[standby]
installation = "test"
[hosts.source]
kind = "folder"
path = "source"
[hosts.target]
kind = "folder"
path = "target"
[repositories.main]
path = "repository"
[jobs.job]
source = "source"
target = "target"
machines = ["*"]
restore_points = {restore_points}
{more}
"""


class JumpingClock(Clock):
    """The system's clock, until somebody sets it or waits for hours."""

    def __init__(self) -> None:
        self.wall = timedelta()
        self.waited_s = 0.0

    def now(self) -> datetime:
        return super().now() + self.wall

    def monotonic(self) -> float:
        return super().monotonic() + self.waited_s

    def wait(self, **duration: float) -> None:
        """Let time pass."""
        self.wall += timedelta(**duration)
        self.waited_s += timedelta(**duration).total_seconds()

    def set_back(self, **duration: float) -> None:
        """Somebody sets the wall clock; the time that passes is not changed."""
        self.wall -= timedelta(**duration)


class Site:
    """A source and a target on one machine."""

    nursery: Nursery | None = None
    """Where its processes of the command line start; None: Python is executed for each."""

    def __init__(self, folder: Path, restore_points: int = 7, more: str = "") -> None:
        self.folder = folder
        self.clock = JumpingClock()
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "standby.toml"
        self.config.write_text(TOML.format(restore_points=restore_points, more=more))
        for name in ("source", "target"):
            (folder / name).mkdir()
        self.points: dict[str, dict[str, str]] = {}
        self.states: list[dict[str, str]] = []
        self.random = np.random.default_rng(7)
        self._digests: dict[Path, tuple[tuple[int, int, int], str]] = {}

    # --- the guest -----------------------------------------------------------------------------

    def add_machine(self, name: str = "vm1", sizes: tuple[int, ...] = (24 * MiB, 8 * MiB)) -> None:
        """A VM whose disks lie at scsi:0:0, scsi:0:1 …"""
        new_machine(
            self.folder / "source",
            name,
            disks={f"scsi:0:{number}": size for number, size in enumerate(sizes)},
        )

    def disk(self, number: int = 0, machine: str = "vm1") -> Path:
        """The source file of a disk."""
        return self.folder / "source" / machine / f"disk{number}.vhdx"

    def write(self, offset: int, length: int, number: int = 0, machine: str = "vm1") -> None:
        """The guest writes random bytes."""
        disk = open_disk(self.disk(number, machine), writable=True)
        disk.write(offset, self.random.integers(0, 256, length, np.uint8).tobytes())
        disk.close()

    def zero(self, offset: int, length: int, number: int = 0, machine: str = "vm1") -> None:
        """The guest trims."""
        disk = open_disk(self.disk(number, machine), writable=True)
        disk.zero(offset, length)
        disk.close()

    def fill(self) -> None:
        """A first content of both disks: data, zeros, holes, unaligned ends."""
        self.write(0, 5 * MiB)
        self.write(9 * MiB + 512, 3 * MiB + 1024)
        self.write(23 * MiB, MiB)
        self.write(4096, 2 * MiB, 1)

    def change(self) -> None:
        """A day: scattered pieces, a trimmed range, new data in a hole."""
        for offset in (0, 4096 * 100, 3 * MiB + 512, 10 * MiB, 23 * MiB + 8192):
            self.write(offset, 1024)
        self.zero(MiB, 256 * 1024)
        self.write(18 * MiB, 300 * 1024)
        self.write(6 * MiB, 4096, 1)

    # --- sessions ------------------------------------------------------------------------------

    def movers(self, connections: int) -> MoverPair:
        """Both movers as threads of this process."""
        return thread_movers(connections, SourceVerbs, lambda ends: TargetVerbs(ends, self.clock))

    def server(self) -> standby.BackupServer:
        """The backup server, in this process."""
        return standby.BackupServer(self.config, clock=self.clock, make_movers=self.movers)

    def run(self, **arguments):
        """A session in this process; what was committed is remembered."""
        with self.server() as server:
            report = server.start("job", **arguments)
        self.remember(report)
        return report

    def plan(self, **arguments):
        """`job plan` in this process."""
        with self.server() as server:
            return server.plan("job", **arguments)

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command line, as a process of its own."""
        full = [*arguments, "--config", str(self.config)]
        if self.nursery is not None:
            process = self.nursery.piped(full, environment)
            out, err = process.communicate(120)
            assert process.returncode is not None
            return subprocess.CompletedProcess(full, process.returncode, out, err)
        return subprocess.run(
            [sys.executable, "-m", "standby", *full],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def plain(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command that takes no configuration."""
        return subprocess.run(
            [sys.executable, "-m", "standby", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def start(self, **environment: str) -> subprocess.CompletedProcess[str]:
        """`standby job start` as a process; what was committed is remembered."""
        self.states.append(self.content("vm1"))
        done = self.command("job", "start", "job", "--json", **environment)
        if done.returncode in (0, 3):
            for machine in json.loads(done.stdout)["machines"]:
                if machine["outcome"] == "done":
                    self.remember_point(machine["replica"], machine["point"], machine["machine"])
        return done

    def remember(self, report) -> None:
        for machine in report.machines:
            if machine.outcome == "done":
                self.remember_point(machine.replica, machine.point, machine.machine)

    def remember_point(self, replica: str, point: str, machine: str) -> None:
        """What the source holds now is what that point must read as for ever."""
        self.points[f"{replica}/{point}"] = self.content(machine)

    def content(self, machine: str) -> dict[str, str]:
        """What the source disks hold now, by controller place."""
        host = FolderHost("source", self.folder / "source")
        found = host.machine(machine)
        folder = self.folder / "source" / found.folder
        return {item.place: self._digest(folder / item.file) for item in found.disks}

    def _digest(self, path: Path) -> str:
        """Of a file that is as it was, without reading it once more. The time of a change tells it:
        the reading that is kept ended some ticks after the last change before it."""
        facts = path.stat()
        known = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
        if path not in self._digests or self._digests[path][0] != known:
            digest = content_digest(path)
            if time.time_ns() - facts.st_mtime_ns < 50_000_000:
                return digest
            self._digests[path] = (known, digest)
        return self._digests[path][1]

    # --- what must hold ------------------------------------------------------------------------

    def replica(self, name: str = "vm1_replica") -> ReplicaFolder:
        return ReplicaFolder(self.folder / "target" / name)

    def check_points(self, name: str = "vm1_replica") -> int:
        """Every restore point reads as the source did at its session (a point of a session that
        was killed before it could say so: as the source did at one of them); how many there are."""
        folder = self.replica(name)
        points = folder.points()
        for point in points:
            found = {}
            for disk in point.disks:
                if not disk.excluded:
                    chain = folder.chain_paths(point, disk.disk_id)
                    found[disk.place] = content_digest(chain[0], chain[1:])
            known = self.points.get(f"{name}/{point.id}")
            excluded = {disk.place for disk in point.disks if disk.excluded}
            wanted = [
                {place: text for place, text in state.items() if place not in excluded}
                for state in ([known] if known is not None else self.states)
            ]
            assert found in wanted, f"{point.id} is wrong"
        for verdict in Replicas.of_folder(self.folder / "target").verify(name):
            assert verdict.is_ok, verdict
        return len(points)

    def check_nothing_leaked(self, name: str = "vm1_replica") -> None:
        """No partial file, no temporary, no staged page, no open intent, no checkpoint."""
        folder = self.replica(name)
        assert folder.unknown_files() == []
        left = [
            path.name
            for path in folder.path.rglob("*")
            if ".partial." in path.name
            or path.name.endswith((".extents", ".new", "pending.json", "merge.json"))
        ]
        assert left == [], left
        config = load_config(self.config)
        with Repository(config.repositories["main"]) as repository:
            for key in repository.replicas():
                assert repository.staged(key) == []
            assert repository.verify() == []
        with Store(config.state_place()) as store:
            assert store.open_intents() == []
        clones = list((self.folder / "source").rglob(".standby-checkpoint-*"))
        assert clones == []


def content_digest(path: Path, parents: tuple[Path, ...] = ()) -> str:
    """sha256 of what a guest would see."""
    disk = open_disk(path, parents=parents or None)
    try:
        digest = hashlib.sha256()
        buffer = bytearray(4 * MiB)
        for offset in range(0, disk.virtual_size, len(buffer)):
            view = memoryview(buffer)[: min(len(buffer), disk.virtual_size - offset)]
            disk.read_into(offset, view)
            digest.update(view)
        return digest.hexdigest()
    finally:
        disk.close()


@contextlib.contextmanager
def at_kill_point(name: str, action, count: int = 1) -> Iterator[list[str]]:
    """Call `action()` when this process reaches the kill point for the `count`-th time (0: each
    time); every name that is reached is in the list."""
    reached: list[str] = []

    def handler(point: str) -> None:
        reached.append(point)
        if point == name and count in (0, reached.count(name)):
            action()

    killpoints.install(handler)
    try:
        yield reached
    finally:
        killpoints.install(None)


def add_disk(site: Site, size: int, place: str, machine: str = "vm1", name: str = "") -> Path:
    """A new, empty disk at a free controller place of a source VM; its file."""
    folder = site.folder / "source" / machine
    file = name or f"disk{len(list(folder.glob('*.vhdx')))}.vhdx"
    vhdx.create(folder / file, size).close()
    text = (folder / "vm.toml").read_text()
    text += f'\n[[disks]]\nplace = "{place}"\nfile = "{file}"\nid = "id-of-{file}"\n'
    (folder / "vm.toml").write_text(text)
    return folder / file
