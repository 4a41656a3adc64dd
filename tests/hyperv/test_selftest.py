"""The self-test's walk, on simulated hosts that do as published, and on some that do not."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from clocks import HeldClock
from hyperv.clusters import SimulatedCluster
from hyperv.installation import SimulatedHost
from hyperv.world import World
from hyperv.world.machines import RUNNING, Machine
from hyperv.world.world import Fault
from standby.cli.host import report_lines
from standby.errors import ConfigurationError, HostError, ScriptFailed
from standby.files import ByteLock
from standby.host.hyperv.answers import Answer
from standby.host.hyperv.cluster_target import ClusterTarget
from standby.host.hyperv.door import Door
from standby.host.hyperv.quotas import Quotas
from standby.host.hyperv.selftest import STEPS, Report, Step, assumed_lines
from standby.host.hyperv.selftest_boot import (
    SECTOR,
    boot_sector,
    count_of,
    counting_sector,
    offset_of,
)
from standby.host.hyperv.selftest_rows import REMOVE_FOLDERS
from standby.host.hyperv.selftest_walk import Mark
from standby.host.hyperv.verbs import Value, Verb
from standby.server.config import load_config
from standby.server.host_selftest import selftest_door
from standby.server.selftest_disks import LocalDisks

FOLDER = r"C:\Hyper-V\Selftest"
CONFIG = """\
[standby]
installation = "test"

[repositories.main]
path = "repository"

[hosts.hv1]
kind = "hyperv"
address = "hv1.example.test"
credentials = {{ username = "EXAMPLE\\\\backup", password = "env:HV_PASSWORD" }}
"""
SEES = """
[proxies.here.paths.hv1]
'C:\\Hyper-V' = "{folder}"
"""


def without(*names: str) -> tuple[Step, ...]:
    """The walk without steps that take long, and that others do not need."""
    return tuple(step for step in STEPS if step.name not in names)


SNAPSHOT_STEPS = without("language", "tracking", "replica", "merge", "chain", "orphan")
CLUSTER_STEPS = without("language", "merge", "chain", "orphan", "snapshot", "tracking", "growth")


class Guest:
    """What the boot sector's program does in each VM that runs: a write a second, as a hook of the
    world that catches up with the clock before each call."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._written_at: dict[str, float] = {}
        world.hooks.append(self)

    def __call__(self, host: str, what: str, arguments: Mapping[str, Any]) -> None:
        for machine in list(self._world.machines.values()):
            if machine.state != RUNNING or not machine.is_made:
                self._written_at.pop(machine.id, None)
                continue
            now = self._world.clock.monotonic()
            last = self._written_at.setdefault(machine.id, now)
            while last + 1 <= now:
                last += 1
                self._write(machine)
            self._written_at[machine.id] = last

    def _write(self, machine: Machine) -> None:
        world = self._world
        path = machine.disks()[0].path if machine.disks() else None
        if path is None:
            return
        with world.storage.unlocked(path), world.storage.opened(path) as disk:
            first = bytearray(2 * SECTOR)
            disk.read_into(0, first)
        if first[:SECTOR] != boot_sector():
            return
        count = count_of(first) + 1
        sector = counting_sector(count, "standby selftest")
        world.write(machine, SECTOR, sector)
        world.write(machine, offset_of(count), sector)


class Site:
    """A simulated host with a VM of its user's, and a configuration that knows it."""

    def __init__(self, folder: Path, version: int = 2022, *, sees: bool = True) -> None:
        self.world = World(HeldClock(), folder / "world")
        self.world.add_host("hv1", version)
        self.theirs = self.world.add_machine("web", "hv1")
        self.guest = Guest(self.world)
        self.config = folder / "standby.toml"
        text = CONFIG.format()
        if sees:
            text += SEES.format(folder=self.world.root / "hv1")
        self.config.write_text(text)
        self.said: list[str] = []

    def run(self, steps: Sequence[Step] = STEPS) -> Report:
        config, clock = load_config(self.config), self.world.clock
        with SimulatedHost(self.world, "hv1") as host, host.door() as door:
            return selftest_door(config, "hv1", FOLDER, door, clock, self.said.append, None, steps)

    @property
    def left(self) -> list[str]:
        """What is on the host beside the user's own."""
        names = [item.name for item in self.world.machines.values() if item is not self.theirs]
        place = self.world.root / "hv1" / "Selftest"
        return names + ([each.name for each in place.iterdir()] if place.is_dir() else [])


def ignored(text: str) -> None:
    """Nobody is told."""


