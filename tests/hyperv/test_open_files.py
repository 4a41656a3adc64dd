"""Files of a checkpoint that a mover which is gone keeps open through the host's shares."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clocks import HeldClock
from hyperv.clusters import SimulatedCluster
from hyperv.installation import SimulatedHost
from hyperv.sites import Site
from hyperv.world import Handle, World
from hyperv.world.machines import Machine as WorldMachine
from standby.errors import FilesHeldOpen
from standby.host.hyperv.open_files import closing_command
from standby.host.hyperv.source import HyperVSource
from standby.model.machine import Checkpoint
from standby.server.config import load_config
from standby.server.smb_clients import smb_clients
from standby.units import MiB

OURS, OTHER = "10.0.0.5", "10.0.0.6"


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(HeldClock(), tmp_path / "world")
    world.add_host("hv1", 2022)
    return world


@pytest.fixture
def web(world: World) -> WorldMachine:
    made = world.add_machine("web", "hv1", [8 * MiB])
    made.faults.conflict_fails_job = True
    return made


@pytest.fixture
def source(world: World, web: WorldMachine, tmp_path: Path) -> Iterator[HyperVSource]:
    with SimulatedHost(world, "hv1") as host, host.door("prod", world.clock) as door:
        yield HyperVSource("prod", door, tmp_path / "records", world.clock, clients=lambda: [OURS])


def taken(source: HyperVSource, *, is_read: bool = True) -> Checkpoint:
    (machine,) = source.machines()
    made = source.take_checkpoint(machine, "i1")
    if is_read:
        source.confirm_checkpoint(made)
    return made


def opened(world: World, made: Checkpoint, client: str, node: str = "hv1") -> Handle:
    path = world.storage.path(node, made.disks[0].files[0])
    assert path is not None
    return world.open_for_reading(path, shares=("read",), client=client)


def is_open(world: World, handle: Handle) -> bool:
    return handle in world.storage.handles


@pytest.mark.parametrize("is_read", [True, False], ids=["convert", "destroy"])
def test_what_our_proxy_keeps_open_is_closed_and_the_checkpoint_released(
    world: World, source: HyperVSource, web: WorldMachine, is_read: bool
) -> None:
    made = taken(source, is_read=is_read)
    handle = opened(world, made, OURS)
    trackers = source.release_checkpoint(made)
    assert bool(trackers) is is_read
    assert not is_open(world, handle)
    world.clock.sleep(60)
    world.settle()
    assert (world.depth(web), web.checkpoints) == (1, [])


def test_a_mover_that_was_not_heard_of_is_waited_for_before_anything_is_closed(
    world: World, source: HyperVSource, web: WorldMachine
) -> None:
    web.faults.conflict_fails_job = False
    made = taken(source)
    handle = opened(world, made, OURS)
    source.may_be_open(made)
    world.later(1, handle.close)
    source.release_checkpoint(made)
    assert (world.hosts["hv1"].name, "Close-SmbOpenFile") not in world.calls
    world.clock.sleep(60)
    world.settle()
    assert world.depth(web) == 1


def test_a_mover_that_never_closes_a_file_does_not_stop_the_merge(
    world: World, source: HyperVSource, web: WorldMachine
) -> None:
    web.faults.conflict_fails_job = False
    made = taken(source)
    handle = opened(world, made, OURS)
    source.may_be_open(made)
    source.release_checkpoint(made)
    assert not is_open(world, handle)
    world.clock.sleep(60)
    world.settle()
    assert world.depth(web) == 1


def test_what_others_have_open_stays_open_and_is_named_with_the_command(
    world: World, source: HyperVSource, web: WorldMachine
) -> None:
    made = taken(source)
    handle = opened(world, made, OTHER)
    with pytest.raises(FilesHeldOpen) as caught:
        source.release_checkpoint(made)
    text = str(caught.value)
    assert OTHER in text
    assert "web-0.vhdx" in text
    assert "Close-SmbOpenFile -Force" in text
    assert is_open(world, handle)
    assert len(web.checkpoints) == 1
    handle.close()
    source.release_checkpoint(made)
    assert web.checkpoints == []


def test_the_command_for_a_file_server_names_files_as_its_shares_do() -> None:
    command = closing_command([r"\\fs1\vms\web\web-0.vhdx"])
    assert r"$_.ShareRelativePath -eq 'web\web-0.vhdx'" in command


def test_nothing_but_the_file_of_the_checkpoint_is_closed(
    world: World, source: HyperVSource, web: WorldMachine
) -> None:
    other = world.add_machine("db", "hv1", [8 * MiB])
    path = other.disks()[0].path
    assert path is not None
    untouched = world.storage.hold(path, "reader", shares=("read",))
    untouched.client = OURS
    (machine,) = [item for item in source.machines() if item.name == "web"]
    made = source.take_checkpoint(machine, "i1")
    source.confirm_checkpoint(made)
    ours, theirs = opened(world, made, OURS), opened(world, made, OTHER)
    world.later(30, theirs.close)
    source.release_checkpoint(made)
    assert is_open(world, untouched)
    assert not is_open(world, ours)


def test_the_node_that_serves_a_clusters_volume_closes_them(tmp_path: Path) -> None:
    world = World(HeldClock(), tmp_path / "world")
    world.add_cluster("prod", ["hv1", "hv2"])
    web = world.add_machine("web", "hv2", [8 * MiB])
    web.faults.conflict_fails_job = True
    with SimulatedCluster(world, "prod") as cluster:
        source = HyperVSource("prod", cluster.door(), clock=world.clock, clients=lambda: [OURS])
        made = taken(source)
        handle = opened(world, made, OURS)
        source.release_checkpoint(made)
        assert not is_open(world, handle)
        assert web.checkpoints == []
        source.close()


def test_proxies_are_known_by_the_addresses_of_their_movers(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with site.host:
        config = load_config(site.config)
        assert "127.0.0.1" in smb_clients(config, config.hosts["prod"])
