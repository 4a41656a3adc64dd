"""Damage that is found by reading every byte, and healed from whoever still has the piece."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3

import pytest

from simulation.faults import MARK, only, write_mark
from simulation.sessions import made
from simulation.several import SeveralSite
from standby.files import File
from standby.model.replica import ReplicaState
from standby.repository.database import FILE_NAME
from standby.units import MiB


@pytest.fixture
def site(tmp_path):
    return made(tmp_path)


# --- verify and repair -----------------------------------------------------------------------


def damage(path, marker):
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(data.index(marker))
        file.write(b"rot!")


def test_a_damaged_piece_is_repaired_in_place_from_the_source(site):
    write_mark(site)
    site.run()
    site.change()
    site.run()
    damage(site.replica().path / "disk0" / "base.vhdx", MARK)
    with site.server() as server:
        verdicts = server.replicas.verify("vm1_replica")
        assert [verdict.is_ok for verdict in verdicts] == [False, False]
        assert site.replica().record().state is ReplicaState.DAMAGED
        assert only(server.start("job")).outcome == "skipped"
        reports = server.replicas.repair("vm1_replica", verdicts)
        assert sum(report.healed_bytes for report in reports) >= 4096
        verdicts = server.replicas.verify("vm1_replica")
        assert all(verdict.is_ok for verdict in verdicts)
    assert site.replica().record().state is ReplicaState.READY
    site.change()
    assert only(site.run()).outcome == "done"
    assert site.check_points() == 3


def test_a_piece_that_nobody_has_any_more_is_named(site):
    write_mark(site)
    site.run()
    site.write(4 * MiB, 4096)  # the source has moved on
    site.run()
    damage(site.replica().path / "disk0" / "base.vhdx", MARK)
    with site.server() as server:
        verdicts = server.replicas.verify("vm1_replica")
        assert [verdict.is_ok for verdict in verdicts] == [False, True]
        (report,) = server.replicas.repair("vm1_replica", verdicts)
        assert report.healed_bytes == 0
        (extent,) = report.missing["disk0"]
        assert (extent.offset, extent.length) == (4 * MiB, 4096)
        assert not all(verdict.is_ok for verdict in server.replicas.verify("vm1_replica"))
    assert site.replica().record().state is ReplicaState.DAMAGED
    with site.server() as server:  # the intact point is there for the worst day
        result = server.replicas.failover("vm1_replica")
        assert result.point.id == verdicts[1].point_id


def test_a_piece_is_repaired_from_another_replica_of_the_vm(tmp_path):
    more = """
[hosts.third]
kind = "folder"
path = "third"
[jobs.other]
source = "source"
target = "third"
machines = ["*"]
"""
    site = made(tmp_path, more=more)
    write_mark(site)
    site.run()
    with site.server() as server:
        assert server.start("other").outcome == "done"
        site.write(4 * MiB, 4096)  # the source has moved on
        damage(site.replica().path / "disk0" / "base.vhdx", MARK)
        name = str(site.replica().path)
        verdicts = server.replicas.verify(name)
        (report,) = server.replicas.repair(name, verdicts)
        assert report.is_complete
        assert all(verdict.is_ok for verdict in server.replicas.verify(name))


# --- commit records ---------------------------------------------------------------------------


def test_a_flipped_byte_of_a_commit_record_costs_no_point(site):
    site.run()
    for path in site.replica().points_path.glob("*.copy"):
        path.unlink()  # a replica of before
    for _ in range(2):
        site.change()
        assert only(site.run()).outcome == "done"
    points = site.replica().points()
    assert all(site.replica().copy_path(point.id).exists() for point in points)
    spoil(site.replica().point_path(points[0].id), 300)
    site.change()
    machine = only(site.run())
    assert machine.outcome == "failed"
    assert "See `standby replica verify vm1_replica`" in machine.error
    with site.server() as server:
        repaired(server.replicas, 0)
    assert only(site.run()).outcome == "done"
    assert site.check_points() == 4
    site.check_nothing_leaked()


def repaired(shelf, which):
    """The point's lost record comes back."""
    verdicts = shelf.verify("vm1_replica")
    assert [item.has_copy for item in verdicts].index(True) == which
    (report,) = shelf.repair("vm1_replica", verdicts)
    assert report.is_record_restored
    assert all(item.is_ok for item in shelf.verify("vm1_replica"))


def test_a_lost_commit_record_comes_back_at_a_mover(tmp_path):
    site = SeveralSite(tmp_path / "site")
    try:
        site.add_machine()
        site.fill()
        site.run()
        site.change()
        site.run()
        newest = site.replica().points()[-1]
        site.replica().point_path(newest.id).unlink()
        site.change()
        machine = only(site.run())
        assert machine.outcome == "failed"
        assert "it is gone, only its copy is there" in machine.error
        with site.server() as server:
            repaired(server.replicas, 1)
        machine = only(site.run())
        assert (machine.outcome, machine.warnings) == ("done", [])
        assert site.check_points() == 3
    finally:
        site.close()


