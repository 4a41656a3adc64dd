"""Replica VMs at a simulated host, through the real door."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from clocks import HeldClock
from hyperv.installation import SimulatedHost
from hyperv.world import World
from hyperv.world.machines import OFF, RUNNING
from hyperv.world.machines import Adapter as WorldAdapter
from hyperv.world.machines import Machine as WorldMachine
from standby.disk import vhdx
from standby.errors import HostError, MachineRunning, ReplicaConflict, ReplicaStarted
from standby.host.hyperv.answers import Answer
from standby.host.hyperv.asking import Asking
from standby.host.hyperv.door import Door
from standby.host.hyperv.inventory import read_inventory
from standby.host.hyperv.shape import Shape
from standby.host.hyperv.target import HyperVTarget
from standby.host.hyperv.target_plan import TargetRules, Wanted
from standby.host.hyperv.target_power import Heartbeat
from standby.host.hyperv.verbs import Value, Verb
from standby.model.machine import PowerState
from standby.units import MiB

KEY = "lab/hv1/1/job"
IDENTIFIER = "{11111111-2222-3333-4444-555555555555}"
ROOT = r"C:\Hyper-V\Replicas"


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(HeldClock(), tmp_path / "world")
    made.add_host("hv2")
    return made


@pytest.fixture
def host(world: World) -> Iterator[SimulatedHost]:
    with SimulatedHost(world, "hv2") as made:
        yield made


@pytest.fixture
def target(world: World, host: SimulatedHost) -> Iterator[HyperVTarget]:
    with host.door() as door:
        yield HyperVTarget("dr", door, world.clock)


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Shape:
    """A source VM's, in the words of its host."""
    world = World(HeldClock(), tmp_path_factory.mktemp("source"))
    world.add_host("hv1")
    nic = WorldAdapter("LAN", "00155D0A0B0C", True, "External", 1, 7)
    nic.identifiers = (IDENTIFIER,)
    world.add_machine("web", "hv1", [8 * MiB, 8 * MiB], adapters=[nic], start_action=4)
    with SimulatedHost(world, "hv1") as source, source.door() as door:
        (found,) = read_inventory(door).machines
    return found.shape


def disks(world: World, name: str = "web", count: int = 2) -> dict[str, str]:
    """Ready layers as a mover leaves them; by place, as the host sees them."""
    top = world.storage.path("hv2", r"C:\Hyper-V")
    assert top is not None
    made = {}
    for number in range(count):
        folder = top / "Replicas" / name / f"d{number}"
        folder.mkdir(parents=True)
        vhdx.create(folder / "base.vhdx", 8 * MiB, sparse=False).close()
        vhdx.create_child(folder / "ready.vhdx", folder / "base.vhdx", sparse=False).close()
        made[f"scsi:0:{number}"] = f"{ROOT}\\{name}\\d{number}\\ready.vhdx"
    return made


def wanted(world: World, shape: Shape, **more: object) -> Wanted:
    return Wanted(
        **{
            "key": KEY,
            "name": "web_replica",
            "folder": f"{ROOT}\\web",
            "shape": shape,
            **({} if "disks" in more else {"disks": disks(world)}),
            **more,
        }  # type: ignore[arg-type]
    )


def replica(world: World) -> WorldMachine:
    return world.machine("web_replica")


def kept(target: HyperVTarget, asked: Wanted) -> str:
    """Keep it, without any error; its id."""
    answer = target.keep([asked])[asked.key]
    if answer.error is not None:
        raise answer.error
    return answer.id


def test_a_replica_vm_has_the_sources_shape_and_is_off(
    world: World, target: HyperVTarget, shape: Shape
) -> None:
    asked = wanted(world, shape)
    answer = target.keep([asked])[KEY]
    assert answer.error is None
    assert answer.is_new
    assert answer.warnings == ()
    made = replica(world)
    assert made.state == OFF
    assert (made.processors, made.memory) == (shape.processors, shape.memory.startup * MiB)
    assert (made.generation, made.secure_boot) == (2, True)
    assert made.bios_guid == shape.firmware.bios_guid
    assert made.start_action == 2
    assert made.checkpoint_type == 2
    (nic,) = made.adapters
    assert (nic.name, nic.mac, nic.is_static) == ("LAN", "00155D0A0B0C", True)
    assert (nic.switch, nic.mode, nic.vlan) == ("External", 1, 7)
    assert nic.identifiers == (IDENTIFIER,)
    assert [drive.place for drive in made.disks()] == ["scsi:0:0", "scsi:0:1"]
    seen = target.look({KEY: asked.disks})[KEY]
    assert seen.is_there
    assert seen.power is PowerState.OFF
    assert seen.findings == ()


