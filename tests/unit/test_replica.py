"""The replica's folder: its record, its points, names, and what is noticed of tampering."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import replicas
from clocks import HeldClock
from replicas import DISKS, IDENTITY, add_point, new_replica
from standby.errors import (
    NoSuchPoint,
    PointDamaged,
    ReplicaConflict,
    ReplicaMissing,
    ReplicaStarted,
)
from standby.model.replica import LayerFile, ReplicaState
from standby.road import records
from standby.road.committing import PendingCommit
from standby.road.lease import WriterLease
from standby.road.naming import folder_name, is_point_id, new_point_id, partial_name
from standby.road.records import RecordDamaged, inner_path, read_record
from standby.road.replica import ReplicaFolder, encode_point, encode_replica
from standby.road.seeding import found_replica
from standby.road.surveying import findings, status, target_state

GOLDEN = Path(__file__).parent / "golden"


def test_a_new_replica_is_of_generation_one_and_without_points(tmp_path: Path) -> None:
    folder = ReplicaFolder(tmp_path / "web01_replica", HeldClock())
    assert not folder.exists()
    folder.create(IDENTITY, "web01")
    record = folder.record()
    assert (record.identity, record.state, record.generation) == (IDENTITY, ReplicaState.NEW, 1)
    assert folder.points() == ()
    assert folder.newest() is None


def test_creating_again_finds_the_same_replica(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    before = folder.record()
    assert ReplicaFolder(tmp_path / "r").create(IDENTITY, "web01") == before


def test_a_folder_of_another_identity_is_refused(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    folder.disk_path("disk0").mkdir()
    other = replace(IDENTITY, job="weekly")
    with pytest.raises(ReplicaConflict, match="job nightly"):
        folder.create(other, "web01")


def test_a_replica_whose_first_session_was_refused_may_become_another_ones(tmp_path: Path) -> None:
    """It wrote nothing: so it is not left behind for good when the VM is another job's."""
    folder = new_replica(tmp_path / "web01_replica")
    other = replace(IDENTITY, job="weekly")
    with WriterLease.acquire(folder, "s1"):
        with pytest.raises(ReplicaConflict, match="job nightly"):
            folder.create(other, "web01")
        at_work = found_replica(tmp_path, other, "web01_replica", HeldClock())
        assert at_work.path.name.startswith("web01_replica-")
    found = found_replica(tmp_path, other, "web01_replica", HeldClock())
    assert (found.path, found.exists) == (folder.path, False)
    record = ReplicaFolder(found.path).create(other, "web01_replica")
    assert record == folder.record()
    assert (record.identity, record.generation, record.disks) == (other, 2, ())
    assert found_replica(tmp_path, other, "web01_replica", HeldClock()).exists
    assert not found_replica(tmp_path, IDENTITY, "x", HeldClock()).exists


@pytest.mark.parametrize("left", ["disk0", "seed.vhdx", "points/20260301T220000Z-0a1b.copy"])
def test_a_replica_with_anything_in_it_becomes_nobody_elses(tmp_path: Path, left: str) -> None:
    folder = new_replica(tmp_path / "web01_replica")
    (folder.path / left).write_bytes(b"")
    other = replace(IDENTITY, job="weekly")
    assert not folder.is_bare(folder.record())
    found = found_replica(tmp_path, other, "web01_replica", HeldClock())
    assert found.path.name.startswith("web01_replica-")
    with pytest.raises(ReplicaConflict):
        folder.create(other, "web01")
    assert folder.record().identity == IDENTITY


def test_no_record_is_a_missing_replica(tmp_path: Path) -> None:
    with pytest.raises(ReplicaMissing, match=r"replica\.json"):
        ReplicaFolder(tmp_path).record()


