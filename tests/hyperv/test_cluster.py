"""Clusters through their real doors: nodes found, VMs followed from node to node, dead nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from clocks import HeldClock
from hyperv.clusters import ADDRESS, At, SimulatedCluster
from hyperv.world import World
from hyperv.world import clusters as fate
from standby.errors import HostUnreachable, MachineNowhere
from standby.host.hyperv.cluster import ClusterDoor
from standby.host.hyperv.cluster_rows import HOMES
from standby.host.hyperv.rows import DESTROY
from standby.host.hyperv.source import HyperVSource
from standby.host.hyperv.trust import parse_tracker
from standby.units import MiB

NODES = ("hv1", "hv2", "hv3")


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(HeldClock(), tmp_path)
    made.add_cluster("prod", NODES)
    return made


@pytest.fixture
def cluster(world: World) -> Iterator[SimulatedCluster]:
    with SimulatedCluster(world, "prod") as made:
        yield made


def _source(door: ClusterDoor, world: World) -> HyperVSource:
    return HyperVSource("prod", door, clock=world.clock)


# --- what there is ------------------------------------------------------------------------------


def test_nodes_are_found_by_the_clusters_name_and_addressed_by_their_own(
    cluster: SimulatedCluster,
) -> None:
    door = cluster.door()
    view = door.nodes.look()
    assert [(node.name, node.state) for node in view.nodes] == [(n, "Up") for n in NODES]
    assert cluster.opened == [
        ("prod", ADDRESS),
        *((f"prod/{n}", f"{n}.example.test") for n in NODES),
    ]


def test_a_configured_address_of_a_node_counts_and_leads_in_where_the_name_does_not(
    world: World, cluster: SimulatedCluster
) -> None:
    def open_door(title: str, address: str):  # type: ignore[no-untyped-def]
        if address == ADDRESS:
            raise HostUnreachable("prod", ADDRESS, "no such name")
        return cluster.open_door(title, address)

    class Refusing:
        def run(self, verb, request):  # type: ignore[no-untyped-def]
            raise HostUnreachable("prod", ADDRESS, "no such name")

        def close(self) -> None:
            pass

    door = ClusterDoor(
        "prod",
        ADDRESS,
        lambda title, address: Refusing() if address == ADDRESS else open_door(title, address),
        nodes=("hv2.lab",),
        clock=world.clock,
    )
    assert len(door.nodes.look().nodes) == 3
    assert dict(cluster.opened)["prod/hv2"] == "hv2.lab"


def test_the_inventory_of_all_nodes_takes_two_scripts_each_and_one_for_the_cluster(
    world: World, cluster: SimulatedCluster
) -> None:
    for number in range(12):
        world.add_machine(f"vm{number:02}", NODES[number % 3], [8 * MiB])
    door = cluster.door()
    inventory = _source(door, world).inventory()
    assert [machine.name for machine in inventory.machines] == [f"vm{n:02}" for n in range(12)]
    assert inventory.problems == ()
    assert inventory.warnings == ()
    assert sum(cluster.scripts.values()) == 2 * 3 + 1
    assert door.node_of(world.machine("vm04").id) == "hv2"


def test_a_dead_node_is_a_warning_and_its_vms_are_found_where_they_run(
    world: World, cluster: SimulatedCluster
) -> None:
    machine = world.add_machine("web", "hv1")
    world.add_machine("db", "hv2")
    world.kill("hv1")
    door = cluster.door()
    inventory = _source(door, world).inventory()
    assert [item.name for item in inventory.machines] == ["db", "web"]
    assert inventory.problems == ()
    assert "node hv1 of cluster prod is not asked" in inventory.warnings[0].text
    assert door.node_of(machine.id) == "hv2"


def test_without_any_node_the_cluster_cannot_be_reached(
    world: World, cluster: SimulatedCluster
) -> None:
    for node in NODES:
        world.kill(node)
    with pytest.raises(HostUnreachable, match="prod"):
        _source(cluster.door(), world).inventory()


def test_a_vm_that_moves_while_the_inventory_is_read_is_there_once(
    world: World, cluster: SimulatedCluster
) -> None:
    """Whichever nodes had already answered: two of them show it, or none does."""
    machine = world.add_machine("web", "hv1")
    door = cluster.door()
    source = _source(door, world)
    source.inventory()
    for skip in range(1, 14, 4):
        here = machine.host
        there = NODES[(NODES.index(here) + 1) % 3]
        world.hooks = [At("Get-CimInstance", lambda to=there: world.move(machine, to), skip=skip)]
        assert [item.name for item in source.inventory().machines] == ["web"]
        world.hooks.clear()
        assert door.run(HOMES, {"machines": [{"id": machine.id}]}).value(machine.id).found
        assert door.node_of(machine.id) == machine.host


def test_vms_whose_local_files_have_the_same_path_are_not_mixed_up(
    world: World, cluster: SimulatedCluster
) -> None:
    for node in ("hv1", "hv2"):
        machine = world.add_machine("same", node, [8 * MiB], volume=r"C:\Hyper-V")
        machine.is_clustered = False
        machine.name = f"same on {node}"
    inventory = _source(cluster.door(), world).inventory()
    assert [item.name for item in inventory.machines] == ["same on hv1"]
    assert "same on hv2 on node hv2 is left out" in inventory.warnings[0].text


def test_a_vm_without_change_tracking_is_said(world: World, cluster: SimulatedCluster) -> None:
    world.add_machine("old", "hv1", version="5.0")
    inventory = _source(cluster.door(), world).inventory()
    (warning,) = inventory.warnings
    assert warning.name == "old"
    assert "configuration version 5.0 is older than 6.2" in warning.text


def test_a_shared_volumes_coordinator_is_known(world: World, cluster: SimulatedCluster) -> None:
    door = cluster.door()
    assert door.nodes.coordinator_of(r"C:\ClusterStorage\Volume1\web\web.vhdx") == ""
    door.nodes.look()
    assert door.nodes.coordinator_of(r"c:\clusterstorage\volume1\web\web.vhdx") == "hv1"
    assert door.nodes.coordinator_of(r"C:\Hyper-V\web.vhdx") == ""


# --- VMs that move ------------------------------------------------------------------------------


def _cycle(source: HyperVSource, name: str, trackers: dict[str, str]) -> dict[str, str]:
    """One session of a VM: what its release gives. The changes since `trackers` are asked for."""
    machine = next(item for item in source.machines() if item.name == name)
    checkpoint = source.take_checkpoint(machine, "intent-" + str(len(source.records.all())))
    if trackers:
        found = source.changes_since(machine, "scsi:0:0", trackers["scsi:0:0"], checkpoint)
        assert found.ranges is not None, found.reason
    source.confirm_checkpoint(checkpoint)
    released = source.release_checkpoint(checkpoint)
    source.forget_tracker(machine, list(trackers.values()))
    return released


@pytest.mark.parametrize("skip", range(20, 60, 13))
def test_a_vm_may_move_between_any_two_calls_of_a_session(
    world: World, cluster: SimulatedCluster, skip: int
) -> None:
    machine = world.add_machine("web", "hv1")
    source = _source(cluster.door(), world)
    trackers = _cycle(source, "web", {})
    world.clock.sleep(60)
    world.settle()
    world.write(machine, MiB, b"changed " * 64)
    moved = At("", lambda: world.move(machine, "hv3"), skip=skip)
    world.hooks = [moved]
    released = _cycle(source, "web", trackers)
    assert moved.is_done
    assert machine.host == "hv3"
    tracked = parse_tracker(released["scsi:0:0"])
    assert tracked is not None
    assert tracked.point, tracked.why
    world.clock.sleep(60)
    world.settle()
    assert [c for c in machine.checkpoints if c.kind == "Recovery"] == []
    assert [p.instance_id for p in machine.points] == [tracked.point]
    assert world.depth(machine) == 1


def test_reference_points_of_a_vm_that_moved_are_destroyed_on_its_new_node(
    world: World, cluster: SimulatedCluster
) -> None:
    """What moves before the other operations: test_cluster_jobs.py."""
    machine = world.add_machine("web", "hv1")
    source = _source(cluster.door(), world)
    trackers = _cycle(source, "web", {})
    world.clock.sleep(60)
    moved = At(".DestroyReferencePoint", lambda: world.move(machine, "hv2"))
    world.hooks = [moved]
    released = _cycle(source, "web", trackers)
    assert moved.is_done
    tracked = parse_tracker(released["scsi:0:0"])
    assert tracked is not None
    world.clock.sleep(60)
    world.settle()
    assert [p.instance_id for p in machine.points] == [tracked.point]
    assert machine.checkpoints == []


def test_checkpoints_of_many_vms_keep_the_measure_of_their_volume_on_all_nodes_together(
    world: World, cluster: SimulatedCluster
) -> None:
    for number in range(6):
        world.add_machine(f"vm{number}", NODES[number % 3], [8 * MiB])
    source = _source(cluster.door(), world)
    machines = source.machines()
    most = 0

    def count(host: str, what: str, arguments: Mapping[str, Any]) -> None:
        nonlocal most
        under_way = [job for job in world.jobs.values() if job.vm is not None and not job.is_over]
        most = max(most, len(under_way))

    world.hooks = [count]
    with ThreadPoolExecutor(6) as pool:
        taken = list(pool.map(lambda it: source.take_checkpoint(it, f"intent-{it.name}"), machines))
        assert len({checkpoint.machine_id for checkpoint in taken}) == 6
        for checkpoint in taken:
            source.confirm_checkpoint(checkpoint)
        released = list(pool.map(source.release_checkpoint, taken))
    assert all(item["scsi:0:0"] for item in released)
    assert 1 <= most <= 2


# --- nodes that die -----------------------------------------------------------------------------


def _dying(world: World, what: str, skip: int, **more: bool) -> At:
    """hv1 dies right before that call; its VMs are taken over 20 s later."""

    class OnFirst(At):
        def __call__(self, host: str, what: str, arguments: Mapping[str, Any]) -> None:
            if host == "hv1":
                super().__call__(host, what, arguments)

    return OnFirst(what, lambda: fate.kill(world, "hv1", after_s=20, **more), skip=skip)


STEPS = [
    ("Get-Cluster", 0),
    ("Get-CimInstance", 8),  # amid the inventory
    ("Get-CimInstance", 25),  # amid the making of the checkpoint
]
"""Before the other operations: test_cluster_jobs.py."""


@pytest.mark.parametrize(("what", "skip"), STEPS)
def test_a_node_that_dies_at_any_step_leaves_the_session_on_its_way(
    world: World, cluster: SimulatedCluster, what: str, skip: int
) -> None:
    machine = world.add_machine("web", "hv1")
    source = _source(cluster.door(), world)
    trackers = _cycle(source, "web", {})
    world.clock.sleep(60)
    world.settle()
    died = _dying(world, what, skip)
    world.hooks = [died]
    released = _cycle(source, "web", trackers)
    assert died.is_done
    assert machine.host == "hv2"
    tracked = parse_tracker(released["scsi:0:0"])
    assert tracked is not None
    world.clock.sleep(60)
    world.settle()
    assert machine.checkpoints == []
    assert [p.instance_id for p in machine.points] == ([tracked.point] if tracked.point else [])
    assert tracked.point or tracked.why
    assert world.depth(machine) == 1


def test_a_conversion_that_had_just_been_done_when_its_node_died_is_found(
    world: World, cluster: SimulatedCluster
) -> None:
    machine = world.add_machine("web", "hv1")
    source = _source(cluster.door(), world)
    trackers = _cycle(source, "web", {})
    world.clock.sleep(60)
    world.settle()

    def die() -> None:
        world.kill("hv1", jobs_are_done=True)

    begun = At(".ConvertToReferencePoint", lambda: world.hooks.append(At("Get-CimInstance", die)))
    world.hooks = [begun]
    released = _cycle(source, "web", trackers)
    tracked = parse_tracker(released["scsi:0:0"])
    assert tracked is not None
    assert [p.instance_id for p in machine.points] == [tracked.point]


def test_a_vm_that_its_cluster_could_not_start_again_is_replicated_off(
    world: World, cluster: SimulatedCluster
) -> None:
    machine = world.add_machine("web", "hv1")
    source = _source(cluster.door(), world)
    trackers = _cycle(source, "web", {})
    world.clock.sleep(60)
    world.settle()
    world.hooks = [_dying(world, "CreateSnapshot", 0, restarts=False)]
    released = _cycle(source, "web", trackers)
    assert not machine.runs
    assert machine.role_failed
    tracked = parse_tracker(released["scsi:0:0"])
    assert tracked is not None
    assert tracked.point


def test_a_vm_that_no_node_takes_over_is_given_up_by_name(
    world: World, cluster: SimulatedCluster
) -> None:
    world.add_machine("web", "hv1")
    door = cluster.door(find_s=10)
    source = _source(door, world)
    (machine,) = source.machines()
    fate.kill(world, "hv1", after_s=10_000)
    with pytest.raises(MachineNowhere, match="role web is Pending on hv1"):
        source.take_checkpoint(machine, "intent")
    inventory = source.inventory()
    assert inventory.machines == ()
    assert any("is on no node: role web is Pending" in item.text for item in inventory.warnings)


def test_a_vm_that_was_removed_is_gone_at_once(world: World, cluster: SimulatedCluster) -> None:
    machine = world.add_machine("web", "hv1")
    door = cluster.door()
    _source(door, world).machines()
    del world.machines[machine.id]
    before = world.clock.monotonic()
    request = {"machines": [{"id": machine.id.lower(), "snapshot": "Microsoft:none", "wait_s": 1}]}
    assert door.run(DESTROY, request).value(machine.id.lower()).state == "gone"
    assert not door.run(HOMES, {"machines": [{"id": machine.id}]}).value(machine.id).found
    assert world.clock.monotonic() == before


def test_a_paused_node_keeps_its_vms(world: World, cluster: SimulatedCluster) -> None:
    world.add_machine("web", "hv2")
    fate.pause(world, "hv2")
    inventory = _source(cluster.door(), world).inventory()
    assert [item.name for item in inventory.machines] == ["web"]
    assert inventory.warnings == ()


def test_a_node_that_is_back_is_asked_again(world: World, cluster: SimulatedCluster) -> None:
    world.add_machine("web", "hv1")
    source = _source(cluster.door(), world)
    source.inventory()
    world.kill("hv1")
    assert source.inventory().warnings != ()
    world.revive("hv1")
    world.move(world.machine("web"), "hv1")
    inventory = source.inventory()
    assert inventory.warnings == ()
    assert [item.name for item in inventory.machines] == ["web"]
