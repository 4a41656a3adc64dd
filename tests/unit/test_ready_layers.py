"""The ready layers: what the replica VM starts from, and the firmware variables beside them."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

import replicas
from replicas import (
    add_point,
    new_replica,
    pattern,
    ready_content,
    ready_path,
    run_vm,
)
from standby.disk import vhdx
from standby.errors import (
    DiskIO,
    ReplicaBusy,
    ReplicaStarted,
)
from standby.files import ByteLock
from standby.host.folder.power import PowerRecord, write_record
from standby.model.point import RestorePoint
from standby.model.replica import ReplicaState
from standby.road import ready
from standby.road.failing_over import (
    failover,
    undo_failover,
)
from standby.road.lease import WriterLease
from standby.road.replica import ReplicaFolder
from standby.units import MiB


def test_a_disk_that_the_point_has_not_has_no_ready_layer(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    first = add_point(folder)
    second = add_point(folder, disks=["disk0"])
    assert not ready_path(folder, "disk1").exists()
    assert set(folder.record().ready or {}) == {"disk0"}
    assert folder.unknown_files() == []
    failover(folder, point=first.id)
    assert ready_content(folder, "disk1") == pattern(first.id, "disk1")
    run_vm(folder, "disk1")
    undo_failover(folder)
    assert not ready_path(folder, "disk1").exists()
    assert ready_content(folder, "disk0") == pattern(second.id, "disk0")
    folder.check_untouched()
    add_point(folder)
    assert ready_path(folder, "disk1").exists()


def test_a_ready_layer_that_is_not_ours_by_record_stays(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    add_point(folder, disks=["disk0"])
    vhdx.create(ready_path(folder, "disk1"), MiB).close()
    with pytest.raises(ReplicaStarted, match="not the file standby made"):
        add_point(folder, disks=["disk0"])
    undo_failover(folder, drop_writes=True)
    assert ready_path(folder, "disk1").exists()


def test_nobody_makes_ready_layers_while_a_fenced_process_removes_one(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    first = add_point(folder)
    add_point(folder, disks=["disk0"])
    hung = ByteLock(folder.lock_path, ready.REMOVE_BYTE)
    assert hung.acquire()
    assert failover(folder).renewed is False
    with pytest.raises(ReplicaBusy, match="removes a ready layer"):
        undo_failover(folder)
    hung.release()
    undo_failover(folder)
    assert failover(folder, point=first.id).renewed


@pytest.mark.parametrize("is_ours", [True, False])
def test_firmware_variables_of_an_undone_failover_go_where_our_power_on_made_them(
    tmp_path: Path, is_ours: bool
) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    failover(folder)
    (folder.path / "nvram.fd").write_bytes(b"variables of the VM that was undone")
    if is_ours:
        write_record(folder.path, PowerRecord())
    undo_failover(folder)
    assert (folder.path / "nvram.fd").exists() is not is_ours


def nvram_point(folder: ReplicaFolder, variables: bytes, name: str = "nvram.fd") -> RestorePoint:
    text = base64.b64encode(variables).decode()
    return add_point(folder, state_files={name: text}, nvram=name)


@pytest.mark.parametrize("name", ["nvram.fd", "vm/web01_VARS.fd", "replica.json"])
def test_the_replica_vm_starts_with_the_uefi_variables_of_its_point(
    tmp_path: Path, name: str
) -> None:
    folder = new_replica(tmp_path / "r")
    first = nvram_point(folder, b"first", name)
    nvram_point(folder, b"second", name)
    nvram = folder.path / "nvram.fd"
    assert nvram.read_bytes() == b"second"  # a failover by hand finds them too
    failover(folder, point=first.id)
    assert nvram.read_bytes() == b"first"
    nvram.write_bytes(b"written by the VM")
    undo_failover(folder)
    assert nvram.read_bytes() == b"second"
    nvram.unlink()
    assert not failover(folder).renewed
    assert nvram.read_bytes() == b"second"
    assert folder.unknown_files() == []
    assert folder.record().state is ReplicaState.FAILOVER


def test_a_point_without_uefi_variables_does_not_get_those_of_another(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    first = add_point(folder)
    nvram_point(folder, b"second")
    failover(folder, point=first.id)
    assert not (folder.path / "nvram.fd").exists()
    undo_failover(folder)
    assert (folder.path / "nvram.fd").read_bytes() == b"second"


def test_adopted_writes_keep_their_uefi_variables(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    nvram_point(folder, b"second")
    run_vm(folder)
    (folder.path / "nvram.fd").write_bytes(b"written by the VM")
    failover(folder, adopt=True)
    assert (folder.path / "nvram.fd").read_bytes() == b"written by the VM"


@pytest.mark.parametrize("verb", ["failover", "undo"])
def test_a_kill_after_the_uefi_variables_were_put_is_repeated(tmp_path: Path, verb: str) -> None:
    folder = new_replica(tmp_path / "r")
    first = nvram_point(folder, b"first")
    nvram_point(folder, b"second")
    if verb == "undo":
        failover(folder, point=first.id)
        (folder.path / "nvram.fd").write_bytes(b"written by the VM")
    arguments = [first.id] if verb == "failover" else []
    assert replicas.run_child(verb, folder.path, *arguments, kill="state files put") == ""
    if verb == "failover":
        failover(folder, point=first.id)
    else:
        undo_failover(folder)
    wanted = b"first" if verb == "failover" else b"second"
    assert (folder.path / "nvram.fd").read_bytes() == wanted


def test_a_ready_layer_is_an_empty_child_found_by_a_relative_path(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    point = add_point(folder)
    info = vhdx.read_info(ready_path(folder))
    assert info.has_parent
    assert info.locator["relative_path"] == f".\\{point.id}.vhdx"
    linkage = info.locator["parent_linkage"].strip("{}").lower()
    assert linkage == point.disks[0].chain[0].data_write_guid
    assert ready_content(folder, "disk0") == pattern(point.id, "disk0")


def test_the_host_sees_its_own_path_in_the_locator(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    point = add_point(folder)
    with WriterLease.acquire(folder, "s") as lease:
        ready.renew(folder, lease, point, host_folder="D:\\Replicas\\web01_replica", sparse=False)
    locator = vhdx.read_info(ready_path(folder)).locator
    assert locator["absolute_win32_path"] == "D:\\Replicas\\web01_replica\\disk0\\base.vhdx"


def test_a_running_vm_stops_a_renewal(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    point = add_point(folder)
    with WriterLease.acquire(folder, "s") as lease:
        with pytest.raises(ReplicaStarted, match="running"):
            ready.renew(folder, lease, point, is_running=lambda: True)


def test_a_ready_layer_that_a_host_holds_open_is_a_started_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_replica(tmp_path / "r")
    point = add_point(folder)

    def refused(self: WriterLease, old: Path, new: Path) -> None:
        cause = PermissionError(13, "in use")
        cause.winerror = 32  # type: ignore[attr-defined]
        raise DiskIO(str(new), "rename", 0, 0, "in use") from cause

    with WriterLease.acquire(folder, "s") as lease:
        monkeypatch.setattr(WriterLease, "rename", refused)
        with pytest.raises(ReplicaStarted, match="another process has it open"):
            ready.renew(folder, lease, point)


def test_the_ready_layer_of_a_disk_that_is_gone_stays_known(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    newest = add_point(folder, disks=["disk0"])
    assert ready.is_current(folder, folder.record(), newest)
    assert folder.unknown_files() == []
    folder.check_untouched()
    first = folder.points()[0]
    failover(folder, point=first.id)
    assert ready_content(folder, "disk1") == pattern(first.id, "disk1")
