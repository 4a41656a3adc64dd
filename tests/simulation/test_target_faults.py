"""What a target or a repository lost, misread, or has no room for: noticed, named, gone on with."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

import judging
from simulation.faults import MARK, only, open_alarms, write_mark
from simulation.sessions import made
from simulation.site import at_kill_point
from standby.disk import open_disk
from standby.files import positioned
from standby.repository.database import FILE_NAME
from standby.units import MiB


@pytest.fixture
def site(tmp_path):
    return made(tmp_path)


# --- metadata lost, damaged, stale -----------------------------------------------------------


def incremental_after_all(site):
    """The next session brings the change alone, compared with the target's digests."""
    site.change()
    report = site.run()
    machine = only(report)
    assert machine.outcome == "done", machine.error
    assert {disk.mode for disk in machine.disks} <= {"incremental", "resume"}
    assert machine.disks[0].written <= 5 * 4096 + 300 * 1024
    assert site.check_points() == len(site.points)
    site.check_nothing_leaked()
    site.change()
    report = site.run()
    assert report.outcome == "done"
    assert "repository's digests" in only(report).disks[0].reason
    return machine


def test_a_lost_repository_is_rebuilt_from_the_targets_digests(site):
    site.run()
    shutil.rmtree(site.folder / "repository")
    machine = incremental_after_all(site)
    assert any("repository has no digests" in text for text in machine.warnings)


def test_an_older_copy_of_the_repository_is_noticed(site):
    site.run()
    shutil.copytree(site.folder / "repository", site.folder / "copy")
    site.change()
    site.run()
    shutil.rmtree(site.folder / "repository")
    (site.folder / "copy").rename(site.folder / "repository")
    machine = incremental_after_all(site)
    assert any("repository has other digests" in text for text in machine.warnings)


def damage_leaves(path):
    """Other leaves in every page, as a bad disk would have them."""
    database = sqlite3.connect(path)
    database.execute("UPDATE leaves SET data = zeroblob(32768)")
    database.commit()
    database.close()


def damage_header(path):
    path.write_bytes(os.urandom(100) + path.read_bytes()[100:])


def damage_middle(path):
    data = bytearray(path.read_bytes())
    for offset in range(4096, len(data), 4096):
        data[offset : offset + 64] = bytes(range(64))
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [damage_leaves, damage_header, damage_middle])
def test_a_damaged_repository_costs_a_comparison_and_an_alarm(site, damage):
    site.run()
    damage(site.folder / "repository" / FILE_NAME)
    machine = incremental_after_all(site)
    assert any("damaged" in text for text in machine.alarms)
    assert ("repository", "vm1") in open_alarms(site)


# --- a target that lost something ------------------------------------------------------------


@pytest.mark.parametrize("forgetful", [False, True], ids=["", "state database lost"])
def test_a_missing_replica_is_not_made_anew_until_somebody_says_so(site, forgetful):
    site.run()
    site.run()
    shutil.rmtree(site.replica().path)
    if forgetful:
        for path in site.folder.glob("standby-state.sqlite*"):
            path.unlink()
    plan = site.plan()
    assert plan.machines[0].action == "skip"
    report = site.run()
    assert report.outcome == "failed"
    assert "Nothing was changed" in only(report).error
    assert str(site.folder / "target") in only(report).error
    assert list((site.folder / "target").iterdir()) == []
    site.points.clear()
    report = site.run(accept_loss=True)
    assert only(report).outcome == "done"
    if not forgetful:
        assert "lost the 2 restore points" in only(report).alarms[0]
    assert site.check_points() == 1
    assert site.run().outcome == "done"


def test_a_target_put_back_to_an_older_state_is_noticed(site):
    site.run()
    shutil.copytree(site.replica().path, site.folder / "copy")
    site.change()
    site.run()
    shutil.rmtree(site.replica().path)
    (site.folder / "copy").rename(site.replica().path)
    report = site.run()
    assert report.outcome == "failed"
    assert "was known" in only(report).error or "were known" in only(report).error
    report = site.run(accept_loss=True)
    assert only(report).outcome == "done"
    assert only(report).disks[0].mode == "incremental"
    assert site.check_points() == 2
    assert site.run().outcome == "done"