# --- digests beside the points ----------------------------------------------------------------


def digests_of(site, number):
    folder = site.replica()
    return folder.digests_path(folder.points()[number].id, "disk0")


def spoil(path, offset):
    with File(path, writable=True) as file:
        file.write(bytes([file.read(offset % file.size, 1)[0] ^ 1]), offset % file.size)


INDEX, LEAVES = -60, 5000


@pytest.mark.parametrize(
    ("damage", "sessions", "number", "has_repository"),
    [
        (INDEX, 1, 0, True),
        (LEAVES, 1, 0, True),
        (None, 1, 0, True),
        (INDEX, 2, 0, True),
        (INDEX, 2, 1, False),
        (LEAVES, 2, 1, False),
    ],
)
def test_damaged_digests_are_computed_again_by_the_session_that_meets_them(
    site, damage, sessions, number, has_repository
):
    """No session made a point any more until somebody ran `replica verify --repair`."""
    for _ in range(sessions):
        site.run()
        site.change()
    path = digests_of(site, number)
    before = path.read_bytes()
    if damage is None:
        path.unlink()
    else:
        spoil(path, damage)
    if not has_repository:
        shutil.rmtree(site.folder / "repository")
        (planned,) = site.plan(scan=True).machines
        assert planned.disks[0].send.value == 5 * 4096 + 300 * 1024, planned
        assert path.read_bytes() != before
    machine = only(site.run())
    assert machine.outcome == "done", machine.error
    assert any("damaged digests" in text for text in machine.warnings), machine.warnings
    assert [disk.mode for disk in machine.disks] == ["incremental", "incremental"]
    assert machine.disks[0].written <= 5 * 4096 + 300 * 1024
    assert path.read_bytes() == before
    assert site.check_points() == sessions + 1
    site.check_nothing_leaked()
    machine = only(site.run())
    assert (machine.outcome, machine.warnings) == ("done", [])


@pytest.mark.parametrize("damage", [INDEX, LEAVES], ids=["index", "leaves"])
def test_digests_of_a_disk_that_is_damaged_itself_are_not_believed(site, damage):
    write_mark(site)
    site.run()
    spoil(digests_of(site, 0), damage)
    (path,) = site.replica().path.glob("disk0/base.vhdx")
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(data.index(MARK))
        file.write(b"rot!")
    site.change()
    machine = only(site.run())
    assert machine.outcome == "failed"
    assert "verify" in machine.error
    assert len(site.replica().points()) == 1


# --- digests in the repository ----------------------------------------------------------------


def damage_repository(path, change):
    with contextlib.closing(sqlite3.connect(path / FILE_NAME)) as database:
        database.execute(change)
        database.commit()


def test_a_repository_at_a_mover_is_healed_by_the_session_that_meets_the_damage(tmp_path):
    """It failed: the failure had cut off the movers that were asked to make it good."""
    site = SeveralSite(tmp_path / "site")
    try:
        site.add_machine()
        site.fill()
        site.run()
        site.change()
        damage_repository(
            site.folder / "repository" / "main", "UPDATE leaves SET data = zeroblob(32768)"
        )
        machine = only(site.run())
        assert machine.outcome == "done", machine.error
        assert machine.disks[0].written <= 5 * 4096 + 300 * 1024
        assert any("what it had of this replica was dropped" in text for text in machine.alarms)
        site.change()
        machine = only(site.run())
        assert (machine.outcome, machine.warnings, machine.alarms) == ("done", [], [])
        assert "repository's digests" in machine.disks[0].reason
        assert site.check_points() == 3
    finally:
        site.close()


def test_a_repository_that_has_the_root_with_another_size_is_no_baseline(site):
    """Every session failed: changes cannot be staged on top of a larger state."""
    site.run()
    site.change()
    damage_repository(
        site.folder / "repository", "UPDATE states SET virtual_size = virtual_size + 4096"
    )
    machine = only(site.run())
    assert machine.outcome == "done", machine.error
    assert machine.disks[0].written <= 5 * 4096 + 300 * 1024
    site.change()
    assert "repository's digests" in only(site.run()).disks[0].reason
    assert site.check_points() == 3


def test_a_limit_that_a_folder_host_cannot_keep_is_told(tmp_path):
    site = made(tmp_path, more='checkpoint_max_growth = "1 GiB"\n')
    with site.server() as server:
        (finding,) = [item for item in server.check() if "checkpoint_max_growth" in item.where]
    assert "do not grow" in finding.problem