VOLUME = r"C:\ClusterStorage\Volume1"
CLUSTER = """\
[standby]
installation = "test"

[hosts.prod]
kind = "hyperv-cluster"
address = "prod.example.test"
credentials = {{ username = "EXAMPLE\\\\backup", password = "env:HV_PASSWORD" }}

[proxies.here.paths.prod]
'C:\\ClusterStorage\\Volume1' = "{folder}"
"""


class ClusterSite:
    """A simulated cluster of two nodes, as a configuration has it."""

    def __init__(self, folder: Path, *, has_credssp: bool) -> None:
        self.world = World(HeldClock(), folder / "world")
        for host in self.world.add_cluster("prod", ["hv1", "hv2"]):
            host.has_credssp = has_credssp
        self.guest = Guest(self.world)
        self.config = folder / "standby.toml"
        self.config.write_text(CLUSTER.format(folder=self.world.root / "prod-volume1"))

    def run(self, at: str = VOLUME) -> Report:
        config, clock = load_config(self.config), self.world.clock
        with (
            SimulatedCluster(self.world, "prod") as cluster,
            contextlib.closing(cluster.door()) as door,
            cluster.hosts["hv1"].door("prod/hv1", clock) as node,
        ):
            return selftest_door(config, "prod", at, node, clock, ignored, door, CLUSTER_STEPS)


def differing(report: Report) -> dict[str, list[str]]:
    """{step: findings that differ}."""
    return {
        step.name: [
            f"{item.what}: expected {item.expected}, came {item.came}"
            for item in step.findings
            if item.mark is Mark.DIFFERS
        ]
        for step in report.steps
        if step.mark is Mark.DIFFERS
    }


@pytest.fixture(scope="module", params=[2016, 2019, 2022, 2025])
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Site, Report]:
    """A sound host of that server version, and what the walk reported of it."""
    site = Site(tmp_path_factory.mktemp("site"), request.param)
    return site, site.run()


def test_a_host_that_does_as_published_is_as_expected_and_nothing_is_left(
    whole: tuple[Site, Report],
) -> None:
    site, report = whole
    assert differing(report) == {}, differing(report)
    assert {step.name for step in report.steps if step.mark is not Mark.OK} == {"cluster"}
    assert site.left == []
    assert site.theirs.checkpoints == []
    assert site.theirs.points == []


def test_without_a_proxy_that_sees_the_folder_the_rest_is_looked_at(tmp_path: Path) -> None:
    site = Site(tmp_path, sees=False)
    report = site.run()
    assert differing(report) == {}
    marks = {step.name: step.mark for step in report.steps}
    assert {name for name, mark in marks.items() if mark is Mark.MISSED} == {
        *("boot", "merge", "chain", "orphan", "cluster")
    }
    missed = [
        item
        for step in report.steps
        for item in step.findings
        if item.mark is Mark.MISSED and step.name != "cluster"
    ]
    assert {item.came for item in missed} == {rf"no proxy sees {FOLDER}: see [proxies.NAME.paths]"}
    assert site.left == []


def test_a_tracker_that_hides_writes_is_told(tmp_path: Path) -> None:
    site = Site(tmp_path)

    def lies(host: str, what: str, arguments: Mapping[str, Any]) -> None:
        for machine in site.world.machines.values():
            for drive in machine.disks():
                drive.tracker.hidden = [(SECTOR, SECTOR)]

    site.world.hooks.append(lies)
    report = site.run(SNAPSHOT_STEPS)
    (found,) = differing(report).items()
    assert found == (
        "snapshot",
        ["changed pieces of 4 KiB that the tracker did not tell: expected none, came 0"],
    )
    assert site.left == []