def test_a_point_touched_from_outside_is_refused_by_name(site):
    site.run()
    with open_disk(site.replica().path / "disk0" / "base.vhdx", writable=True) as disk:
        disk.write(0, bytes(4096))
    report = site.run()
    assert report.outcome == "failed"
    assert "base.vhdx" in only(report).error


# --- storage that lies -----------------------------------------------------------------------


def flip_in_partial(site):
    """Change one byte of what was just written, behind everybody's back."""

    def flip():
        (path,) = (site.replica().path / "disk0").glob("*.partial.vhdx")
        data = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(data.index(MARK))
            file.write(b"W")

    return flip


@pytest.mark.parametrize("verify_writes", ["cache", "device"])
def test_a_byte_that_reads_back_wrong_is_resent_once(tmp_path, verify_writes):
    site = made(tmp_path, more=f'verify_writes = "{verify_writes}"\n')
    site.run()
    write_mark(site)
    with at_kill_point("extent log commit: disk flushed", flip_in_partial(site)):
        report = site.run()
    machine = only(report)
    assert machine.outcome == "done", machine.error
    assert machine.disks[0].resent_blocks == 1
    assert "read back wrong" in machine.alarms[0]
    assert report.outcome == "warnings"
    assert ("read-back", "vm1") in open_alarms(site)
    assert site.check_points() == 2


def test_a_byte_that_reads_back_wrong_twice_makes_no_point(site):
    site.run()
    write_mark(site)
    with at_kill_point("extent log commit: disk flushed", flip_in_partial(site), count=0):
        report = site.run()
    machine = only(report)
    assert machine.outcome == "failed"
    assert "read back wrong twice" in machine.error
    assert site.check_points() == 1
    assert only(site.run()).outcome == "done"
    assert site.check_points() == 2


# --- no room ---------------------------------------------------------------------------------


def test_a_full_target_keeps_what_it_has_and_goes_on_when_there_is_room(site, monkeypatch):
    site.run()
    site.write(0, 4 * MiB)
    site.write(0, MiB, 1)
    room = 2 * MiB
    original = positioned._pwrite

    def bounded(fd, view, offset):
        nonlocal room
        if ".partial.vhdx" in str(Path(f"/proc/self/fd/{fd}").readlink()):
            room -= len(view)
            if room < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        return original(fd, view, offset)

    monkeypatch.setattr(positioned, "_pwrite", bounded)
    report = site.run()
    assert only(report).outcome == "failed"
    assert "no space left" in only(report).error
    assert site.check_points() == 1
    room = 1 << 40
    assert only(site.run()).outcome == "done"
    assert site.check_points() == 2
    site.check_nothing_leaked()


@pytest.fixture
def small_target(tmp_path):
    """A target on a file system of 24 MiB; skipped where this user may not mount one."""
    site = made(tmp_path)
    target = site.folder / "target"
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        judging.missing(f"the right to mount a file system ({done.stderr.strip()})")
    yield site
    subprocess.run(["umount", "-l", str(target)], check=True)


def test_a_target_that_really_is_full(small_target):
    site = small_target
    assert site.run().outcome == "done"
    filler = site.folder / "target" / "filler"
    free = shutil.disk_usage(filler.parent).free
    filler.write_bytes(bytes(free - MiB))
    site.write(0, 4 * MiB)
    report = site.run()
    assert only(report).outcome == "failed"
    assert "no space left" in only(report).error
    filler.unlink()
    assert only(site.run()).outcome == "done"
    assert site.check_points() == 2
    site.check_nothing_leaked()


def test_a_first_full_that_cannot_fit_is_refused_before_anything_is_sent(small_target):
    site = small_target
    site.write(8 * MiB, 12 * MiB)
    site.write(0, 8 * MiB, 1)
    report = site.run()
    assert "no space left" in only(report).error
    assert not list(site.replica().path.glob("*/*.vhdx"))
