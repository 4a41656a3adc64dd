"""Jobs whose source is a simulated cluster of three nodes: VMs move amid sessions, nodes die at
each step, and every restore point holds what its guest had."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import standby
from clocks import HeldClock
from hyperv.clusters import ADDRESS, At, SimulatedCluster
from hyperv.sites import Site, only
from hyperv.world import World
from hyperv.world import clusters as fate
from standby.server.config import load_config
from standby.server.hyperv_hosts import hyperv_source
from standby.units import KiB, MiB

NODES = ("hv1", "hv2", "hv3")
LOCAL = r"C:\Hyper-V"
"""What each node calls a volume of its own."""
TOML = """\
[standby]
installation = "test"

[hosts.prod]
kind = "hyperv-cluster"
address = "{address}"
credentials = {{ username = "EXAMPLE\\\\backup", password = "env:HV_PASSWORD" }}

[hosts.dr]
kind = "folder"
path = "replicas"

[proxies.here]
paths = {{ prod = {{ 'C:\\ClusterStorage\\Volume1' = "{storage}" }} }}

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


class ClusterSite(Site):
    """A simulated cluster, and an installation that replicates its VMs into a folder."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.folder = folder
        self.world = World(HeldClock(), folder / "world")
        self.world.add_cluster("prod", NODES)
        self.cluster = SimulatedCluster(self.world, "prod")
        self.config = folder / "standby.toml"
        self.storage = self.world.root / "prod-volume1"
        (folder / "replicas").mkdir()
        self.write_config(more)
        self.points = {}

    def write_config(self, more: str = "") -> None:
        self.config.write_text(TOML.format(address=ADDRESS, storage=self.storage, more=more))

    def see_own_volumes(self, *nodes: str) -> None:
        """The proxy sees the volumes of these nodes that no other has."""
        own = [
            f'"prod/{node}" = {{ \'{LOCAL}\' = "{self.world.root / node.lower()}" }}'
            for node in nodes
        ]
        text = self.config.read_text().replace("paths = { ", f"paths = {{ {', '.join(own)}, ")
        self.config.write_text(text)

    @contextlib.contextmanager
    def server(self) -> Iterator[standby.BackupServer]:
        config = load_config(self.config)
        clock = self.world.clock
        with contextlib.closing(self.cluster.door()) as door:
            source = hyperv_source(config, config.hosts["prod"], clock, door)
            with standby.BackupServer(
                config, clock=clock, hosts={"prod": source}, make_movers=self.movers
            ) as server:
                yield server


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ClusterSite]:
    made = ClusterSite(tmp_path)
    with made.cluster:
        yield made


class OnFirst(At):
    """Only what comes to hv1 counts."""

    def __call__(self, host: str, what: str, arguments: Mapping[str, Any]) -> None:
        if host == "hv1":
            super().__call__(host, what, arguments)


def test_vms_of_all_nodes_are_replicated_and_move_amid_their_session(site: ClusterSite) -> None:
    web = site.world.add_machine("web", "hv1", [16 * MiB])
    site.world.add_machine("db", "hv2", [8 * MiB])
    site.world.write(web, 5 * MiB, b"data" * 64 * KiB)
    first = site.session()
    assert [(item.machine, item.outcome) for item in first.machines] == [
        ("db", "done"),
        ("web", "done"),
    ]
    site.world.write(web, 9 * MiB, b"next" * KiB)
    for moved in (".CreateSnapshot", ".GetVirtualDiskChanges", ".ConvertToReferencePoint"):
        there = NODES[(NODES.index(web.host) + 1) % 3]
        hook = At(moved, lambda to=there: site.world.move(web, to))
        site.world.hooks = [hook]
        second = {item.machine: item for item in site.session().machines}
        assert hook.is_done
        assert second["web"].outcome == "done", second["web"].error
        assert [disk.mode for disk in second["web"].disks] == ["incremental"]
    site.world.settle()
    assert site.check_points("web_replica") == 4
    assert site.check_points("db_replica") == 4
    assert site.world.depth(web) == 1
    assert len(web.points) == 1


def test_disks_on_nodes_own_volumes_are_read_where_their_node_has_them(site: ClusterSite) -> None:
    for node in ("hv1", "hv2"):  # one path on both, and another disk
        machine = site.world.add_machine(f"web-{node}", node, [8 * MiB], volume=LOCAL)
        site.world.write(machine, MiB, node.encode() * KiB)
    site.see_own_volumes("hv1", "HV2")
    for _ in range(2):
        report = site.session()
        assert [item.outcome for item in report.machines] == ["done", "done"], report
    for item in report.machines:
        assert site.check_points(item.replica) == 2


def test_a_node_whose_volume_nobody_sees_is_named(site: ClusterSite) -> None:
    site.world.add_machine("web", "hv2", [8 * MiB], volume=LOCAL)
    site.see_own_volumes("hv1")
    (machine,) = site.session().machines
    assert machine.outcome == "failed"
    assert machine.error is not None
    assert "none of its paths for host prod/hv2 leads to" in machine.error


@pytest.mark.parametrize(
    "what",
    [
        "Get-Cluster",
        "GetVirtualHardDiskSettingData",
        ".CreateSnapshot",
        ".GetVirtualDiskChanges",
        ".ConvertToReferencePoint",
        ".DestroyReferencePoint",
    ],
)
def test_a_session_whose_node_dies_ends_with_its_point(site: ClusterSite, what: str) -> None:
    web = site.world.add_machine("web", "hv1", [16 * MiB])
    site.world.write(web, 5 * MiB, b"data" * KiB)
    only(site.session())
    site.world.write(web, 9 * MiB, b"next" * KiB)
    died = OnFirst(what, lambda: fate.kill(site.world, "hv1", after_s=20))
    site.world.hooks = [died]
    only(site.session())
    assert died.is_done
    assert web.host == "hv2"
    site.world.write(web, MiB, b"last" * KiB)
    third = only(site.session())
    assert third.disks[0].reason
    site.world.settle()
    assert site.check_points() == 3
    assert web.checkpoints == []
    assert len(web.points) == 1
    assert site.world.depth(web) == 1


def test_a_plan_names_a_dead_node_and_vms_without_change_tracking(site: ClusterSite) -> None:
    site.world.add_machine("web", "hv1", [8 * MiB], version="5.0")
    site.world.add_machine("db", "hv2", [8 * MiB])
    site.world.kill("hv3")
    plan = site.plan()
    assert any("node hv3 of cluster prod is not asked" in text for text in plan.warnings)
    assert any("VM web: no change tracking" in text for text in plan.warnings)
