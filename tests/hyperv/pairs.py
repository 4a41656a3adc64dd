"""An installation that replicates from one simulated host or cluster to another, or within one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import standby
from clocks import HeldClock
from hyperv.clusters import SimulatedCluster
from hyperv.installation import SimulatedHost
from hyperv.world import World
from hyperv.world.machines import Machine as WorldMachine
from standby.disk.chain import open_chain
from standby.host.hyperv.asking import Asking
from standby.model.report import MachineReport
from standby.road.replica import ReplicaFolder
from standby.road.source_host import SourceVerbs
from standby.road.target_host import TargetVerbs
from standby.server.config import load_config
from standby.server.hyperv_hosts import hyperv_source
from standby.server.movers import MoverPair
from standby.testing.movers import thread_movers

JOB = """\
[standby]
installation = "test"

[repositories.main]
path = "repository"

[jobs.nightly]
source = "prod"
machines = ["*"]
target = "{target}"
repository = "main"
networks = {{ External = "Blue" }}
"""
HOST = """
[hosts.{name}]
kind = "{kind}"
address = "{name}.example.test"
credentials = {{ username = "EXAMPLE\\\\backup", password = "env:HV_PASSWORD" }}
replicas = '{windows}\\Replicas'

[proxies.here.paths.{name}]
'{windows}' = "{folder}"
"""


class HostPair:
    """`sides` are the nodes of "prod" and, where there are two, of "dr"; several are a cluster."""

    def __init__(self, folder: Path, *sides: Sequence[str]) -> None:
        self.world = World(HeldClock(), folder / "world")
        self.config = folder / "standby.toml"
        self._sides = dict(zip(("prod", "dr"), sides, strict=False))
        self.target = list(self._sides)[-1]
        text = JOB.format(target=self.target)
        for name, nodes in self._sides.items():
            is_cluster = len(nodes) > 1
            if is_cluster:
                for host in self.world.add_cluster(name, nodes):
                    host.switches.append("Blue")
            else:
                self.world.add_host(nodes[0], switches=["External", "Blue"])
            text += HOST.format(
                name=name,
                kind="hyperv-cluster" if is_cluster else "hyperv",
                windows=r"C:\ClusterStorage\Volume1" if is_cluster else r"C:\Hyper-V",
                folder=self._storage(name),
            )
        self.config.write_text(text)
        (self._storage(self.target) / "Replicas").mkdir()

    def _storage(self, name: str) -> Path:
        nodes = self._sides[name]
        return self.world.root / (f"{name}-volume1" if len(nodes) > 1 else nodes[0])

    @contextlib.contextmanager
    def server(self) -> Iterator[standby.BackupServer]:
        """The backup server with threads as movers; it signs in as the simulation wants it."""
        config = load_config(self.config)
        clock = self.world.clock
        with contextlib.ExitStack() as stack:
            hosts = {}
            for name, nodes in self._sides.items():
                door: Asking
                if len(nodes) > 1:
                    cluster = stack.enter_context(SimulatedCluster(self.world, name))
                    door = stack.enter_context(contextlib.closing(cluster.door()))
                else:
                    host = stack.enter_context(SimulatedHost(self.world, nodes[0]))
                    door = stack.enter_context(host.door(name))
                hosts[name] = hyperv_source(config, config.hosts[name], clock, door)
            yield stack.enter_context(
                standby.BackupServer(config, clock=clock, hosts=hosts, make_movers=self.movers)
            )

    def movers(self, connections: int) -> MoverPair:
        clock = self.world.clock
        return thread_movers(connections, SourceVerbs, lambda ends: TargetVerbs(ends, clock))

    def cycle(self, server: standby.BackupServer) -> MachineReport:
        """A session of the one VM that the job takes."""
        (report,) = server.start("nightly").machines
        assert report.outcome == "done", report.error
        self.world.clock.advance(3600)
        return report

    @property
    def folder(self) -> ReplicaFolder:
        return ReplicaFolder(self._storage(self.target) / "Replicas" / "web_replica")

    @property
    def replica(self) -> WorldMachine:
        return self.world.machine("web_replica")


def content(machine: WorldMachine) -> bytes:
    """What is on its first disk, by what the files themselves say of their parents."""
    path = machine.disks()[0].path
    assert path is not None
    with open_chain(path) as disk:
        data = bytearray(disk.virtual_size)
        disk.read_into(0, data)
    return bytes(data)
