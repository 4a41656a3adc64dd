"""Merging the oldest restore point away: what stays, what goes, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from chains import add_point, check_points, make_replica
from crashing import crashing
from partials import noise
from standby import killpoints
from standby.digesting import PIECE, DigestFile
from standby.disk import vhdx
from standby.disk.check import check_disk
from standby.disk.vhdx import VhdxDisk
from standby.errors import (
    DiskFull,
    Fenced,
    IllegalTransition,
    PointDamaged,
    ReplicaBusy,
    ReplicaConflict,
)
from standby.files import ByteLock
from standby.model.replica import ReplicaState
from standby.road import merging
from standby.road.lease import WriterLease
from standby.road.merging import MERGE_BYTE, finish_merge, merge_oldest, pending_merge
from standby.road.replica import ReplicaFolder
from standby.units import MiB

SIZE = 3 * MiB + 512


def states(count: int, size: int = SIZE, share: float = 0.3) -> list[dict]:
    """`count` states of two disks, each changed a little from the one before."""
    found = [{"disk0": noise(1, size, share), "disk1": noise(2, size, share)}]
    for number in range(1, count):
        contents = {disk: bytearray(data) for disk, data in found[-1].items()}
        for index, data in enumerate(contents.values()):
            for offset in (number * 7 * PIECE, number * 100 * PIECE, len(data) - 512):
                stop = min(offset + PIECE, len(data))
                data[offset:stop] = bytes([number + index + 1]) * (stop - offset)
            hole = (number * 40 + 300) * PIECE
            data[hole : hole + 5 * PIECE] = bytes(len(data[hole : hole + 5 * PIECE]))
        contents["disk0"][MiB : 2 * MiB] = bytes(MiB) if number % 2 else b"\xee" * MiB
        found.append(contents)
    return found


@pytest.fixture
def three(tmp_path: Path) -> tuple[ReplicaFolder, list[dict]]:
    contents = states(3)
    return make_replica(tmp_path / "web01", contents), contents


def merged(folder: ReplicaFolder, **options: object) -> None:
    with WriterLease.acquire(folder, "retention") as lease:
        merge_oldest(folder, lease, **options)


def files_of(folder: ReplicaFolder) -> set[str]:
    return {
        path.relative_to(folder.path).as_posix()
        for path in folder.path.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_points_above_the_retired_one_read_the_same_down_to_the_last(three) -> None:
    folder, contents = three
    check_points(folder, contents)
    first = folder.points()[0]
    while len(contents) > 1:
        contents = contents[1:]
        merged(folder)
        check_points(folder, contents)
        assert pending_merge(folder) is None
        assert folder.unknown_files() == []
    assert files_of(folder) == {
        "replica.json",
        *(f"points/{folder.points()[0].id}.{name}" for name in ("json", "copy")),
        *(f"points/{folder.points()[0].id}.{disk}.digests" for disk in ("disk0", "disk1")),
        *(f"{disk}/{name}.vhdx" for disk in ("disk0", "disk1") for name in ("base", "ready")),
    }
    assert first.id not in {point.id for point in folder.points()}
    with pytest.raises(ReplicaConflict, match="only restore point"):
        merged(folder)


def test_the_base_takes_over_the_childs_identity_and_complete_digests(three) -> None:
    folder, _ = three
    second = folder.points()[1]
    child = second.disks[0].chain[0]
    merged(folder)
    oldest = folder.points()[0]
    assert oldest.id == second.id
    base = oldest.disks[0].chain
    assert [layer.file for layer in base] == ["disk0/base.vhdx"]
    assert base[0].data_write_guid == child.data_write_guid
    info = vhdx.read_info(folder.path / "disk0/base.vhdx")
    assert (info.data_write_guid, info.log_is_dirty) == (child.data_write_guid, False)
    with DigestFile.open(folder.digests_path(oldest.id, "disk0")) as digests:
        assert digests.is_complete
    newest = vhdx.read_info(folder.path / folder.points()[1].disks[0].chain[0].file)
    assert newest.locator["relative_path"] == ".\\base.vhdx"
    assert newest.locator["parent_linkage"] == "{" + child.data_write_guid + "}"
    assert "parent_linkage2" not in newest.locator
    for name in ("base.vhdx", "ready.vhdx"):
        assert check_disk(folder.path / "disk0" / name).is_ok


def test_an_absolute_locator_keeps_the_hosts_view_of_the_folder(tmp_path: Path) -> None:
    folder = make_replica(tmp_path / "web01", states(2))
    ready = folder.path / "disk0/ready.vhdx"
    (parent,) = [layer.file for layer in folder.points()[1].disks[0].chain[:1]]
    info = vhdx.read_info(ready)
    with vhdx.open_vhdx(ready, writable=True, keep_data_write_guid=True) as disk:
        disk.set_parent_locator(
            info.locator["parent_linkage"],
            info.locator["relative_path"],
            "D:\\Replicas\\web01\\" + parent.replace("/", "\\"),
        )
    merged(folder)
    locator = vhdx.read_info(ready).locator
    assert locator["absolute_win32_path"] == "D:\\Replicas\\web01\\disk0\\base.vhdx"


def test_sessions_go_on_after_a_merge(three) -> None:
    folder, contents = three
    merged(folder)
    more = {disk: bytearray(data) for disk, data in contents[-1].items()}
    more["disk1"][:PIECE] = b"n" * PIECE
    add_point(folder, more)
    check_points(folder, [*contents[1:], more])


def test_an_old_chain_goes_as_a_whole_with_its_last_point(tmp_path: Path) -> None:
    contents = states(2)
    bigger = {disk: bytearray(data) for disk, data in contents[-1].items()}
    bigger["disk0"] += bytes(MiB - 512) + b"\x07" * PIECE
    contents += [bigger, {**bigger, "disk1": noise(9, SIZE)}]
    folder = make_replica(tmp_path / "web01", contents)
    chain = [layer.file for layer in folder.points()[2].disks[0].chain]
    assert chain == [f"disk0/{folder.points()[2].id}.vhdx"]
    merged(folder)
    check_points(folder, contents[1:])
    assert (folder.path / "disk0/base.vhdx").exists()
    merged(folder)
    check_points(folder, contents[2:])
    assert not (folder.path / "disk0/base.vhdx").exists()
    assert (folder.path / "disk1/base.vhdx").exists()
    merged(folder)
    check_points(folder, contents[3:])
    assert folder.unknown_files() == []


def test_a_disk_that_is_gone_or_excluded_later_loses_its_files(tmp_path: Path) -> None:
    contents = states(3)
    for state in contents[1:]:
        del state["disk1"]
    folder = make_replica(tmp_path / "web01", contents)
    merged(folder)
    check_points(folder, contents[1:])
    assert not (folder.path / "disk1/base.vhdx").exists()


def test_progress_is_told_and_a_fenced_writer_stops(three) -> None:
    folder, contents = three
    seen: list[tuple[int, int]] = []
    lease = WriterLease.acquire(folder, "old")

    def progress(done: int, total: int) -> None:
        if not seen:
            WriterLease.acquire(folder, "new", take_over=True).release()
        seen.append((done, total))

    with pytest.raises(Fenced):
        merge_oldest(folder, lease, progress)
    lease.release()
    assert seen
    check_points(folder, contents[1:])
    with WriterLease.acquire(folder, "next") as again:
        assert finish_merge(folder, again)
    check_points(folder, contents[1:])


def test_a_stopped_process_in_the_middle_keeps_others_out_of_the_merge_only(three) -> None:
    folder, contents = three
    with ByteLock(folder.lock_path, MERGE_BYTE):
        with pytest.raises(ReplicaBusy, match="has not ended"):
            merged(folder)
        check_points(folder, contents)
    merged(folder)
    check_points(folder, contents[1:])


def test_no_merge_but_while_the_replica_is_ready(three) -> None:
    folder, contents = three
    with WriterLease.acquire(folder, "x") as lease:
        lease.update(state=ReplicaState.FAILOVER)
        with pytest.raises(IllegalTransition):
            merge_oldest(folder, lease)
        lease.update(state=ReplicaState.READY)
    check_points(folder, contents)


def test_a_touched_file_stops_the_merge_before_it_begins(three) -> None:
    folder, contents = three
    path = folder.path / folder.points()[1].disks[1].chain[0].file
    with vhdx.open_vhdx(path, writable=True) as disk:
        disk.write(0, b"!" * 512)
    with pytest.raises(PointDamaged):
        merged(folder)
    assert pending_merge(folder) is None
    assert len(folder.points()) == len(contents)


def test_another_child_of_the_base_stops_the_merge(three) -> None:
    folder, contents = three
    other = folder.path / "disk0" / "mounted.vhdx"
    vhdx.create_child(other, folder.path / "disk0/base.vhdx").close()
    with pytest.raises(ReplicaConflict, match=r"mounted\.vhdx is another child"):
        merged(folder)
    check_points(folder, contents)
    other.unlink()
    merged(folder)
    check_points(folder, contents[1:])


def test_no_space_is_said_before_anything_changes(three, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, contents = three
    before = files_of(folder)
    monkeypatch.setattr(merging, "free_bytes", lambda path: 3 * MiB)
    for can_punch in (True, False):
        with pytest.raises(DiskFull) as caught:
            merged(folder, can_punch=can_punch)
        assert caught.value.needed > caught.value.available == 3 * MiB
    assert files_of(folder) == before
    check_points(folder, contents)


def test_with_little_space_the_merge_goes_in_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 24 * MiB
    base = {"disk0": bytearray(size)}
    full = {"disk0": noise(3, size, 1.0)}
    last = {"disk0": bytearray(full["disk0"])}
    last["disk0"][5 * MiB : 6 * MiB] = bytes(MiB)
    folder = make_replica(tmp_path / "web01", [base, full, last])
    monkeypatch.setattr(merging, "_SLICE_BYTES", 4 * MiB)
    monkeypatch.setattr(merging, "free_bytes", lambda path: 20 * MiB)
    most = 0
    child = folder.path / folder.points()[1].disks[0].chain[0].file

    def progress(done: int, total: int) -> None:
        nonlocal most
        used = (child.stat().st_blocks + child.with_name("base.vhdx").stat().st_blocks) * 512
        most = max(most, used)

    with pytest.raises(DiskFull):
        merged(folder, can_punch=False)
    merged(folder, progress=progress, can_punch=True)
    check_points(folder, [full, last])
    assert most < size + 12 * MiB


def test_merges_that_were_killed_leave_no_space_that_nothing_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that a killed merge had appended and not committed stayed in the base for good, once
    for each kill."""
    size = 6 * MiB
    contents = [{"disk0": bytearray(size)}, {"disk0": noise(4, size, 1.0)}]
    contents.append({"disk0": bytearray(contents[1]["disk0"])})
    contents[2]["disk0"][:PIECE] = b"t" * PIECE
    folder = make_replica(tmp_path / "web01", contents)
    base = folder.path / "disk0" / "base.vhdx"
    before = base.stat().st_size
    flush = VhdxDisk.flush

    def reached(disk: VhdxDisk) -> None:
        killpoints.reach("before the commit")
        flush(disk)

    monkeypatch.setattr(VhdxDisk, "flush", reached)
    for _ in range(3):
        with crashing(monkeypatch, kill_point=("before the commit", 1)) as crasher:
            merged(folder)
        assert crasher.is_dead
        assert base.stat().st_size == before + size
    merged(folder)
    check_points(folder, contents[1:])
    assert base.stat().st_size == before + size
    report = check_disk(base)
    assert (report.findings, report.notes) == ((), ())


