"""Jobs from one simulated Hyper-V host to another, through the backup server: replicate, fail over,
let the guest write, undo, replicate again; every byte is compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperv.pairs import HostPair, content
from hyperv.world.machines import OFF, RUNNING
from standby import killpoints
from standby.disk import vhdx
from standby.errors import MachineRunning, ReplicaStarted
from standby.model.machine import PowerState
from standby.model.replica import ReplicaState
from standby.units import KiB, MiB


@pytest.fixture
def site(tmp_path: Path) -> HostPair:
    return HostPair(tmp_path, ["hv1"], ["hv2"])


def test_replicated_failed_over_written_and_undone(site: HostPair) -> None:
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


def test_a_replica_vm_that_is_started_during_a_session_keeps_its_layers(site: HostPair) -> None:
    web = site.world.add_machine("web", "hv1", [8 * MiB])
    with site.server() as server:
        site.cycle(server)
        (layer,) = site.folder.path.rglob("ready.vhdx")
        before = layer.stat().st_ino
        site.world.write(web, MiB, b"1" * 64 * KiB)

        def start_by_hand(name: str) -> None:
            if name == "verified":
                site.world.start(site.replica)

        killpoints.install(start_by_hand)
        try:
            report = site.cycle(server)
        finally:
            killpoints.install(None)
        assert len(site.folder.points()) == 2
        assert any("its host says that its VM is running" in text for text in report.warnings)
        assert layer.stat().st_ino == before


def test_a_replica_vm_that_was_started_by_hand_is_noticed_before_anything_is_sent(
    site: HostPair,
) -> None:
    web = site.world.add_machine("web", "hv1", [8 * MiB])
    with site.server() as server:
        site.cycle(server)
        site.world.start(site.replica)
        site.world.write(web, MiB, b"1" * 64 * KiB)
        (report,) = server.start("nightly").machines
        assert report.outcome == "failed"
        assert "its host says that its VM is running" in report.error
        assert "--adopt" in report.error
        assert "--drop-writes" in report.error
        assert [disk.sent for disk in report.disks] == []
        assert len(site.folder.points()) == 1
        shown = server.replicas.show("web_replica")
        assert shown.power is PowerState.RUNNING
        assert "its host says that its VM is running" in shown.findings
        (listed,) = server.replicas.all()
        assert (listed.power, listed.findings) == (shown.power, shown.findings)

        site.world.turn_off(web, OFF)
        with pytest.raises(ReplicaStarted):
            server.replicas.failover("web_replica")
        site.world.write(site.replica, 0, b"by hand" * 512)
        kept = content(site.replica)
        assert site.folder.record().state is ReplicaState.READY
        server.replicas.failover("web_replica", adopt=True)
        assert site.replica.state == RUNNING
        assert site.replica.start_action == web.start_action
        assert content(site.replica) == kept
        assert site.folder.record().state is ReplicaState.FAILOVER


def test_checkpoints_made_of_a_replica_vm_by_hand_stop_its_sessions(site: HostPair) -> None:
    site.world.add_machine("web", "hv1", [8 * MiB])
    with site.server() as server:
        site.cycle(server)
        site.world.user_checkpoint(site.replica, "mine")
        (report,) = server.start("nightly").machines
        assert report.outcome == "failed"
        assert "its VM has checkpoints (mine)" in report.error
        findings = server.replicas.show("web_replica").findings
        assert "somebody made the checkpoint mine" in findings


def test_a_disk_that_was_taken_away_by_hand_is_shown_and_put_back(site: HostPair) -> None:
    site.world.add_machine("web", "hv1", [8 * MiB])
    with site.server() as server:
        site.cycle(server)
        assert server.replicas.show("web_replica").findings == ()
        (drive,) = site.replica.disks()
        path, drive.path = drive.path, None
        (finding,) = server.replicas.show("web_replica").findings
        assert "its disk at scsi:0:0 was taken away" in finding
        site.cycle(server)
        assert [drive.path for drive in site.replica.disks()] == [path]
        assert server.replicas.show("web_replica").findings == ()


def test_a_permanent_failover_makes_it_a_vm_of_its_own(site: HostPair) -> None:
    web = site.world.add_machine("web", "hv1", [8 * MiB])
    with site.server() as server:
        site.cycle(server)
        site.world.turn_off(web, OFF)
        server.replicas.failover("web_replica")
        server.replicas.permanent_failover("web_replica")
        assert site.replica.notes == ""
        assert site.replica.start_action == web.start_action
