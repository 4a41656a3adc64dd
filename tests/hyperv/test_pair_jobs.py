"""Jobs to clusters, between clusters, and within one host or cluster: replicate, fail over, let the
guest write, undo, replicate again, become permanent; nodes die on the way. Every byte is compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from hyperv.clusters import At
from hyperv.pairs import HostPair, content
from hyperv.world.machines import OFF, RUNNING
from standby.errors import HostError
from standby.model.machine import PowerState
from standby.model.replica import ReplicaState
from standby.units import KiB, MiB

ONE, EAST, WEST = ["hv1"], ["e1", "e2", "e3"], ["w1", "w2", "w3"]
STARTED, NEVER_STARTED = 2000, 0
"""Priorities of roles."""


@pytest.mark.parametrize(
    ("sides", "has_credssp"),
    [
        pytest.param([ONE, EAST], True, id="host to cluster"),
        pytest.param([ONE, EAST], False, id="host to cluster that takes no roles"),
        pytest.param([WEST, EAST], True, id="cluster to cluster"),
        pytest.param([WEST, ONE], False, id="cluster to host"),
        pytest.param([ONE], False, id="one host"),
        pytest.param([EAST], True, id="one cluster"),
        pytest.param([EAST], False, id="one cluster that takes no roles"),
    ],
)
def test_a_replicas_life(tmp_path: Path, sides: list[Sequence[str]], has_credssp: bool) -> None:
    site = HostPair(tmp_path, *sides)
    world = site.world
    is_one, is_role = len(sides) == 1, has_credssp and sides[-1] is EAST
    for host in world.hosts.values():
        host.has_credssp = has_credssp
    web = world.add_machine("web", sides[0][0], [8 * MiB])
    world.write(web, MiB, b"1" * 64 * KiB)
    first = content(web)
    with site.server() as server:
        warnings = site.cycle(server).warnings
        made = site.replica
        assert made.host in sides[-1]
        assert made.state == OFF
        assert (made.is_clustered, made.bios_guid) == (is_role, web.bios_guid)
        assert not is_role or made.priority == NEVER_STARTED
        assert (made.adapters[0].mac == web.adapters[0].mac) is not is_one
        assert any("source and target are one side" in text for text in warnings) is is_one
        not_taken = any(
            "not highly available" in text
            and f"Add-ClusterVirtualMachineRole -VMId {made.id.lower()}" in text
            for text in warnings
        )
        assert not_taken is (sides[-1] is EAST and not has_credssp)

        world.write(web, 2 * MiB, b"2" * 64 * KiB)
        second = content(web)
        report = site.cycle(server)
        assert [disk.mode for disk in report.disks] == ["incremental"]
        assert site.replica is made

        world.turn_off(web, OFF)
        oldest = site.folder.points()[0].id
        server.replicas.failover("web_replica", point=oldest, power_on=True)
        assert made.state == RUNNING
        assert content(made) == first
        assert not is_role or made.priority == STARTED
        world.write(made, 0, b"guest" * 1024)
        assert server.replicas.power("web_replica", on=False, force=True) is PowerState.OFF
        assert not is_role or made.priority == NEVER_STARTED
        record = server.replicas.undo_failover("web_replica")
        assert record.state is ReplicaState.READY
        assert content(made) == second

        world.start(web)
        world.write(web, 3 * MiB, b"3" * 64 * KiB)
        third = content(web)
        site.cycle(server)
        assert content(made) == third
        assert len(site.folder.points()) == 3
        world.turn_off(web, OFF)
        server.replicas.failover("web_replica")
        server.replicas.permanent_failover("web_replica")
        assert made.notes == ""


class OnEast(At):
    """Only what comes to the cluster counts."""

    def __call__(self, host: str, what: str, arguments: Mapping[str, Any]) -> None:
        if host in EAST:
            super().__call__(host, what, arguments)


@pytest.mark.parametrize(
    "what",
    [
        "Get-Cluster",
        ".DefineSystem",
        ".AddResourceSettings",
        "Add-VMHardDiskDrive",
        "Set-VMProcessor",
        "Add-ClusterVirtualMachineRole",
        "Get-VMHostSupportedVersion",
    ],
)
def test_a_target_node_that_dies_costs_no_replica(tmp_path: Path, what: str) -> None:
    """The node dies as the replica VM is made: another makes it; what was left is removed once
    the node is back."""
    site = HostPair(tmp_path, ONE, EAST)
    world = site.world
    for host in world.hosts.values():
        host.has_credssp = True
    web = world.add_machine("web", "hv1", [8 * MiB])
    died: list[str] = []

    def die() -> None:
        node = world.calls[-1][0]
        died.append(node)
        world.kill(node)

    hook = OnEast(what, die)
    world.hooks = [hook]
    with site.server() as server:
        for number in range(3):
            world.write(web, number * MiB, b"%d" % number * KiB)
            held = content(web)
            site.cycle(server)
            for node in died if number == 1 else ():
                world.revive(node)
        assert hook.is_done
        (replica,) = (it for it in world.machines.values() if it.name == "web_replica")
        assert replica.is_clustered
        assert content(replica) == held
        world.turn_off(web, OFF)
        server.replicas.failover("web_replica", power_on=True)
        assert replica.state == RUNNING


def test_a_replica_does_not_start_beside_its_running_source(tmp_path: Path) -> None:
    """On one host its MAC address is another one; made equal by hand, it is refused."""
    site = HostPair(tmp_path, ONE)
    web = site.world.add_machine("web", "hv1", [8 * MiB])
    with site.server() as server:
        site.cycle(server)
        server.replicas.failover("web_replica", source_may_run=True)
        site.replica.adapters[0].mac = web.adapters[0].mac
        with pytest.raises(HostError, match=web.adapters[0].mac):
            server.replicas.power("web_replica", on=True)
        assert site.replica.state == OFF
        site.world.turn_off(web, OFF)
        assert server.replicas.power("web_replica", on=True) is PowerState.RUNNING
