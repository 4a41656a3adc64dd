"""An installation around a simulated Hyper-V host, for tests and benches of whole jobs."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import standby
from clocks import HeldClock
from hyperv.installation import SimulatedHost
from hyperv.world import World
from hyperv.world.machines import Machine as WorldMachine
from simulation.site import content_digest
from standby.model.point import RestorePoint
from standby.model.report import MachineReport, SessionReport
from standby.road.replica import ReplicaFolder
from standby.road.source_host import SourceVerbs
from standby.road.target_host import TargetVerbs
from standby.server.config import load_config
from standby.server.hyperv_hosts import hyperv_source
from standby.server.movers import MoverPair
from standby.server.plan import JobPlan
from standby.testing.movers import thread_movers

TOML = """\
[standby]
installation = "test"

[hosts.prod]
kind = "hyperv"
address = "127.0.0.1:{port}"
tls = false
credentials = {{ username = "EXAMPLE\\\\backup", password = "env:HV_PASSWORD" }}
checkpoints = {{ consistency = "application", fall_back = true, copy = true }}
audit_every = "30d"

[hosts.dr]
kind = "folder"
path = "replicas"

[proxies.here]
paths = {{ prod = {{ 'C:\\Hyper-V' = "{storage}" }} }}

[repositories.main]
path = "repository"

[jobs.nightly]
source = "prod"
machines = ["*"]
target = "dr"
repository = "main"
restore_points = 7
{more}
"""


class Site:
    """A simulated host, and an installation that replicates its VMs into a folder."""

    def __init__(self, folder: Path, more: str = "", version: int = 2022) -> None:
        self.folder = folder
        self.world = World(HeldClock(), folder / "world")
        self.world.add_host("hv1", version)
        self.host = SimulatedHost(self.world, "hv1")
        self.config = folder / "standby.toml"
        self.storage = self.world.root / "hv1"
        (folder / "replicas").mkdir()
        self.write_config(more)
        self.points: dict[tuple[str, str], dict[str, str]] = {}

    def write_config(self, more: str = "") -> None:
        self.config.write_text(
            TOML.format(port=self.host.server.port, storage=self.storage, more=more)
        )

    @contextlib.contextmanager
    def server(self) -> Iterator[standby.BackupServer]:
        """The backup server with threads as movers; it signs in as the simulation wants it."""
        config = load_config(self.config)
        clock = self.world.clock
        with self.host.door("prod") as door:
            source = hyperv_source(config, config.hosts["prod"], clock, door)
            with standby.BackupServer(
                config, clock=clock, hosts={"prod": source}, make_movers=self.movers
            ) as server:
                yield server

    def movers(self, connections: int) -> MoverPair:
        clock = self.world.clock
        return thread_movers(connections, SourceVerbs, lambda ends: TargetVerbs(ends, clock))

    def session(self) -> SessionReport:
        """A session; what the guests held before it is what its points must hold."""
        held = {machine.name: self.held(machine) for machine in self.world.machines.values()}
        with self.server() as server:
            report = server.start("nightly")
        for machine in report.machines:
            if machine.point:
                self.points[machine.replica, machine.point] = held[machine.machine]
        self.world.clock.advance(3600)
        return report

    def plan(self) -> JobPlan:
        with self.server() as server:
            return server.plan("nightly")

    def held(self, machine: WorldMachine) -> dict[str, str]:
        """What the guest sees on its disks now, by controller place."""
        return {
            f"{disk.controller.kind.lower()}:{disk.controller.number}:{disk.location}": digest_of(
                self.world.content(disk.path)
            )
            for disk in machine.disks()
            if disk.path is not None
        }

    def check_points(self, replica: str = "web_replica") -> int:
        """Every point of the replica holds what the guest had; how many there are."""
        folder = ReplicaFolder(self.folder / "replicas" / replica)
        points = folder.points()
        for point in points:
            found = {}
            for disk in point.disks:
                chain = folder.chain_paths(point, disk.disk_id)
                found[disk.place] = content_digest(chain[0], chain[1:])
            assert found == self.points[replica, point.id], point.id
        return len(points)

    def point(self, number: int = -1, replica: str = "web_replica") -> RestorePoint:
        return ReplicaFolder(self.folder / "replicas" / replica).points()[number]


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def only(report: SessionReport) -> MachineReport:
    (machine,) = report.machines
    assert machine.outcome == "done", machine.error
    return machine