def test_keeping_again_changes_nothing_and_takes_one_script(
    world: World, host: SimulatedHost, target: HyperVTarget, shape: Shape
) -> None:
    asked = wanted(world, shape)
    first = kept(target, asked)
    before = host.scripts
    answer = target.keep([asked])[KEY]
    assert answer.id == first
    assert not answer.is_new
    assert not answer.is_changed
    assert host.scripts == before + 1


def test_a_changed_shape_is_brought_in_line(
    world: World, target: HyperVTarget, shape: Shape
) -> None:
    asked = wanted(world, shape)
    kept(target, asked)
    other = msgspec.structs.replace(shape, processors=4, adapters=())
    changed = Wanted(KEY, "web_replica", asked.folder, other, {"scsi:0:0": asked.disks["scsi:0:0"]})
    assert target.keep([changed])[KEY].is_changed
    made = replica(world)
    assert made.processors == 4
    assert made.adapters == []
    assert [drive.place for drive in made.disks()] == ["scsi:0:0"]


def test_a_vm_of_that_name_that_is_not_ours_is_never_touched(
    world: World, target: HyperVTarget, shape: Shape
) -> None:
    theirs = world.add_machine("web_replica", "hv2", state=OFF)
    answer = target.keep([wanted(world, shape)])[KEY]
    assert isinstance(answer.error, ReplicaConflict)
    assert "a VM of that name already" in str(answer.error)
    assert theirs.processors == 2
    assert len([item for item in world.machines.values() if item.host == "hv2"]) == 1


def test_a_half_made_vm_is_completed_never_doubled(
    world: World, target: HyperVTarget, shape: Shape
) -> None:
    asked = wanted(world, shape)
    world.hosts["hv2"].denied.add("AddResourceSettings")
    assert target.keep([asked])[KEY].error is not None
    assert replica(world).adapters == []
    world.hosts["hv2"].denied.clear()
    answer = target.keep([asked])[KEY]
    assert answer.error is None
    assert not answer.is_new
    assert len([item for item in world.machines.values() if item.name == "web_replica"]) == 1
    assert len(replica(world).adapters) == 1


class CutOff(BaseException):
    """The process ends here."""


class DyingDoor:
    """A door whose user dies once that many scripts have run, before their answer is heard."""

    def __init__(self, door: Door, scripts: int) -> None:
        self._door = door
        self.left = scripts

    def run(self, verb: Verb[Value], request: Mapping[str, Any]) -> Answer[Value]:
        answer = self._door.run(verb, request)
        self.left -= 1
        if self.left <= 0:
            raise CutOff
        return answer


def test_a_kill_after_any_script_leaves_what_the_next_session_completes_and_doubles_nothing(
    world: World, host: SimulatedHost, shape: Shape
) -> None:
    kills = 0
    with host.door() as door:
        while True:
            key, name = f"{KEY}{kills}", f"web{kills}_replica"
            asked = wanted(world, shape, key=key, name=name, disks=disks(world, f"web{kills}"))
            asked = dataclasses.replace(asked, folder=f"{ROOT}\\web{kills}")
            dying = DyingDoor(door, kills + 1)
            is_cut = False
            try:
                HyperVTarget("dr", cast(Asking, dying), world.clock).keep([asked])
            except CutOff:
                is_cut = True
            answer = HyperVTarget("dr", door, world.clock).keep([asked])[key]
            assert answer.error is None, (kills, answer.error)
            (made,) = [item for item in world.machines.values() if item.name == name]
            assert [(nic.name, nic.mac, nic.identifiers) for nic in made.adapters] == [
                ("LAN", "00155D0A0B0C", (IDENTIFIER,))
            ]
            assert [drive.place for drive in made.disks()] == ["scsi:0:0", "scsi:0:1"]
            assert len([item for item in made.controllers if item.kind == "SCSI"]) == 1
            assert (made.state, made.start_action, made.checkpoint_type) == (OFF, 2, 2)
            if not is_cut:
                break
            kills += 1
    assert kills > 6