@pytest.mark.parametrize("where", ["first", "middle", "last", "empty", "cut"])
def test_a_damaged_record_is_a_conflict(tmp_path: Path, where: str) -> None:
    folder = new_replica(tmp_path / "r")
    data = bytearray(folder.record_path.read_bytes())
    if where == "empty":
        data.clear()
    elif where == "cut":
        del data[len(data) // 2 :]
    else:
        at = {"first": 0, "middle": len(data) // 2, "last": len(data) - 3}[where]
        data[at] ^= 0x01
    folder.record_path.write_bytes(data)
    with pytest.raises(ReplicaConflict, match=r"replica\.json"):
        folder.record()


def test_every_flipped_bit_of_a_record_is_noticed(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    whole = folder.record_path.read_bytes()
    before = folder.record()
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 0x10
        folder.record_path.write_bytes(data)
        try:
            assert folder.record() == before, place
        except ReplicaConflict:
            continue


def test_a_record_of_a_later_format_is_refused(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    data = folder.record_path.read_bytes().replace(b'"format": 1,', b'"format": 2,', 1)
    folder.record_path.write_bytes(data)
    with pytest.raises(ReplicaConflict, match="format 2 where this release knows 1"):
        folder.record()


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", "C:/x", "a\\b", "", "a/./b", "a\0b", "C:x"]
)
def test_names_in_records_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecordDamaged):
        inner_path(tmp_path, name)


def test_the_golden_records_of_version_one_are_read(tmp_path: Path) -> None:
    folder = ReplicaFolder(tmp_path)
    folder.points_path.mkdir()
    folder.record_path.write_bytes((GOLDEN / "replica-1.json").read_bytes())
    point_id = "20260301T220000Z-0a1b"
    folder.point_path(point_id).write_bytes((GOLDEN / "point-1.json").read_bytes())
    record, point = folder.record(), folder.point(point_id)
    assert record.ready is not None
    assert record.ready["disk0"].size == 4194304
    assert (point.machine.name, point.disks[0].chain[0].file) == ("web01", "disk0/base.vhdx")
    folder.record_path.write_bytes(encode_replica(record))
    folder.point_path(point_id).write_bytes(encode_point(point))
    assert (folder.record(), folder.point(point_id)) == (record, point)
    pending = read_record(GOLDEN / "pending-1.json", "pending point", 1, PendingCommit)
    assert pending.point == point
    assert pending.moves[0].final == "disk0/base.vhdx"


# --- points ----------------------------------------------------------------------------------


def test_points_are_listed_oldest_first_with_their_chains(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    first, second, third = (add_point(folder) for _ in range(3))
    assert [point.id for point in folder.points()] == [first.id, second.id, third.id]
    assert [path.name for path in folder.chain_paths(third, "disk0")] == [
        f"{third.id}.vhdx",
        f"{second.id}.vhdx",
        "base.vhdx",
    ]
    assert folder.digest_paths(third.id, "disk1") == [
        folder.digests_path(point.id, "disk1") for point in (third, second, first)
    ]
    replicas.check_replica(folder)


def test_a_point_of_an_older_generation_counts_only_if_it_was_there_at_the_take_over(
    tmp_path: Path,
) -> None:
    folder = new_replica(tmp_path / "r")
    old = add_point(folder)
    WriterLease.acquire(folder, "other", take_over=True).release()
    late = replace(old, id=new_point_id(folder.clock, old.id), parent=old.id)
    folder.point_path(late.id).write_bytes(encode_point(late))
    assert [point.id for point in folder.points()] == [old.id]
    assert any(f"{late.id} does not count" in finding for finding in findings(folder))


def test_a_damaged_point_record_does_not_hide_the_others(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    first, second = add_point(folder), add_point(folder)
    path = folder.point_path(second.id)
    path.write_bytes(path.read_bytes().replace(b"offline", b"offLine"))
    assert [point.id for point in folder.points()] == [first.id]
    with pytest.raises(PointDamaged, match="checksum"):
        folder.check_untouched()
    with pytest.raises(PointDamaged, match=second.id):
        folder.point(second.id)
    folder.check_untouched(first.id)
    assert any(second.id in finding for finding in findings(folder))


def test_an_unknown_point_is_named_with_the_known_ones(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    point = add_point(folder)
    with pytest.raises(NoSuchPoint, match=point.id):
        folder.point("20200101T000000Z-ffff")


# --- tampering -------------------------------------------------------------------------------


def test_an_untouched_replica_passes(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    add_point(folder)
    folder.check_untouched()
    assert findings(folder) == []


def test_a_file_that_many_points_share_is_read_once(tmp_path: Path, monkeypatch) -> None:
    folder = new_replica(tmp_path / "r")
    for _ in range(6):
        add_point(folder)
    read = []
    original = records.layer_evidence

    def counted(root: Path, layer: LayerFile, *also: frozenset[str]) -> str:
        read.append(layer.file)
        return original(root, layer, *also)

    monkeypatch.setattr("standby.road.replica.layer_evidence", counted)
    folder.check_untouched()
    assert len(read) == len(set(read)) >= 6 * len(DISKS)


def test_a_point_file_opened_for_writing_and_written_is_named(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    first, second = add_point(folder), add_point(folder)
    path, *parents = folder.chain_paths(second, "disk1")
    size = path.stat().st_size
    replicas.write_as_the_vm_would(path, parents, b"x" * 4096)
    assert path.stat().st_size == size
    with pytest.raises(PointDamaged, match="data-write GUID") as caught:
        folder.check_untouched()
    assert (caught.value.point, caught.value.path) == (second.id, str(path))
    folder.check_untouched(first.id)


def test_a_point_file_of_another_size_is_named(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    first, second = add_point(folder), add_point(folder)
    (base,) = folder.chain_paths(first, "disk0")
    replicas.append_bytes(base)
    for point in (first.id, second.id, None):
        with pytest.raises(PointDamaged, match=r"base\.vhdx.*bytes where"):
            folder.check_untouched(point)


def test_a_missing_point_file_is_named(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    second = add_point(folder)
    folder.chain_paths(second, "disk0")[0].unlink()
    with pytest.raises(PointDamaged, match="the file is missing"):
        folder.check_untouched()


def test_a_written_ready_layer_is_a_started_replica(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    point = add_point(folder)
    ready = folder.disk_path("disk1") / "ready.vhdx"
    replicas.write_as_the_vm_would(ready, folder.chain_paths(point, "disk1"), b"w" * 4096)
    with pytest.raises(ReplicaStarted, match=r"disk1.ready\.vhdx"):
        folder.check_untouched()
    with pytest.raises(ReplicaStarted):
        folder.check_untouched(point.id)


def test_opening_a_ready_layer_without_writing_is_no_start(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    point = add_point(folder)
    replicas.read_piece(
        [folder.disk_path("disk0") / "ready.vhdx", *folder.chain_paths(point, "disk0")]
    )
    folder.check_untouched()


def test_a_foreign_file_in_the_place_of_a_ready_layer_is_a_started_replica(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder, renew=False)
    (folder.disk_path("disk0") / "ready.vhdx").write_bytes(b"made by hand")
    with pytest.raises(ReplicaStarted, match="not the file standby made"):
        folder.check_untouched()


def test_unknown_files_are_reported_and_left_alone(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    (folder.path / "notes.txt").write_text("mine")
    (folder.disk_path("disk0") / "copy.vhdx").write_bytes(b"")
    (folder.disk_path("disk0") / ".hidden").write_bytes(b"")
    assert folder.unknown_files() == ["disk0/copy.vhdx", "notes.txt"]
    add_point(folder)
    assert folder.unknown_files() == ["disk0/copy.vhdx", "notes.txt"]


# --- what a target says of itself ------------------------------------------------------------


def test_the_target_states_what_its_newest_point_holds(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    point = add_point(folder)
    state = target_state(folder)
    assert (state.identity, state.generation, state.newest) == (IDENTITY, 1, point.id)
    assert [(disk.disk_id, disk.root) for disk in state.disks] == [
        (disk.disk_id, disk.root) for disk in point.disks
    ]
    assert state.partials == ()


def test_the_status_tells_age_actions_and_holder(tmp_path: Path) -> None:
    clock = HeldClock()
    folder = new_replica(tmp_path / "r", clock)
    add_point(folder)
    found = status(folder)
    assert (found.state, found.is_processing, found.newest_age_s) == ("ready", False, 3600.0)
    assert "standby replica failover r" in found.actions
    assert found.findings == ()
    with WriterLease.acquire(folder, "session-7"):
        found = status(folder)
    assert found.is_processing
    assert "session session-7" in found.holder


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("web01", "web01"),
        ("web 01/x:y", "web_01_x_y"),
        ("Köln", "K_ln"),
        ("..", "vm-11112222"),
        (".hidden.", "hidden"),
        ("サーバー", "vm-11112222"),
        ("CON", "vm-11112222"),
        ("com1.backup", "vm-11112222"),
        ("nul", "vm-11112222"),
        ("console", "console"),
        ("", "vm-11112222"),
        ("x" * 300, "x" * 80),
    ],
)
def test_folder_names_are_plain(name: str, expected: str) -> None:
    assert folder_name(name, [], "11112222") == expected


def test_folder_names_are_unique_ignoring_case() -> None:
    assert folder_name("Web01", ["web01"], "11112222") == "Web01-11112222"
    assert folder_name("web02", ["web01"], "11112222") == "web02"


def test_point_ids_ascend_even_where_the_clock_goes_back() -> None:
    clock = HeldClock()
    first = new_point_id(clock)
    clock.advance(-7200)
    second = new_point_id(clock, first)
    third = new_point_id(clock, second)
    assert first < second < third
    assert all(is_point_id(item) for item in (first, second, third))


def test_unfinished_files_are_known_by_their_names() -> None:
    name = partial_name("20260301T220000Z-0a1b.12.partial.vhdx")
    assert name is not None
    assert (name.point, name.generation, name.kind) == (
        "20260301T220000Z-0a1b",
        12,
        "partial.vhdx",
    )
    assert partial_name("20260301T220000Z-0a1b.vhdx") is None
    assert partial_name("base.vhdx") is None


def test_all_disks_of_the_helper_are_replicated(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    point = add_point(folder)
    assert tuple(disk.disk_id for disk in point.disks) == DISKS
