"""Beginning a replica with disk files that are at the target already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import replicas
from replicas import DISKS, SIZE, add_point, machine, new_replica
from standby.disk import vhdx
from standby.errors import DiskUnsupported, ReplicaConflict
from standby.road import ready
from standby.road.adopting import adopt_disk, make_found_point
from standby.road.committing import commit, recover
from standby.road.failing_over import failover
from standby.road.lease import WriterLease
from standby.road.partial import PartialDisk, PartialSpec
from standby.road.replica import ReplicaFolder
from standby.road.verifying import verify_point

SEED = b"what the seed holds".ljust(4096, b"s")


def disk_file(path: Path, data: bytes = SEED) -> Path:
    """A disk with one written piece."""
    disk = vhdx.create(path, SIZE)
    disk.write(0, data)
    disk.close()
    return path


def found(folder: ReplicaFolder, lease: WriterLease, files: dict[str, Path]) -> str:
    point = make_found_point(folder, lease, machine(), files)
    ready.renew(folder, lease, point)
    return point.id


def test_the_disks_of_an_existing_vm_become_the_first_point(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    files = {name: disk_file(tmp_path / f"{name}.vhdx") for name in DISKS}
    guids = {name: vhdx.read_info(path).data_write_guid for name, path in files.items()}
    with WriterLease.acquire(folder, "s") as lease:
        point_id = found(folder, lease, files)
    (point,) = folder.points()
    assert point.id == point_id
    for disk in point.disks:
        assert [layer.file for layer in disk.chain] == [f"{disk.disk_id}/base.vhdx"]
        assert disk.chain[0].data_write_guid == guids[disk.disk_id]
        assert replicas.content(folder, point, disk.disk_id) == SEED
    assert verify_point(folder, point.id).is_ok
    assert folder.unknown_files() == []
    folder.check_untouched()
    assert failover(folder).point == point


def test_a_found_point_cut_off_anywhere_is_made_by_repeating(tmp_path: Path) -> None:
    kept = [disk_file(tmp_path / f"{name}.vhdx") for name in DISKS]
    for name in ("disk moved in:1", "disk moved in:2", "pending written:1", "file renamed:2"):
        work = tmp_path / "work"
        work.mkdir()
        folder = new_replica(work / "r")
        files = {}
        for disk_id, path in zip(DISKS, kept, strict=True):
            files[disk_id] = work / path.name
            files[disk_id].write_bytes(path.read_bytes())
        said = replicas.run_child("found", folder.path, *map(str, files.values()), kill=name)
        assert said == ""
        with WriterLease.acquire(folder, "again", take_over=True) as lease:
            recover(folder, lease)
            if not folder.points():
                make_found_point(folder, lease, machine(), files)
        (point,) = folder.points()
        assert [replicas.content(folder, point, disk_id) for disk_id in DISKS] == [SEED, SEED]
        work.rename(tmp_path / f"done {name}")


def test_a_replica_with_points_takes_no_found_disks(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    file = disk_file(tmp_path / "x.vhdx")
    with WriterLease.acquire(folder, "s") as lease:
        with pytest.raises(ReplicaConflict, match="there is the point"):
            make_found_point(folder, lease, machine(), {"disk0": file})
        with pytest.raises(ReplicaConflict, match="there is the point"):
            adopt_disk(folder, lease, "disk0", file, "20260401T000000Z-00aa")
    assert file.exists()


def test_a_vm_with_checkpoints_is_not_adopted(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    parent = disk_file(tmp_path / "parent.vhdx")
    vhdx.create_child(tmp_path / "child.vhdx", parent).close()
    with WriterLease.acquire(folder, "s") as lease:
        with pytest.raises(DiskUnsupported, match="Merge the VM's checkpoints"):
            make_found_point(folder, lease, machine(), {"disk0": tmp_path / "child.vhdx"})


def test_a_seed_is_updated_in_place_into_the_first_base(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r", disks=["disk0"])
    home = folder.disk_path("disk0")
    home.mkdir()
    seed = disk_file(home / "seed.vhdx")
    inode = seed.stat().st_ino
    with WriterLease.acquire(folder, "s") as lease:
        point = replicas.new_point(folder, lease, disks=["disk0"])
        adopt_disk(folder, lease, "disk0", seed, point.id, "checkpoint-1")
        spec = PartialSpec("disk0", point.id, lease.generation, "checkpoint-1", SIZE)
        partial = PartialDisk.open(home, spec, clock=folder.clock)
        assert len(partial.baseline.index()[0]) == 1  # what the seed holds is known, and stays
        sealed = partial.seal()
        root = sealed.root.hex()
        point = replace(point, disks=(replace(point.disks[0], root=root),))
        done = commit(folder, lease, point, {"disk0": sealed})
    assert (home / "base.vhdx").stat().st_ino == inode
    assert replicas.content(folder, done, "disk0") == SEED
    assert verify_point(folder, done.id).is_ok


def test_a_seed_survives_a_kill_before_it_is_moved(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r", disks=["disk0"])
    home = folder.disk_path("disk0")
    home.mkdir()
    seed = disk_file(home / "seed.vhdx")
    said = replicas.run_child("seed", folder.path, str(seed), kill="seed announced")
    assert said == ""
    with WriterLease.acquire(folder, "s") as lease:
        recover(folder, lease)
        assert seed.exists()
        assert folder.unknown_files() == ["disk0/seed.vhdx"]
        path = adopt_disk(folder, lease, "disk0", seed, "20260401T000000Z-00aa")
    assert path.exists()
