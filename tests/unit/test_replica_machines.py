"""The verbs of replicas at a host that is no folder host: the host's part is its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from replicas import add_point, new_replica
from standby.errors import MachineRunning, ReplicaStarted
from standby.model.machine import PowerState
from standby.model.point import RestorePoint
from standby.model.replica import ReplicaState
from standby.road.replica import ReplicaFolder
from standby.road.replica_work import ReplicaWork


class Machines:
    """The replica VMs of a host, in memory."""

    def __init__(self) -> None:
        self.state = PowerState.OFF
        self.calls: list[str] = []

    def power_state(self, folder: ReplicaFolder) -> PowerState:
        return self.state

    def look(self, folders: Sequence[ReplicaFolder]) -> list[tuple[PowerState, tuple[str, ...]]]:
        said = () if self.state is PowerState.OFF else ("it runs",)
        return [(self.state, said) for _ in folders]

    def check_untouched(self, folder: ReplicaFolder) -> None:
        if self.state is not PowerState.OFF:
            raise ReplicaStarted(folder.name, str(folder.path), "it runs")

    def check_off(self, folder: ReplicaFolder) -> None:
        if self.state is not PowerState.OFF:
            raise MachineRunning("dr", folder.name, "it runs")

    def describe(self, folder: ReplicaFolder, point: RestorePoint) -> list[str]:
        self.calls.append(f"describe {point.id}")
        return []

    def start(self, folder: ReplicaFolder) -> list[str]:
        self.calls.append("start")
        self.state = PowerState.RUNNING
        return ["no heartbeat"]

    def stop(self, folder: ReplicaFolder, *, force: bool, timeout_s: float) -> None:
        self.calls.append(f"stop {force}")
        self.state = PowerState.OFF

    def restore(self, folder: ReplicaFolder, point: RestorePoint, *, is_permanent: bool) -> None:
        self.calls.append(f"restore {is_permanent}")


def test_a_failover_there_and_back_drives_the_hosts_vm(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "web")
    first, second = add_point(folder), add_point(folder)
    machines = Machines()
    work = ReplicaWork({"dr": tmp_path}, folder.clock, machines={"dr": machines}.get)
    result = work.failover("web", point=first.id, power_on=True)
    assert machines.calls == [
        f"describe {first.id}",
        "restore False",
        "start",
    ]
    assert result.warnings == ("no heartbeat",)
    assert not (folder.path / "vm.toml").exists()
    assert work.power("web", on=True) is PowerState.RUNNING
    with pytest.raises(MachineRunning):
        work.undo_failover("web")
    assert work.power("web", on=False, force=True) is PowerState.OFF
    machines.calls.clear()
    assert work.undo_failover("web").state is ReplicaState.READY
    assert machines.calls == [f"describe {second.id}"]


def test_a_permanent_failover_makes_the_vm_nobodys_replica(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "web")
    add_point(folder)
    machines = Machines()
    work = ReplicaWork({"dr": tmp_path}, folder.clock, machines={"dr": machines}.get)
    work.failover("web")
    assert work.permanent_failover("web").state is ReplicaState.PERMANENT
    assert machines.calls[-1] == "restore True"
    assert work.power("web", on=True) is PowerState.RUNNING
    assert machines.calls[-1] == "start"
