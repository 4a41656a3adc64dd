"""Jobs from a simulated Hyper-V host to a folder host, through the backup server: every point holds
what the guest had when its checkpoint was taken."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperv.sites import Site, only
from hyperv.world.world import Fault
from simulation.site import at_kill_point
from standby.model.report import MachineReport, SessionReport
from standby.server.growth_watch import EVERY_S, GrowthWatch
from standby.units import KiB, MiB


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    with made.host:
        yield made


def test_a_vm_is_replicated_whole_and_then_by_what_its_host_tracked(site: Site) -> None:
    web = site.world.add_machine("web", "hv1", [16 * MiB, 8 * MiB])
    site.world.write(web, 0, b"boot" * KiB)
    site.world.write(web, 5 * MiB, b"data" * 64 * KiB)
    site.world.write(web, 2 * MiB, b"more" * KiB, disk=1)
    first = only(site.session())
    assert [disk.mode for disk in first.disks] == ["full", "full"]
    site.world.write(web, 9 * MiB, b"next" * KiB)
    second = only(site.session())
    assert [disk.mode for disk in second.disks] == ["incremental", "incremental"]
    assert [disk.changed for disk in second.disks] == [4 * KiB, 0]
    assert "tracker" in second.disks[0].reason
    assert site.check_points() == 2
    site.world.settle()
    assert site.world.depth(web) == 1
    assert len(web.points) == 1
    assert web.checkpoints == []


def test_what_a_checkpoint_lacks_is_said_in_plan_and_report(site: Site) -> None:
    web = site.world.add_machine("web", "hv1", [8 * MiB])
    (planned,) = site.plan().machines
    assert planned.warnings == ()
    web.faults.vss_fails = True
    for told in (site.plan().machines[0].warnings, only(site.session()).warnings):
        (text,) = told
        assert text.startswith("the checkpoint is crash-consistent only: ")
        assert "VSS" in text
    assert site.point().consistency == "crash"


def test_guests_logs_are_cut_on_server_2016_and_that_is_said(tmp_path: Path) -> None:
    site = Site(tmp_path, version=2016)
    with site.host:
        site.world.add_machine("web", "hv1", [8 * MiB])
        for told in (site.plan().machines[0].warnings, only(site.session()).warnings):
            (text,) = told
            assert "no checkpoints of type copy (Server 2016)" in text
        assert site.point().consistency == "application"


def test_a_tracker_that_lies_is_found_by_samples_and_not_believed_again(site: Site) -> None:
    web = site.world.add_machine("web", "hv1", [16 * MiB])
    site.world.write(web, 0, b"boot" * KiB)
    only(site.session())
    tracker = web.disks()[0].tracker
    assert tracker is not None
    tracker.hidden = [(0, 16 * MiB)]
    site.world.write(web, 6 * MiB, b"lost" * KiB)
    caught = only(site.session())
    assert any("called unchanged what had changed on disk scsi:0:0" in it for it in caught.alarms)
    assert "tracker lied on 2026-03-0" in caught.disks[0].reason
    assert caught.disks[0].changed == 4 * KiB
    site.world.write(web, 7 * MiB, b"also" * KiB)
    again = only(site.session())
    assert again.alarms == []
    assert "tracker lied" in again.disks[0].reason
    tracker.hidden = []
    with site.server() as server:
        assert server.acknowledge("nightly") == 1
    site.world.write(web, 8 * MiB, b"true" * KiB)
    believed = only(site.session())
    assert "change tracker says" in believed.disks[0].reason
    assert site.check_points() == 4


def failed(report: SessionReport) -> MachineReport:
    (machine,) = report.machines
    assert machine.outcome in ("failed", "interrupted"), machine
    return machine


def test_a_checkpoint_past_its_limit_of_growth_is_released(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = site.world.add_machine("web", "hv1", [16 * MiB])
    site.write_config('checkpoint_max_growth = "1 MiB"')
    reached = GrowthWatch.reached

    def reached_after_a_look(watch: GrowthWatch, machine_id: str, growth_max: int) -> str:
        site.world.clock.advance(EVERY_S)
        reached(watch, machine_id, growth_max)
        watch.settle()
        return reached(watch, machine_id, growth_max)

    monkeypatch.setattr(GrowthWatch, "reached", reached_after_a_look)
    ended = failed(site.session())
    assert ended.outcome == "interrupted"
    assert "checkpoint_max_growth is 1048576" in ended.error
    assert web.checkpoints == []
    site.write_config()
    only(site.session())
    assert site.check_points() == 1


def test_a_foreign_backup_is_left_alone_and_the_next_session_goes_on(site: Site) -> None:
    web = site.world.add_machine("web", "hv1", [16 * MiB])
    foreign = site.world.recovery_snapshot(web)
    refused = failed(site.session())
    assert "backup" in refused.error
    assert web.checkpoints == [foreign]
    web.checkpoints.remove(foreign)
    only(site.session())
    assert site.check_points() == 1


def test_a_checkpoint_that_cannot_be_made_leaves_nothing(site: Site) -> None:
    web = site.world.add_machine("web", "hv1", [16 * MiB])
    method = "CreateSnapshot"
    site.world.faults.append(Fault(method, vm="web", job=(10, 32768, "no VSS"), times=4))
    refused = failed(site.session())
    assert "web" in refused.error
    assert web.checkpoints == []
    site.world.faults.clear()
    only(site.session())
    assert site.check_points() == 1


def test_disks_that_no_proxy_sees_are_said_with_the_paths_to_write(site: Site) -> None:
    web = site.world.add_machine("web", "hv1", [16 * MiB])
    text = site.config.read_text().replace("C:\\Hyper-V", "D:\\VMs")
    site.config.write_text(text)
    refused = failed(site.session())
    assert "no source proxy can take" in refused.error
    assert "paths = { prod = { 'C:\\Hyper-V\\web' = \"/mnt/prod\" } }" in refused.error
    assert web.checkpoints == []
    (machine,) = site.plan().machines
    assert machine.action == "conflict"
    assert "'C:\\Hyper-V\\web'" in machine.reason


def test_a_server_that_dies_leaves_a_checkpoint_that_the_next_one_releases(site: Site) -> None:
    web = site.world.add_machine("web", "hv1", [16 * MiB])

    def die() -> None:
        raise KeyboardInterrupt

    for name in ("checkpoint made", "released"):
        with at_kill_point(name, die), contextlib.suppress(KeyboardInterrupt):
            site.session()
        only(site.session())
        site.world.settle()
        assert web.checkpoints == []
        assert site.world.depth(web) == 1


def test_the_plan_says_what_is_tracked_and_the_point_has_the_shape(site: Site) -> None:
    web = site.world.add_machine("web", "hv1", [16 * MiB])
    only(site.session())
    site.world.write(web, 4 * MiB, b"new." * KiB)
    (planned,) = site.plan().machines
    assert planned.disks[0].mode == "incremental"
    assert "change tracker" in planned.disks[0].reason
    assert sum(item.length for item in planned.disks[0].candidates or ()) == 32 * KiB
    site.world.settle()
    assert web.checkpoints == []
    assert site.point().consistency == "application"
    assert site.point().state_files
    assert site.point().disks[0].tracker_id


def test_a_path_that_leads_to_another_disk_is_refused_before_a_byte_is_read(site: Site) -> None:
    web = site.world.add_machine("web", "hv1", [16 * MiB])
    other = site.world.add_machine("other", "hv1", [16 * MiB])
    site.world.turn_off(other)
    swapped = site.folder / "swapped"
    shutil.copytree(site.storage, swapped)
    shutil.copy(other.disks()[0].path or "", swapped / "web" / "web-0.vhdx")
    kept, site.storage = site.storage, swapped
    site.write_config()
    with site.server() as server:
        plans = [server.plan("nightly"), server.plan("nightly", scan=True)]
    for plan in plans:
        (planned,) = (item for item in plan.machines if item.machine == "web")
        assert planned.action == "conflict"
        assert "is not the disk that the host names" in planned.reason
    report = site.session()
    (wrong,) = (item for item in report.machines if item.machine == "web")
    assert wrong.outcome == "failed"
    assert "is not the disk that the host names" in wrong.error
    assert web.checkpoints == []
    site.storage = kept
    site.write_config()
    assert {item.outcome for item in site.session().machines} == {"done"}
    assert site.check_points() == 1