def test_a_host_that_cannot_convert_is_told(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.world.faults.append(Fault("ConvertToReferencePoint", code=32775, times=99))
    report = site.run(SNAPSHOT_STEPS)
    (found,) = differing(report).items()
    assert found[0] == "snapshot"
    assert found[1][0].startswith("the snapshot became a reference point with an RCT id: expected")
    assert "32775" in found[1][0]
    failed = {line.step for line in report.assumed if line.mark is Mark.DIFFERS}
    assert failed == {"snapshot"}
    assert site.left == []


def test_a_frozen_file_that_nobody_may_read_is_told(tmp_path: Path) -> None:
    site = Site(tmp_path)
    storage = site.world.storage

    def holds(host: str, what: str, arguments: Mapping[str, Any]) -> None:
        frozen = {
            path
            for machine in site.world.machines.values()
            for checkpoint in machine.checkpoints
            for path in checkpoint.disks.values()
        }
        storage.close_all("vm:jealous")
        for path in frozen:
            storage.hold(path, "vm:jealous", shares=())

    site.world.hooks.append(holds)
    report = site.run(SNAPSHOT_STEPS)
    (found,) = differing(report).items()
    assert found[0] == "snapshot"
    assert len(found[1]) == 2
    assert all(text.startswith("the frozen file can be read while") for text in found[1])
    assert "0x80070020" in found[1][0]
    assert site.left == []


def test_an_adapter_that_keeps_no_vlan_is_told(tmp_path: Path) -> None:
    site = Site(tmp_path)

    def forgets(host: str, what: str, arguments: Mapping[str, Any]) -> None:
        for machine in site.world.machines.values():
            for adapter in machine.adapters:
                adapter.mode = adapter.vlan = 0

    site.world.hooks.append(forgets)
    report = site.run(without("language", "snapshot", "tracking", "growth", "merge", "chain"))
    found = differing(report)
    assert set(found) == {"replica"}
    assert found["replica"][0] == "all is as wanted when it was made: expected True, came False"
    assert "vlan=7" in found["replica"][1]
    assert len(found["replica"]) == 2


def test_a_vm_that_cannot_be_turned_on_is_told_by_each_step_that_starts_it(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.world.faults.append(Fault("RequestStateChange", job=(10, 32768, "no memory"), times=99))
    report = site.run(without("language", "tracking"))
    found = differing(report)
    assert set(found) == {"inventory", "boot", "snapshot", "growth", "replica", "merge", "chain"}
    for texts in found.values():
        assert "no memory" in texts[-1]
    assert site.left == []


def test_a_merged_chain_that_does_not_hang_together_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path)
    merge = LocalDisks.merge

    def damaging(disks: LocalDisks, base: str, child: str, above: str) -> None:
        merge(disks, base, child, above)
        disks.write(base, {0: bytes(SECTOR)})  # and the base has another identity

    monkeypatch.setattr(LocalDisks, "merge", damaging)
    report = site.run(without("language", "snapshot", "tracking", "growth", "replica", "chain"))
    (found,) = differing(report).items()
    assert found[0] == "merge"
    assert "parent" in found[1][0]
    assert site.left == []


class CutOff(BaseException):
    """The process ends here."""


class DyingDoor:
    """A door whose user dies once that many scripts have run, before their answer is heard."""

    def __init__(self, door: Door, scripts: int) -> None:
        self.access = door.access
        self._door = door
        self.left = scripts

    def quotas(self) -> Quotas:
        return self._door.quotas()

    def printed(self, text: str) -> str:
        return self._door.printed(text)

    def run(self, verb: Verb[Value], request: Any) -> Answer[Value]:
        if self.left <= 0:
            raise CutOff
        answer = self._door.run(verb, request)
        self.left -= 1
        if self.left <= 0:
            raise CutOff
        return answer


@pytest.mark.parametrize("scripts", [9, 12, 20, 30, 45, 60])
def test_what_a_killed_test_left_goes_with_the_next_one(tmp_path: Path, scripts: int) -> None:
    site = Site(tmp_path)
    with SimulatedHost(site.world, "hv1") as host, host.door() as door:
        dying = cast(Door, DyingDoor(door, scripts))
        with pytest.raises(CutOff):
            selftest_door(load_config(site.config), "hv1", FOLDER, dying, site.world.clock, ignored)
    assert site.left
    report = site.run(SNAPSHOT_STEPS)
    assert differing(report) == {}
    told = [item.what for item in report.steps[0].findings if item.mark is Mark.TOLD]
    assert told[-1] == "removed the folder"
    assert site.left == []
    assert site.theirs.host == "hv1"


def test_a_cluster_takes_a_role_and_gives_it_back(tmp_path: Path) -> None:
    site = ClusterSite(tmp_path, has_credssp=True)
    report = site.run()
    assert differing(report) == {}, differing(report)
    assert {step.name for step in report.steps if step.mark is not Mark.OK} == set()
    assert ("hv1", "Add-ClusterVirtualMachineRole") in site.world.calls
    assert site.world.machines == {}
    assert list((site.world.root / "prod-volume1").iterdir()) == []


def test_a_cluster_that_takes_no_role_over_this_transport_is_told(tmp_path: Path) -> None:
    site = ClusterSite(tmp_path, has_credssp=False)
    report = site.run()
    assert differing(report) == {}
    (step,) = [step for step in report.steps if step.name == "cluster"]
    (missed,) = [item for item in step.findings if item.mark is Mark.MISSED]
    assert "credssp" in missed.came
    assert site.world.machines == {}


def test_a_role_that_a_killed_test_left_running_goes_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(target: ClusterTarget, machine: str, **more: object) -> None:
        raise CutOff

    site = ClusterSite(tmp_path, has_credssp=True)
    with monkeypatch.context() as patch:
        patch.setattr(ClusterTarget, "stop", ends)
        with pytest.raises(CutOff):
            site.run()
    (role,) = [machine for machine in site.world.machines.values() if machine.is_clustered]
    assert role.state == RUNNING
    assert differing(site.run()) == {}
    assert site.world.machines == {}
    assert list((site.world.root / "prod-volume1").iterdir()) == []


def test_a_folder_of_one_node_keeps_the_cluster_out(tmp_path: Path) -> None:
    site = ClusterSite(tmp_path, has_credssp=True)
    report = site.run(FOLDER)
    (step,) = [step for step in report.steps if step.name == "cluster"]
    assert step.findings[-1].came == "the folder is on no shared volume of the cluster"
    assert differing(report) == {}
    assert site.world.machines == {}


def test_every_line_of_assumed_toml_stands_in_the_report_with_what_came_of_it(
    whole: tuple[Site, Report],
) -> None:
    _, report = whole
    assert [(line.name, line.step) for line in report.assumed] == assumed_lines()
    assert {line.step for line in report.assumed} <= {step.name for step in STEPS}
    missed = {line.name for line in report.assumed if line.mark is Mark.MISSED}
    assert {line.name for line in report.assumed if line.step == "cluster"} <= missed
    others = {line.name for line in report.assumed if line.step != "cluster"} & missed
    assert others == {
        "class MSCluster_Cluster",
        "property MSCluster_Cluster.Name",
        "cmdlet Add-LocalGroupMember",
        "parameter Add-LocalGroupMember -SID",
        "parameter Add-LocalGroupMember -Member",
        "cmdlet Install-WindowsFeature",
        "parameter Install-WindowsFeature -IncludeManagementTools",
        "parameter Install-WindowsFeature -Restart",
        "property MSFT_SmbShareAccessControlEntry.AccountName",
        "property MSFT_SmbShareAccessControlEntry.AccessControlType",
        "property MSFT_SmbShareAccessControlEntry.AccessRight",
        "property VMInternalNetworkAdapter.Id",
        "value Msvm_ComputerSystem.EnabledState = 32768",  # the model has 9 for a paused VM
        "value Msvm_ResourceAllocationSettingData.ResourceSubType = "
        "Microsoft:Hyper-V:Physical Disk Drive",
    }
    assert {line.mark for line in report.assumed} == {Mark.OK, Mark.MISSED}


def test_the_report_names_nothing_of_the_users_but_the_host(whole: tuple[Site, Report]) -> None:
    text = "\n".join(report_lines(whole[1]))
    assert "web" not in text.split()
    for secret in ("backup", "correct horse", "example.test", "127.0.0.1"):
        assert secret not in text
    assert text.startswith("standby ")


def test_one_self_test_of_a_host_at_a_time(tmp_path: Path) -> None:
    site = Site(tmp_path)
    lock = ByteLock(load_config(site.config).state_database.parent / "selftest-hv1.lock")
    lock.path.parent.mkdir(parents=True, exist_ok=True)
    assert lock.acquire()
    with pytest.raises(HostError, match="another self-test"):
        site.run(SNAPSHOT_STEPS)
    assert site.world.calls == []
    lock.release()
    assert site.run(()).steps[-1].mark is Mark.OK


def test_a_folder_that_is_none_of_a_host_is_refused(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with SimulatedHost(site.world, "hv1") as host, host.door() as door:
        for folder in ("/var/tmp", "selftest", "D:\\"):
            with pytest.raises(ConfigurationError, match="no folder of the host"):
                selftest_door(load_config(site.config), "hv1", folder, door, site.world.clock, str)
    assert host.scripts == 0


def test_no_other_folder_is_removed_whatever_is_asked(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with SimulatedHost(site.world, "hv1") as host, host.door() as door:
        asked = {"folders": [{"id": "a", "path": r"C:\Hyper-V\web"}]}
        with pytest.raises(ScriptFailed, match="no folder of a self-test"):
            door.run(REMOVE_FOLDERS, asked).value("a")
    assert (site.world.root / "hv1" / "web").is_dir()
