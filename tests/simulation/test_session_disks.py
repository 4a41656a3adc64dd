"""Disks that come, go, grow, are replaced or left out: which chain they go on with."""

from __future__ import annotations

import shutil

import pytest

from simulation.sessions import (
    check_as_planned,
    disks_of,
    drop_disk,
    edit,
    failing,
    grown,
    made,
    planned,
    vm_toml,
)
from simulation.site import Site, add_disk, at_kill_point
from standby.disk import open_disk, vhdx
from standby.units import MiB


@pytest.fixture
def site(tmp_path):
    return made(tmp_path)


# --- disks that come, go and change ----------------------------------------------------------


def test_an_added_disk_is_full_while_the_others_go_on(site):
    site.run()
    add_disk(site, 4 * MiB, "scsi:0:5")
    site.write(0, MiB, 2)
    site.change()
    report = site.run()
    assert {place: disk.mode for place, disk in disks_of(report).items()} == {
        "scsi:0:0": "incremental",
        "scsi:0:1": "incremental",
        "scsi:0:5": "full",
    }
    assert report.outcome == "done"  # a new disk is no alarm
    assert site.check_points() == 2


def test_a_removed_disk_stays_in_older_points(site):
    site.run()
    drop_disk(site, 1)
    report = site.run()
    assert report.outcome == "warnings"
    assert "gone from the VM" in report.machines[0].warnings[0]
    folder = site.replica()
    assert [len(point.disks) for point in folder.points()] == [2, 1]
    assert site.check_points() == 2


@pytest.mark.parametrize("size", [40 * MiB, 10 * MiB])
def test_a_resized_disk_starts_a_new_chain_from_what_the_target_holds(site, size):
    site.run()
    site.change()
    if size > 24 * MiB:
        disk = vhdx.open_vhdx(site.disk(), writable=True)
        disk.grow(size)
        disk.close()
        site.write(size - MiB, MiB)
    else:
        rewritten = site.disk().with_suffix(".new")
        source = vhdx.open_vhdx(site.disk())
        target = vhdx.create(rewritten, size)
        buffer = bytearray(size)
        source.read_into(0, buffer)
        target.write(0, buffer)
        target.close()
        source.close()
        rewritten.replace(site.disk())
    report = site.run()
    disk = disks_of(report)["scsi:0:0"]
    assert disk.mode == "new chain"
    assert ("grew" if size > 24 * MiB else "shrank") in disk.reason
    # What the target held was copied there: only the change travelled.
    assert disk.written < 3 * MiB
    site.change() if size > 24 * MiB else site.write(0, 4096)
    assert site.run().outcome == "done"
    assert site.check_points() == 3
    site.check_nothing_leaked()


def test_retention_takes_an_old_chain_whole(tmp_path):
    site = Site(tmp_path / "site", restore_points=2)
    site.add_machine()
    site.fill()
    site.run()
    disk = vhdx.open_vhdx(site.disk(), writable=True)
    disk.grow(30 * MiB)
    disk.close()
    for _ in range(3):
        site.change()
        assert site.run().outcome in ("done", "warnings")
    assert site.check_points() == 2
    files = {path.name for path in (site.replica().path / "disk0").glob("*.vhdx")}
    assert len(files) == 3  # the new chain's base, a child, the ready layer
    site.check_nothing_leaked()


def test_a_replaced_disk_is_another_disk_and_an_alarm(site):
    site.run()
    site.run()
    drop_disk(site, 0)
    site.disk().unlink()
    add_disk(site, 12 * MiB, "scsi:0:0", name="disk9.vhdx")
    (site.folder / "source/vm1/disk9.vhdx").replace(site.folder / "source/vm1/disk7.vhdx")
    edit(vm_toml(site), ('file = "disk9.vhdx"', 'file = "disk7.vhdx"'))
    site.write(0, MiB, 7)
    report = site.run()
    disk = disks_of(report)["scsi:0:0"]
    assert (disk.mode, disk.disk_id) == ("new chain", "disk2")
    assert "another disk is at this place" in report.machines[0].alarms[0]
    assert report.outcome == "warnings"
    assert site.check_points() == 3
    with site.server() as server:
        assert [alarm.kind for alarm in server.store.alarms()] == ["full"]


