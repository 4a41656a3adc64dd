"""What becomes of a VM's disks between sessions: each restore point holds what the guest had, and
the report says why a disk was read whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperv.sites import Site, only
from hyperv.world.machines import Drive
from hyperv.world.machines import Machine as WorldMachine
from hyperv.world.tracking import Tracker
from standby.disk import vhdx
from standby.model.report import MachineReport
from standby.units import KiB, MiB

DAY = 86_400


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    with made.host:
        yield made


@pytest.fixture
def web(site: Site) -> WorldMachine:
    """A VM of which there is a restore point."""
    web = site.world.add_machine("web", "hv1", [16 * MiB])
    site.world.write(web, MiB, b"boot" * KiB)
    assert only(site.session()).disks[0].mode == "full"
    site.world.settle()
    return web


def drive_and_file(web: WorldMachine) -> tuple[Drive, Path]:
    (drive,) = web.disks()
    assert drive.path is not None
    return drive, drive.path


def remade(site: Site, web: WorldMachine, size: int, disk_id: str = "") -> None:
    """The disk is another file of that size and id with the same content, under the same name."""
    drive, path = drive_and_file(web)
    content = site.world.content(path)
    same = vhdx.read_info(path).page83
    path.unlink()
    with vhdx.create(path, size, page83=disk_id or same) as disk:
        disk.write(0, content[:size])
    drive.tracker = Tracker(size)


def whole(site: Site, web: WorldMachine) -> MachineReport:
    """The next session reads the whole disk, and the one behind it trusts the host again."""
    report = only(site.session())
    assert "change tracker says" not in report.disks[0].reason
    site.world.settle()
    site.world.write(web, 5 * MiB, b"more" * KiB)
    after = only(site.session())
    assert after.disks[0].changed == 4 * KiB
    assert "change tracker says" in after.disks[0].reason
    site.world.settle()
    assert site.world.depth(web) == 1
    assert web.checkpoints == []
    return report


def test_every_30_days_a_tracked_disk_is_read_whole(site: Site, web: WorldMachine) -> None:
    for day in range(1, 5):
        site.world.clock.advance(7 * DAY)
        site.world.write(web, day * MiB, b"week" * KiB)
        assert "change tracker says" in only(site.session()).disks[0].reason
    site.world.clock.advance(7 * DAY)
    report = whole(site, web)
    assert "all of the disk is read every 30 days" in report.disks[0].reason
    assert site.check_points() == 7


def test_a_disk_that_was_made_larger_begins_a_new_chain(site: Site, web: WorldMachine) -> None:
    remade(site, web, 24 * MiB)
    report = whole(site, web)
    assert report.disks[0].mode == "new chain"
    assert site.point().disks[0].virtual_size == 24 * MiB
    assert site.check_points() == 3


def test_a_disk_of_another_id_is_not_taken_for_the_one_tracked(
    site: Site, web: WorldMachine
) -> None:
    remade(site, web, 16 * MiB, "0b5d2f6e-3a0c-4d51-9c3a-2f4a1d7e9b10")
    whole(site, web)
    assert site.check_points() == 3


def test_a_disk_that_was_moved_is_compared_whole(site: Site, web: WorldMachine) -> None:
    drive, path = drive_and_file(web)
    drive.path = path.rename(path.with_name("moved.vhdx"))
    site.world.write(web, 3 * MiB, b"more" * KiB)
    (disk,) = only(site.session()).disks
    assert (disk.mode, disk.changed) == ("incremental", 4 * KiB)
    assert "moved.vhdx" in disk.reason
    assert site.check_points() == 2
