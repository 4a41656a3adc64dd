"""Committing a restore point and recovering one that was cut off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import replicas
from replicas import DISKS, add_point, check_replica, new_point, new_replica, sealed_disk
from standby.errors import Fenced, PointDamaged, ReplicaConflict
from standby.model.replica import ReplicaState
from standby.road.committing import commit, recover
from standby.road.lease import WriterLease
from standby.road.replica import ReplicaFolder


def files_of(folder: ReplicaFolder) -> list[str]:
    """Every file that is not hidden, relative."""
    return sorted(
        path.relative_to(folder.path).as_posix()
        for path in folder.path.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    )


def test_the_first_point_becomes_the_base_and_the_replica_ready(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    point = add_point(folder, renew=False)
    assert folder.record().state is ReplicaState.READY
    assert files_of(folder) == [
        "disk0/base.vhdx",
        "disk1/base.vhdx",
        f"points/{point.id}.copy",
        f"points/{point.id}.disk0.digests",
        f"points/{point.id}.disk1.digests",
        f"points/{point.id}.json",
        "replica.json",
    ]
    assert check_replica(folder) == (point,)


def test_later_points_are_children_with_the_whole_chain_recorded(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    points = [add_point(folder) for _ in range(3)]
    assert check_replica(folder) == tuple(points)
    for disk in points[2].disks:
        assert [layer.file for layer in disk.chain] == [
            f"{disk.disk_id}/{points[2].id}.vhdx",
            f"{disk.disk_id}/{points[1].id}.vhdx",
            f"{disk.disk_id}/base.vhdx",
        ]
        assert disk.chain[1:] == next(
            other.chain for other in points[1].disks if other.disk_id == disk.disk_id
        )


def test_a_base_after_the_first_begins_a_new_chain_beside_the_old(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    first = add_point(folder)
    with WriterLease.acquire(folder, "s") as lease:
        point = new_point(folder, lease)
        sealed = {
            "disk0": sealed_disk(folder, lease, point.id, "disk0", as_base=True),
            "disk1": sealed_disk(folder, lease, point.id, "disk1"),
        }
        second = commit(folder, lease, point, sealed)
    assert [layer.file for layer in second.disks[0].chain] == [f"disk0/{second.id}.vhdx"]
    assert len(second.disks[1].chain) == 2
    assert check_replica(folder) == (first, second)


def test_a_disk_that_comes_later_gets_a_base_and_excluded_ones_none(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder, disks=["disk0"])
    with WriterLease.acquire(folder, "s") as lease:
        point = new_point(folder, lease)
        point = replace(point, disks=(replace(point.disks[0], excluded=True), point.disks[1]))
        done = commit(
            folder, lease, point, {"disk1": sealed_disk(folder, lease, point.id, "disk1")}
        )
    assert [[layer.file for layer in disk.chain] for disk in done.disks] == [
        [],
        ["disk1/base.vhdx"],
    ]
    # the disk that was left out for a while goes on above what it last had
    with WriterLease.acquire(folder, "s") as lease:
        point = new_point(folder, lease)
        sealed = {"disk1": sealed_disk(folder, lease, point.id, "disk1")}
        sealed["disk0"] = sealed_disk(folder, lease, point.id, "disk0")
        again = commit(folder, lease, point, sealed)
    assert [layer.file for layer in again.disks[0].chain] == [f"disk0/{again.id}.vhdx"]


def test_nothing_unfinished_is_left_by_a_commit(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    stale = folder.disk_path("disk0") / "20260101T000000Z-0000.1.extents"
    stale.write_bytes(b"x")
    with WriterLease.acquire(folder, "s", take_over=True) as lease:
        newer = folder.disk_path("disk0") / "20260101T000000Z-0000.9.extents"
        newer.write_bytes(b"x")
        point = new_point(folder, lease)
        commit(
            folder,
            lease,
            point,
            {name: sealed_disk(folder, lease, point.id, name) for name in DISKS},
        )
    assert not stale.exists()
    assert newer.exists()  # of a generation that is not ours to judge


def test_a_partial_that_kept_its_id_through_a_resume_gets_the_points_name(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    with WriterLease.acquire(folder, "s") as lease:
        point = new_point(folder, lease)
        older = f"{point.id[:-4]}ffff"
        sealed = {name: sealed_disk(folder, lease, older, name) for name in DISKS}
        done = commit(folder, lease, point, sealed)
    assert done.disks[0].chain[0].file == f"disk0/{point.id}.vhdx"


@pytest.mark.parametrize("what", ["size", "content"])
def test_a_file_changed_after_its_seal_is_refused(tmp_path: Path, what: str) -> None:
    folder = new_replica(tmp_path / "r")
    with WriterLease.acquire(folder, "s") as lease:
        point = new_point(folder, lease)
        sealed = {name: sealed_disk(folder, lease, point.id, name) for name in DISKS}
        if what == "size":
            replicas.append_bytes(sealed["disk1"].partial_path)
        else:
            replicas.write_as_the_vm_would(sealed["disk1"].partial_path, [], b"x" * 4096)
        with pytest.raises(PointDamaged, match="changed after it was sealed"):
            commit(folder, lease, point, sealed)
    assert folder.points() == ()


def test_a_root_that_is_not_the_sources_is_refused(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    with WriterLease.acquire(folder, "s") as lease:
        point = new_point(folder, lease, disks=["disk0"])
        point = replace(point, disks=(replace(point.disks[0], root="00" * 16),))
        sealed = {"disk0": sealed_disk(folder, lease, point.id, "disk0")}
        with pytest.raises(PointDamaged, match="digest root"):
            commit(folder, lease, point, sealed)


def test_a_point_that_does_not_follow_the_newest_is_refused(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    first = add_point(folder)
    with WriterLease.acquire(folder, "s") as lease:
        point = new_point(folder, lease)
        sealed = {name: sealed_disk(folder, lease, point.id, name) for name in DISKS}
        with pytest.raises(ReplicaConflict, match=f"the newest is {first.id}"):
            commit(folder, lease, replace(point, parent=""), sealed)
        with pytest.raises(ReplicaConflict, match="the newest is"):
            commit(folder, lease, replace(point, id="20200101T000000Z-0000"), sealed)
        with pytest.raises(ReplicaConflict, match=r"disk1 of .* is not sealed"):
            commit(folder, lease, point, {"disk0": sealed["disk0"]})


def test_a_child_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    first = add_point(folder)
    with WriterLease.acquire(folder, "s") as lease:
        point = new_point(folder, lease)
        sealed = {name: sealed_disk(folder, lease, point.id, name) for name in DISKS}
        kept = {name: item.partial_path.read_bytes() for name, item in sealed.items()}
        commit(folder, lease, point, sealed)
        for name, data in kept.items():  # a child of the first point, once more
            sealed[name].partial_path.write_bytes(data)
            sealed[name].digests_path.write_bytes(b"")
        with pytest.raises(ReplicaConflict, match="not the newest layer"):
            commit(folder, lease, new_point(folder, lease), sealed)
    assert len(folder.points()) == 2
    assert folder.points()[0] == first


def test_a_leftover_in_the_way_is_put_aside(tmp_path: Path) -> None:
    """A fenced first session may have renamed its base, which no point record names."""
    folder = new_replica(tmp_path / "r")
    (tmp_path / "r" / "disk0").mkdir()
    (tmp_path / "r" / "disk0" / "base.vhdx").write_bytes(b"of a fenced writer")
    point = add_point(folder)
    assert check_replica(folder) == (point,)
    (aside,) = folder.unknown_files()
    assert aside.startswith("disk0/base.")
    assert aside.endswith(".unclaimed.vhdx")
    assert (folder.path / aside).read_bytes() == b"of a fenced writer"


def test_recovery_of_a_sound_replica_changes_nothing(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    before = {name: (folder.path / name).read_bytes() for name in files_of(folder)}
    with WriterLease.acquire(folder, "s") as lease:
        done = recover(folder, lease)
    assert (done.committed, done.discarded, done.findings) == ((), (), ())
    assert {name: (folder.path / name).read_bytes() for name in files_of(folder)} == before


def test_a_partial_disk_survives_recovery_for_a_resume(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    with WriterLease.acquire(folder, "s") as lease:
        sealed = sealed_disk(folder, lease, new_point(folder, lease).id, "disk0")
    with WriterLease.acquire(folder, "s", take_over=True) as lease:
        recover(folder, lease)
    assert sealed.partial_path.exists()
    assert folder.unknown_files() == []


def test_a_fenced_writer_cannot_begin_a_commit(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    old = WriterLease.acquire(folder, "old")
    point = new_point(folder, old)
    sealed = {name: sealed_disk(folder, old, point.id, name) for name in DISKS}
    with WriterLease.acquire(folder, "new", take_over=True):
        with pytest.raises(Fenced):
            commit(folder, old, point, sealed)
        with pytest.raises(Fenced):
            recover(folder, old)
    old.release()
    assert len(folder.points()) == 1


def test_a_damaged_pending_record_is_reported_and_its_files_stay(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    path = folder.points_path / "20270101T000000Z-0000.1.pending.json"
    path.write_bytes(b"{")
    with WriterLease.acquire(folder, "s") as lease:
        done = recover(folder, lease)
    assert "pending.json: not a record" in done.findings[0]
    assert path.exists()
    add_point(folder)