def test_a_disk_replaced_by_a_copy_of_itself_travels_as_what_differs(site):
    site.run()
    before = open_disk(site.disk())
    content = bytearray(24 * MiB)
    before.read_into(0, content)
    before.close()
    drop_disk(site, 0)
    site.disk().unlink()
    add_disk(site, 24 * MiB, "scsi:0:0", name="disk9.vhdx")
    after = open_disk(site.disk(9), writable=True)
    after.write(0, content)
    after.close()
    site.write(MiB, 4096, 9)
    assert disks_of(site.plan(scan=True))["scsi:0:0"].send.value < MiB
    disk = disks_of(site.run())["scsi:0:0"]
    assert (disk.mode, disk.disk_id) == ("new chain", "disk2")
    assert disk.sent < MiB
    assert site.check_points() == 2


def test_an_excluded_disk_is_neither_read_nor_kept(tmp_path):
    site = Site(tmp_path / "site", more='exclude_disks = ["vm1:scsi:0:1"]\n')
    site.add_machine()
    site.fill()
    report = site.run()
    assert disks_of(report)["scsi:0:1"].mode == "excluded"
    assert disks_of(report)["scsi:0:1"].read == 0
    assert site.check_points() == 1
    edit(site.config, ('exclude_disks = ["vm1:scsi:0:1"]', ""))
    report = site.run()
    assert disks_of(report)["scsi:0:1"].mode == "full"
    edit(site.config, ("restore_points = 7", 'restore_points = 7\nexclude_disks = ["*:scsi:0:0"]'))
    site.change()
    assert site.run().outcome == "done"
    assert site.check_points() == 3


EXCLUDING = 'exclude_disks = ["vm1:scsi:0:1"]'


def excluding(site, is_excluded):
    if is_excluded:
        edit(site.config, ("restore_points", f"{EXCLUDING}\nrestore_points"))
    else:
        edit(site.config, (f"{EXCLUDING}\n", ""))


@pytest.mark.parametrize("how", ["excluded", "removed", "repository lost"])
def test_a_disk_that_was_left_out_goes_on_from_the_newest_point_that_has_it(tmp_path, how):
    site = Site(tmp_path / "site", restore_points=4)
    site.add_machine()
    site.fill()
    site.run()
    last = site.run().machines[0].point
    toml = vm_toml(site).read_text()
    for _ in range(2):
        drop_disk(site, 1) if how == "removed" else excluding(site, True)
        site.change()
        assert [disk.place for disk in site.run().machines[0].disks if disk.written] == ["scsi:0:0"]
        vm_toml(site).write_text(toml) if how == "removed" else excluding(site, False)
    if how == "repository lost":
        shutil.rmtree(site.folder / "repository")
    plan = site.plan(scan=True)
    report = site.run()
    check_as_planned(plan, report)
    disk = disks_of(report)["scsi:0:1"]
    # 6 MiB came and went with each of the two changes; 2 MiB are there since the first session.
    assert (disk.mode, disk.written) == ("incremental", 4096)
    assert planned(plan)["scsi:0:1"].send.value == 4096
    assert f"the newest that has the disk is {last}" in disk.reason
    newest = site.replica().points()[-1]
    assert [len(disk.chain) for disk in newest.disks][1] in (2, 3)
    # Retention merges across the points without the disk.
    for _ in range(3 if how == "excluded" else 1):
        assert site.check_points() == 4
        site.change()
        assert site.run().outcome == "done"
    assert site.check_points() == 4
    site.check_nothing_leaked()


def test_a_disk_that_was_left_out_and_resized_is_copied_from_what_the_target_holds(site):
    site.run()
    excluding(site, True)
    site.run()
    excluding(site, False)
    grown(site, 12 * MiB, 1)
    site.change()
    plan = site.plan(scan=True)
    report = site.run()
    check_as_planned(plan, report)
    disk = disks_of(report)["scsi:0:1"]
    assert (disk.mode, disk.written) == ("new chain", 4096)
    assert site.check_points() == 3
    site.check_nothing_leaked()


def test_a_disk_left_out_is_gone_on_with_after_a_cut(site):
    site.run()
    excluding(site, True)
    site.run()
    excluding(site, False)
    site.change()
    with at_kill_point("verified", failing, 0):
        assert site.run().outcome == "failed"
    disk = disks_of(site.run())["scsi:0:1"]
    assert (disk.mode, disk.written) == ("resume", 0)
    assert site.check_points() == 3
    site.check_nothing_leaked()


def test_a_disk_left_out_until_its_last_point_went_is_full_again(tmp_path):
    site = Site(tmp_path / "site", restore_points=2)
    site.add_machine()
    site.fill()
    site.run()
    excluding(site, True)
    site.run()
    site.run()
    assert list((site.replica().path / "disk1").glob("*.vhdx")) == []
    excluding(site, False)
    report = site.run()
    assert disks_of(report)["scsi:0:1"].mode == "full"
    assert site.check_points() == 2
