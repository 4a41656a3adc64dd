"""Jobs from one simulated Hyper-V host to another, through the backup server: replicate, fail over,
let the guest write, undo, replicate again; every byte is compared."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import standby
from clocks import HeldClock
from hyperv.installation import SimulatedHost
from hyperv.world import World
from hyperv.world.machines import OFF, RUNNING
from hyperv.world.machines import Machine as WorldMachine
from standby.disk import vhdx
from standby.disk.chain import open_chain
from standby.errors import MachineRunning
from standby.model.machine import PowerState
from standby.model.replica import ReplicaState
from standby.model.report import MachineReport
from standby.road.replica import ReplicaFolder
from standby.road.source_host import SourceVerbs
from standby.road.target_host import TargetVerbs
from standby.server.config import load_config
from standby.server.hyperv_hosts import hyperv_source
from standby.server.movers import MoverPair
from standby.testing.movers import thread_movers
from standby.units import KiB, MiB

TOML = """\
[standby]
installation = "test"

[hosts.prod]
kind = "hyperv"
address = "127.0.0.1"
credentials = {{ username = "EXAMPLE\\\\backup", password = "env:HV_PASSWORD" }}

[hosts.dr]
kind = "hyperv"
address = "127.0.0.1"
credentials = {{ username = "EXAMPLE\\\\backup", password = "env:HV_PASSWORD" }}
replicas = 'C:\\Hyper-V\\Replicas'

[proxies.here.paths]
prod = {{ 'C:\\Hyper-V' = "{root}/hv1" }}
dr = {{ 'C:\\Hyper-V' = "{root}/hv2" }}

[repositories.main]
path = "repository"

[jobs.nightly]
source = "prod"
machines = ["*"]
target = "dr"
repository = "main"
networks = {{ External = "Blue" }}
"""


class Site:
    """Two simulated hosts, and an installation that replicates from the one to the other."""

    def __init__(self, folder: Path) -> None:
        self.world = World(HeldClock(), folder / "world")
        self.world.add_host("hv1")
        self.world.add_host("hv2", switches=["Blue"])
        self.config = folder / "standby.toml"
        self.config.write_text(TOML.format(root=self.world.root))
        self.replicas = self.world.root / "hv2" / "Replicas"
        self.replicas.mkdir()

    @contextlib.contextmanager
    def server(self) -> Iterator[standby.BackupServer]:
        config = load_config(self.config)
        clock = self.world.clock
        with contextlib.ExitStack() as stack:
            hosts = {}
            for name, node in (("prod", "hv1"), ("dr", "hv2")):
                host = stack.enter_context(SimulatedHost(self.world, node))
                door = stack.enter_context(host.door(name))
                hosts[name] = hyperv_source(config, config.hosts[name], clock, door)
            yield stack.enter_context(
                standby.BackupServer(config, clock=clock, hosts=hosts, make_movers=self.movers)
            )

    def movers(self, connections: int) -> MoverPair:
        clock = self.world.clock
        return thread_movers(connections, SourceVerbs, lambda ends: TargetVerbs(ends, clock))

    def cycle(self, server: standby.BackupServer) -> MachineReport:
        (report,) = server.start("nightly").machines
        assert report.outcome == "done", report.error
        self.world.clock.advance(3600)
        return report

    @property
    def folder(self) -> ReplicaFolder:
        return ReplicaFolder(self.replicas / "web_replica")

    @property
    def replica(self) -> WorldMachine:
        return self.world.machine("web_replica")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def content(machine: WorldMachine) -> bytes:
    """What is on its first disk, by what the files themselves say of their parents."""
    path = machine.disks()[0].path
    assert path is not None
    with open_chain(path) as disk:
        data = bytearray(disk.virtual_size)
        disk.read_into(0, data)
    return bytes(data)


def test_replicated_failed_over_written_and_undone(site: Site) -> None:
    world = site.world
    web = world.add_machine("web", "hv1", [8 * MiB])
    with site.server() as server:
        world.write(web, MiB, b"1" * 64 * KiB)
        first = content(web)
        report = site.cycle(server)
        assert report.warnings == []
        made = site.replica
        assert (made.host, made.state) == ("hv2", OFF)
        assert made.adapters[0].switch == "Blue"
        assert made.bios_guid == web.bios_guid
        world.write(web, 2 * MiB, b"2" * 64 * KiB)
        second = content(web)
        site.cycle(server)
        assert site.replica is made
        for layer in site.folder.path.rglob("ready.vhdx"):
            parent = vhdx.read_info(layer).locator["absolute_win32_path"]
            assert parent.startswith("C:\\Hyper-V\\Replicas\\web_replica\\")

        world.turn_off(web, OFF)
        points = site.folder.points()
        server.replicas.failover("web_replica", point=points[0].id, power_on=True)
        assert made.state == RUNNING
        assert content(made) == first
        assert made.start_action == web.start_action
        world.write(made, 0, b"guest" * 1024)
        with pytest.raises(MachineRunning):
            server.replicas.undo_failover("web_replica")
        assert server.replicas.power("web_replica", on=False, force=True) is PowerState.OFF
        record = server.replicas.undo_failover("web_replica")
        assert record.state is ReplicaState.READY
        assert content(made) == second
        assert made.start_action == 2

        world.start(web)
        world.write(web, 3 * MiB, b"3" * 64 * KiB)
        third = content(web)
        site.cycle(server)
        assert content(made) == third
        assert len(site.folder.points()) == 3


def test_a_replica_vm_that_was_started_by_hand_keeps_its_layers(site: Site) -> None:
    web = site.world.add_machine("web", "hv1", [8 * MiB])
    with site.server() as server:
        site.cycle(server)
        (layer,) = site.folder.path.rglob("ready.vhdx")
        before = layer.stat().st_ino
        site.world.start(site.replica)
        site.world.write(web, MiB, b"1" * 64 * KiB)
        report = site.cycle(server)
        assert len(site.folder.points()) == 2
        assert any("its host says that its VM is running" in text for text in report.warnings)
        assert layer.stat().st_ino == before


def test_a_permanent_failover_makes_it_a_vm_of_its_own(site: Site) -> None:
    web = site.world.add_machine("web", "hv1", [8 * MiB])
    with site.server() as server:
        site.cycle(server)
        site.world.turn_off(web, OFF)
        server.replicas.failover("web_replica")
        server.replicas.permanent_failover("web_replica")
        assert site.replica.notes == ""
        assert site.replica.start_action == web.start_action
