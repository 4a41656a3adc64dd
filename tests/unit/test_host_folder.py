"""A replica whose host sees its folder by another path: locators say so, no file is sparse."""

from __future__ import annotations

from pathlib import Path

import pytest

from clocks import HeldClock
from replicas import add_point, new_replica, ready_path
from standby.disk import vhdx
from standby.road import beginning, resuming
from standby.road.beginning import BeginDisk, begin_partial
from standby.road.connections import InheritedConnections
from standby.road.failing_over import undo_failover
from standby.road.lease import WriterLease
from standby.road.naming import new_point_id
from standby.road.partial import PartialSpec
from standby.road.replica import ReplicaFolder
from standby.road.target_host import TargetVerbs
from standby.units import MiB

ON_HOST = r"D:\Replicas\web"


@pytest.fixture
def folder(tmp_path: Path) -> ReplicaFolder:
    made = new_replica(tmp_path / "web")
    with WriterLease.acquire(made, "test") as lease:
        lease.update(host_folder=ON_HOST)
    return made


def parent_of(path: Path) -> str:
    return vhdx.read_info(path).locator.get("absolute_win32_path", "")


def test_ready_layers_name_their_parents_as_the_host_sees_them(folder: ReplicaFolder) -> None:
    point = add_point(folder)
    name = point.disks[0].chain[0].file.replace("/", "\\")
    assert parent_of(ready_path(folder)) == f"{ON_HOST}\\{name}"
    undo_failover(folder, drop_writes=True)
    assert parent_of(ready_path(folder)) == f"{ON_HOST}\\{name}"


def test_partial_layers_do_so_too(folder: ReplicaFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    point = add_point(folder)
    disk = point.disks[0]
    seen: list[tuple[PartialSpec, bool]] = []
    monkeypatch.setattr(
        beginning.PartialDisk,
        "open",
        lambda folder, spec, *, sparse, clock: seen.append((spec, sparse)),
    )
    with WriterLease.acquire(folder, "test") as lease:
        wanted = BeginDisk(
            str(folder.path),
            disk.disk_id,
            new_point_id(HeldClock(), point.id),
            "c",
            MiB,
            512,
            4096,
            "",
            True,
            False,
            False,
            "",
        )
        begin_partial(folder, lease, wanted, HeldClock())
    ((spec, is_sparse),) = seen
    assert not is_sparse
    name = disk.chain[0].file.replace("/", "\\")
    assert spec.parent_on_host == f"{ON_HOST}\\{name}"
    path = folder.disk_path(disk.disk_id) / "x.vhdx"
    resuming._created(path, spec, is_sparse).close()
    assert parent_of(path) == spec.parent_on_host
    path.unlink()


def test_files_of_hyper_v_are_known_and_its_maps_of_replaced_layers_go(
    folder: ReplicaFolder,
) -> None:
    add_point(folder)
    (folder.path / "Virtual Machines").mkdir()
    (folder.path / "Virtual Machines" / "1.vmcx").write_bytes(b"x")
    track = ready_path(folder).with_name("ready.vhdx.rct")
    track.write_bytes(b"x")
    assert folder.unknown_files() == []
    add_point(folder)
    assert not track.exists()


def test_the_host_is_kept_when_the_replica_is_opened_before_anything_is_written(
    tmp_path: Path,
) -> None:
    host = TargetVerbs(InheritedConnections([], []))
    try:
        opened = host.call(
            "open_replica",
            {
                "root": str(tmp_path),
                "identity": {
                    "installation": "lab",
                    "source_host": "hv1",
                    "machine_id": "1",
                    "job": "j",
                },
                "wanted": "web",
                "session": "s",
                "take_over": False,
                "must_exist": False,
                "expected": "",
                "host_root": "D:\\Replicas\\",
            },
        )
    finally:
        host.close()
    assert ReplicaFolder(Path(opened["path"])).record().host_folder == ON_HOST
