"""Replica VMs as roles of a cluster, through the real doors of its nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clocks import HeldClock
from hyperv.clusters import At, SimulatedCluster
from hyperv.world import Adapter, Machine, World
from hyperv.world import clusters as fate
from standby.disk import vhdx
from standby.errors import HostError, MachineRunning, ReplicaStarted
from standby.host.hyperv.cluster import ClusterDoor
from standby.host.hyperv.cluster_roles import TURN_OFF, ClusterRoles
from standby.host.hyperv.cluster_target import ClusterTarget
from standby.host.hyperv.inventory import read_inventory
from standby.host.hyperv.machines import REPLICA_NOTE
from standby.host.hyperv.target_plan import TargetRules, Wanted
from standby.host.hyperv.target_power import Heartbeat
from standby.units import MiB


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(HeldClock(), tmp_path)
    made.add_cluster("prod", ["hv1", "hv2"])
    return made


@pytest.fixture
def cluster(world: World) -> Iterator[SimulatedCluster]:
    with SimulatedCluster(world, "prod") as made:
        yield made


@pytest.fixture
def replica(world: World) -> Machine:
    machine = world.add_machine("web-replica", "hv2", [8 * MiB])
    machine.is_clustered = False
    world.turn_off(machine)
    return machine


def _credssp(world: World) -> None:
    for host in world.hosts.values():
        host.has_credssp = True


def test_a_replicas_role_lives_from_its_making_to_its_removal(
    world: World, cluster: SimulatedCluster, replica: Machine
) -> None:
    _credssp(world)
    roles = ClusterRoles(cluster.door(), "prod")
    assert roles.look(replica.id) is None
    made = roles.make(replica.id)
    assert made.is_high
    assert made.role == "web-replica"
    assert (replica.is_clustered, replica.priority, replica.runs) == (True, 0, False)
    assert roles.make(replica.id) == made

    roles.refresh(replica.id)
    assert ("hv2", "Update-ClusterVirtualMachineConfiguration") in world.calls

    started = roles.start(replica.id, wait_s=60)
    assert (started.state, started.node, started.priority) == ("Online", "hv2", 2000)
    assert replica.runs
    assert roles.start(replica.id, wait_s=60) == started

    stopped = roles.stop(replica.id, wait_s=60)
    assert (stopped.state, stopped.priority) == ("Offline", 0)
    assert replica.state == 3, "off, not saved"
    assert replica.offline_action == 2
    roles.stop(replica.id, wait_s=60, action=TURN_OFF)

    roles.remove(replica.id)
    assert not replica.is_clustered
    assert roles.look(replica.id) is None
    roles.remove(replica.id)
    roles.refresh(replica.id)


def test_without_credssp_the_replica_is_no_role_and_the_command_is_told(
    world: World, cluster: SimulatedCluster, replica: Machine
) -> None:
    made = ClusterRoles(cluster.door(), "prod").make(replica.id)
    assert not made.is_high
    assert "not highly available" in made.problem
    assert "credssp" in made.problem
    assert made.command == (
        f"Add-ClusterVirtualMachineRole -VMId {replica.id}; "
        f"(Get-ClusterGroup -VMId {replica.id}).Priority = 0"
    )
    assert not replica.is_clustered


def test_a_replica_on_a_nodes_own_drive_is_no_role(world: World, cluster: SimulatedCluster) -> None:
    _credssp(world)
    machine = world.add_machine("local", "hv1", [8 * MiB], volume=r"C:\Hyper-V")
    machine.is_clustered = False
    made = ClusterRoles(cluster.door(), "prod").make(machine.id)
    assert not made.is_high
    assert "not on the cluster's storage" in made.problem


def test_starting_what_is_no_role_is_an_error(
    world: World, cluster: SimulatedCluster, replica: Machine
) -> None:
    roles = ClusterRoles(cluster.door(), "prod")
    with pytest.raises(Exception, match="start_roles failed"):
        roles.start(replica.id, wait_s=60)
    assert not replica.runs


def test_a_role_that_does_not_come_online_is_an_error(
    world: World, cluster: SimulatedCluster, replica: Machine
) -> None:
    _credssp(world)
    roles = ClusterRoles(cluster.door(), "prod")
    roles.make(replica.id)

    def fail() -> None:
        replica.role_failed = True

    world.hooks = [At("Get-ClusterGroup", fail, skip=1)]
    with pytest.raises(HostError, match="role web-replica is Failed on node hv2 after 60 s"):
        roles.start(replica.id, wait_s=60)


def test_a_new_vm_goes_to_the_coordinator_of_its_volume_or_the_emptiest_node(
    world: World, cluster: SimulatedCluster
) -> None:
    world.add_machine("one", "hv2", [8 * MiB])
    door = cluster.door()
    folder = r"C:\ClusterStorage\Volume1\replicas"
    door.nodes.look()
    assert door.node_for(folder) == "hv1"
    assert door.node_for(r"\\files\replicas") == "hv1"
    fate.pause(world, "hv1")
    door.nodes.look()
    assert door.node_for(folder) == "hv2"
    fate.pause(world, "hv2")
    door.nodes.look()
    with pytest.raises(HostError, match="no node of the cluster takes VMs"):
        door.node_for(folder)


# --- a cluster as a target ----------------------------------------------------------------------


def test_a_replica_on_a_cluster_is_started_stopped_and_removed_through_its_role(
    world: World, cluster: SimulatedCluster, replica: Machine
) -> None:
    _credssp(world)
    replica.notes = f"{REPLICA_NOTE}web"
    target = ClusterTarget("prod", cluster.door(), world.clock)
    target.roles.make(replica.id)
    assert target.start(replica.id, heartbeat_s=60) is Heartbeat.OK
    assert ("hv2", "Start-ClusterGroup") in world.calls
    assert (replica.runs, replica.priority) == (True, 2000)
    with pytest.raises(ReplicaStarted):
        target.remove(replica.id)
    assert replica.is_clustered
    with pytest.raises(MachineRunning, match="--force"):
        target.stop(replica.id, timeout_s=0)
    target.stop(replica.id, timeout_s=60)
    assert (replica.state, replica.priority, replica.offline_action) == (3, 0, 2)
    target.stop(replica.id, timeout_s=60)
    target.remove(replica.id)
    assert replica.id not in world.machines
    assert not replica.is_clustered


def test_a_replica_that_is_no_role_is_started_and_stopped_as_on_a_host(
    world: World, cluster: SimulatedCluster, replica: Machine
) -> None:
    replica.notes = f"{REPLICA_NOTE}web"
    target = ClusterTarget("prod", cluster.door(), world.clock)
    target.start(replica.id)
    assert replica.runs
    target.stop(replica.id, timeout_s=0, force=True)
    assert replica.state == 3
    assert not [what for _, what in world.calls if what in ("Start-ClusterGroup", "Stop-Cluster")]


def test_a_started_role_comes_back_on_another_node_when_its_own_dies(
    world: World, cluster: SimulatedCluster, replica: Machine
) -> None:
    _credssp(world)
    replica.notes = f"{REPLICA_NOTE}web"
    target = ClusterTarget("prod", cluster.door(), world.clock)
    target.roles.make(replica.id)
    target.start(replica.id)
    fate.kill(world, "hv2", after_s=20)
    target.stop(replica.id, timeout_s=60)
    assert replica.host == "hv1"
    assert replica.state == 3


def _wanted(world: World, door: ClusterDoor) -> Wanted:
    """The replica of a VM of the same cluster, its ready layer as a mover leaves it."""
    world.add_machine("web", "hv2", [8 * MiB], adapters=[Adapter("LAN", "00155D0A0B0C", True)])
    (found,) = read_inventory(door).machines
    top = world.storage.path("hv1", r"C:\ClusterStorage\Volume1")
    assert top is not None
    (top / "Replicas" / "web").mkdir(parents=True)
    base, ready = (top / "Replicas" / "web" / f"{name}.vhdx" for name in ("base", "ready"))
    vhdx.create(base, 8 * MiB, sparse=False).close()
    vhdx.create_child(ready, base, sparse=False).close()
    folder = r"C:\ClusterStorage\Volume1\Replicas\web"
    disks = {"scsi:0:0": f"{folder}\\ready.vhdx"}
    return Wanted("web", "web_replica", folder, found.shape, disks, TargetRules(same_side=True))


def test_one_cluster_is_both_sides_and_its_replica_a_role_from_its_making(
    world: World, cluster: SimulatedCluster
) -> None:
    _credssp(world)
    door = cluster.door()
    target = ClusterTarget("prod", door, world.clock)
    wanted = _wanted(world, door)
    kept = target.keep([wanted])["web"]
    assert kept.error is None
    assert kept.is_new
    made = world.machine("web_replica")
    assert (made.host, made.is_clustered, made.priority, made.runs) == ("hv1", True, 0, False)
    assert not made.adapters[0].is_static, "no MAC twice in one cluster"
    world.move(made, "hv2")
    again = target.keep([wanted])["web"]
    assert (again.id, again.is_new, again.is_changed) == (kept.id, False, False)
    target.start(kept.id, wanted.disks.values())
    assert (made.runs, made.priority) == (True, 2000)


def test_a_replica_that_the_cluster_does_not_take_is_kept_with_a_warning(
    world: World, cluster: SimulatedCluster
) -> None:
    door = cluster.door()
    kept = ClusterTarget("prod", door, world.clock).keep([_wanted(world, door)])["web"]
    assert kept.error is None
    (warning,) = (text for text in kept.warnings if "not highly available" in text)
    assert f"on node hv1: `Add-ClusterVirtualMachineRole -VMId {kept.id}" in warning
    assert not world.machine("web_replica").is_clustered