def test_damaged_digests_of_the_retired_point_are_computed_from_the_disk(three) -> None:
    folder, contents = three
    oldest = folder.points()[0]
    path = folder.digests_path(oldest.id, "disk0")
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    folder.digests_path(oldest.id, "disk1").unlink()
    merged(folder)
    check_points(folder, contents[1:])


def test_a_damaged_merge_record_stops_everything_by_name(three) -> None:
    folder, _ = three
    (folder.path / "merge.json").write_bytes(b"{}")
    with pytest.raises(ReplicaConflict, match=r"merge\.json"):
        pending_merge(folder)


def test_a_merge_record_that_leads_outside_is_refused(three, tmp_path: Path) -> None:
    from standby.road.records import encoded_record

    folder, _ = three
    pending = merging.PendingMerge(1, "x", (), ("../victim",))
    (folder.path / "merge.json").write_bytes(encoded_record("merge", 1, pending))
    with pytest.raises(ReplicaConflict, match="victim"):
        pending_merge(folder)


def test_the_merge_record_of_version_1_is_read(tmp_path: Path) -> None:
    folder = make_replica(tmp_path / "web01", states(2))
    golden = Path(__file__).parent / "golden" / "merge-1.json"
    shutil.copy(golden, folder.path / "merge.json")
    pending = pending_merge(folder)
    assert pending is not None
    assert pending.point == "20260301T220000Z-0001"
    assert pending.disks[0].child_guid == "22222222-2222-4222-8222-222222222222"
    assert pending.removed == ("points/20260301T220000Z-0001.disk0.digests",)
    assert pending.guids_of("disk0/base.vhdx") == {
        "11111111-1111-4111-8111-111111111111",
        "22222222-2222-4222-8222-222222222222",
    }
    assert pending.guids_of("disk0/ready.vhdx") == {"33333333-3333-4333-8333-333333333333"}
    assert pending.guids_of("disk0/other.vhdx") == frozenset()
