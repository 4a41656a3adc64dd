"""Disks that are at the target already: seeds, and VMs that are mapped to."""

from __future__ import annotations

import shutil

import pytest

from simulation.sessions import (
    check_as_planned,
    disks_of,
    edit,
    failing,
    grown,
    made,
    planned,
)
from simulation.site import Site, add_disk, at_kill_point
from standby.server.plan import Mode
from standby.units import MiB


@pytest.fixture
def site(tmp_path):
    return made(tmp_path)


# --- seed and map ----------------------------------------------------------------------------


def with_seed(tmp_path, more):
    site = Site(tmp_path / "site")
    site.config.write_text(site.config.read_text() + f"[jobs.job.{more}]\n")
    site.add_machine()
    site.fill()
    return site


@pytest.mark.parametrize("name", ["disk0.vhdx", "disk0/seed.vhdx"])
def test_a_seed_is_updated_in_place_and_only_differences_travel(tmp_path, name):
    site = with_seed(tmp_path, "seed]\nvm1 = true\n#")
    replica = site.folder / "target" / "vm1_replica"
    for number in (0, 1):
        file = replica / name.replace("disk0", f"disk{number}")
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(site.disk(number), file)
    site.change()
    plan = site.plan(scan=True)
    report = site.run()
    assert report.outcome == "done"
    check_as_planned(plan, report)
    disk = disks_of(report)["scsi:0:0"]
    assert disk.mode == Mode.SEED
    assert disk.written == 5 * 4096 + 300 * 1024
    assert planned(plan)["scsi:0:0"].send.value == disk.written
    assert site.check_points() == 1
    site.check_nothing_leaked()
    site.change()
    report = site.run()
    assert disks_of(report)["scsi:0:0"].mode == "incremental"
    assert site.check_points() == 2


@pytest.mark.parametrize(
    ("cut", "is_still_asked_for"),
    [
        ("child created", True),
        ("child created", False),
        ("seed kept", True),
        ("seed kept aside", False),
    ],
)
def test_a_seed_is_used_although_the_source_is_resized_before_the_first_point(
    tmp_path, cut, is_still_asked_for
):
    site = with_seed(tmp_path, "seed]\nvm1 = true\n#")
    replica = site.folder / "target" / "vm1_replica"
    replica.mkdir()
    for number in (0, 1):
        shutil.copy(site.disk(number), replica / f"disk{number}.vhdx")
    with at_kill_point("child created", failing, 0):
        assert site.run().outcome == "failed"
    assert not (replica / "disk0.vhdx").exists()  # adopted
    grown(site, 40 * MiB)
    site.change()
    if not is_still_asked_for:
        edit(site.config, ("vm1 = true", "vm1 = false"))
    if cut != "child created":
        with at_kill_point(cut, failing):
            assert site.run().outcome == "failed"
    disk = disks_of(site.run())["scsi:0:0"]
    assert (disk.mode, disk.written) == ("resume", 5 * 4096 + 300 * 1024)
    assert site.check_points() == 1
    site.check_nothing_leaked()


def test_a_first_transfer_that_was_cut_off_is_used_although_the_source_is_resized(site):
    with at_kill_point("verified", failing, 0):
        assert site.run().outcome == "failed"
    grown(site, 40 * MiB)
    site.change()
    disk = disks_of(site.run())["scsi:0:0"]
    assert (disk.mode, disk.written) == ("resume", 5 * 4096 + 300 * 1024)
    assert site.check_points() == 1
    site.check_nothing_leaked()


def test_a_raw_seed_is_copied_from(tmp_path):
    from standby.disk.convert import convert

    site = with_seed(tmp_path, "seed]\nvm1 = true\n#")
    for number in (0, 1):
        folder = site.folder / "target" / "vm1_replica" / f"disk{number}"
        folder.mkdir(parents=True)
        convert(site.disk(number), folder / "seed.raw", "raw")
    site.change()
    report = site.run()
    assert report.machines[0].outcome == "done", report.machines[0].error
    assert disks_of(report)["scsi:0:0"].written == 5 * 4096 + 300 * 1024
    assert site.check_points() == 1


def test_a_seed_that_is_not_there_is_named(tmp_path):
    site = with_seed(tmp_path, "seed]\nvm1 = true\n#")
    report = site.run()
    assert report.outcome == "failed"
    assert "disk0.vhdx nor disk0/seed.vhdx is here" in report.machines[0].error


def test_a_disk_added_later_needs_no_seed(tmp_path):
    site = with_seed(tmp_path, "seed]\nvm1 = true\n#")
    replica = site.folder / "target" / "vm1_replica"
    replica.mkdir()
    for number in (0, 1):
        shutil.copy(site.disk(number), replica / f"disk{number}.vhdx")
    assert site.run().outcome == "done"
    add_disk(site, 4 * MiB, "scsi:0:5")
    report = site.run()
    assert disks_of(report)["scsi:0:5"].mode == "full"
    assert site.check_points() == 2


def test_a_mapped_vm_is_the_first_point_and_the_synced_one_the_second(tmp_path):
    site = with_seed(tmp_path, 'map]\nvm1 = "old"\n#')
    shutil.copytree(site.folder / "source" / "vm1", site.folder / "target" / "old")
    found = site.content("vm1")
    site.change()
    plan = site.plan(scan=True)
    assert planned(plan)["scsi:0:0"].mode is Mode.INCREMENTAL
    report = site.run()
    assert report.machines[0].outcome == "done", report.machines[0].error
    disk = disks_of(report)["scsi:0:0"]
    assert disk.mode == "incremental"
    assert disk.written == 5 * 4096 + 300 * 1024 == planned(plan)["scsi:0:0"].send.value
    first = site.replica().points()[0]
    site.points[f"vm1_replica/{first.id}"] = found
    assert site.check_points() == 2
    site.check_nothing_leaked()
    site.change()
    assert site.run().outcome == "done"
    assert site.check_points() == 3