def test_a_vtpm_is_refused_unless_the_job_does_without(
    world: World, target: HyperVTarget, shape: Shape
) -> None:
    with_tpm = msgspec.structs.replace(shape, has_tpm=True)
    asked = wanted(world, with_tpm)
    assert "without_vtpm" in str(target.keep([asked])[KEY].error)
    rules = TargetRules(without_vtpm=True)
    again = Wanted(KEY, asked.name, asked.folder, with_tpm, asked.disks, rules)
    answer = target.keep([again])[KEY]
    assert answer.error is None
    assert "virtual TPM" in answer.warnings[0]


def test_a_start_waits_for_the_heartbeat_and_a_shutdown_ends_it(
    world: World, target: HyperVTarget, shape: Shape
) -> None:
    asked = wanted(world, shape)
    machine = kept(target, asked)
    assert target.start(machine, asked.disks.values(), 120) is Heartbeat.OK
    assert target.power_state(machine) is PowerState.RUNNING
    assert isinstance(target.keep([asked])[KEY].error, ReplicaStarted)
    with pytest.raises(ReplicaStarted):
        target.attach(machine, asked.disks)
    with pytest.raises(ReplicaStarted):
        target.remove(machine)
    target.stop(machine, timeout_s=120)
    assert target.power_state(machine) is PowerState.OFF


def test_no_vm_starts_with_the_mac_of_one_that_runs(
    world: World, target: HyperVTarget, shape: Shape
) -> None:
    asked = wanted(world, shape)
    machine = kept(target, asked)
    clone = WorldAdapter("LAN", "00155D0A0B0C", True, "External")
    world.add_machine("clone", "hv2", adapters=[clone], state=RUNNING)
    with pytest.raises(HostError, match="00155D0A0B0C of the VM clone"):
        target.start(machine)
    assert replica(world).state == OFF


def test_a_guest_that_does_not_shut_down_is_turned_off_only_when_told(
    world: World, target: HyperVTarget, shape: Shape
) -> None:
    machine = kept(target, wanted(world, shape))
    target.start(machine)
    with pytest.raises(MachineRunning):
        target.stop(machine, timeout_s=0)
    target.stop(machine, timeout_s=0, force=True)
    assert target.power_state(machine) is PowerState.OFF


def test_other_files_are_attached_and_what_was_changed_by_hand_is_said(
    world: World, target: HyperVTarget, shape: Shape
) -> None:
    asked = wanted(world, shape)
    machine = kept(target, asked)
    others = {place: file.replace("ready", "older") for place, file in asked.disks.items()}
    target.new_children({file: file.replace("older", "base") for file in others.values()})
    target.attach(machine, others)
    assert target.look({KEY: others})[KEY].findings == ()
    findings = target.look({KEY: asked.disks})[KEY].findings
    assert len(findings) == 2
    assert "scsi:0:0" in findings[0]


def test_at_failover_checkpoints_and_start_are_the_sources_again(
    world: World, target: HyperVTarget, shape: Shape
) -> None:
    machine = kept(target, wanted(world, shape))
    target.restore_automatic(machine, shape)
    made = replica(world)
    assert (made.start_action, made.checkpoint_type) == (4, shape.checkpoint_type)
    assert target.find(KEY) == machine
    target.restore_automatic(machine, shape, is_permanent=True)
    assert target.find(KEY) == ""


def test_removing_takes_the_configuration_and_no_disk(
    world: World, target: HyperVTarget, shape: Shape
) -> None:
    asked = wanted(world, shape)
    machine = kept(target, asked)
    target.remove(machine)
    target.remove(machine)
    assert target.find(KEY) == ""
    for file in asked.disks.values():
        path = world.storage.path("hv2", file)
        assert path is not None
        assert path.is_file()
