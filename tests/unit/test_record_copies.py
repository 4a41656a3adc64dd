"""Commit records that are lost: the copy beside them, the way back that proves every byte."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import replicas
from chains import add_point, check_points, make_replica
from clocks import HeldClock
from partials import noise
from standby import killpoints
from standby.disk import open_disk, vhdx
from standby.errors import DiskFull, PointDamaged, SessionStopped
from standby.files import File
from standby.model.replica import Action, ReplicaState
from standby.road import merging
from standby.road.failing_over import failover, undo_failover
from standby.road.lease import WriterLease
from standby.road.merging import finish_merge, merge_oldest
from standby.road.record_copies import lost_records, renew_copies
from standby.road.records import encoded_record
from standby.road.replica import ReplicaFolder, encode_point
from standby.road.restoring import restored
from standby.road.verifying import PointVerdict
from standby.server.replicas import Replicas
from standby.units import MiB

SIZE = MiB + 512
PIECE = 4096


def states() -> list[dict]:
    first = {"disk0": noise(1, SIZE, 0.2), "disk1": noise(2, MiB // 2, 0.5)}
    first["disk0"][:PIECE] = b"\x11" * PIECE
    second = {disk: bytearray(data) for disk, data in first.items()}
    second["disk0"][2 * PIECE : 4 * PIECE] = b"\x22" * (2 * PIECE)
    third = {disk: bytearray(data) for disk, data in second.items()}
    third["disk0"][-512:] = b"\x33" * 512
    return [first, second, third]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A replica of three points, to be copied."""
    path = tmp_path_factory.mktemp("dr") / "web01"
    make_replica(path, states())
    return path


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> ReplicaFolder:
    return copied(prepared, tmp_path)


def copied(prepared: Path, tmp_path: Path) -> ReplicaFolder:
    path = tmp_path / "dr" / "web01"
    shutil.copytree(prepared, path)
    clock = HeldClock()
    clock.advance(86400)
    return ReplicaFolder(path, clock)


def at_target(folder: ReplicaFolder) -> Replicas:
    return Replicas.of_folder(folder.path.parent)


def flip(path: Path, offset: int) -> None:
    with File(path, writable=True) as file:
        byte = file.read(offset, 1)[0]
        file.write(bytes([byte ^ 1]), offset)


def verify(folder: ReplicaFolder) -> list:
    return at_target(folder).verify("web01")


def check_way_back(folder: ReplicaFolder, which: int, before: bytes, ids: list[str]) -> None:
    """The point is named and its content found sound; a session is refused; a repair puts exactly
    the record back that was there."""
    with pytest.raises(PointDamaged, match=ids[which]):
        folder.check_untouched()
    verdicts = verify(folder)
    assert [verdict.point_id for verdict in verdicts] == ids
    lost = verdicts[which]
    assert lost.record_problem.startswith("its commit record: ")
    assert lost.has_copy
    assert not lost.is_ok
    assert not lost.is_intact
    assert len(lost.disks) == 2
    assert all(disk.is_ok for disk in lost.disks)
    assert all(item.is_ok for item in verdicts if item is not lost)
    assert folder.record().state is ReplicaState.DAMAGED
    (report,) = at_target(folder).repair("web01", verdicts)
    assert report.is_record_restored
    assert report.is_complete
    assert folder.point_path(ids[which]).read_bytes() == before
    assert all(item.is_ok for item in verify(folder))
    assert folder.record().state is ReplicaState.READY


REGIONS = [
    b'"standby"', b"restore point", b'"format": 1', b'"crc32"', b'"crc32": "', b'"record"',
    b'"id": "2', b'"parent"', b'"generation"', b'"taken_at": "2', b'"committed_at": "2',
    b'"consistency": "', b'"session"', b'"machine"', b"web01", b'"virtual_size": ', b'"root": "',
    b'"chain"', b'"file": "', b'"size": ', b'"data_write_guid": "', b'"state_files"',
    b'"changed_bytes": ',
]  # fmt: skip


def test_a_flipped_byte_anywhere_in_a_record_is_found_and_the_record_comes_back(
    folder: ReplicaFolder,
) -> None:
    ids = [point.id for point in folder.points()]
    for number, region in enumerate(REGIONS):
        path = folder.point_path(ids[number % 3])
        before = path.read_bytes()
        flip(path, before.index(region) + len(region) - 1)
        assert [lost.point_id for lost in lost_records(folder)] == [ids[number % 3]], region
        with WriterLease.acquire(folder, "repair") as lease:
            report = restored(folder, lease, PointVerdict(ids[number % 3]), [])
        assert report.is_record_restored, region
        assert path.read_bytes() == before, region
    check_points(folder, states())


def cut(path: Path) -> None:
    path.write_bytes(b"")


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def put_another(path: Path) -> None:
    (other,) = [p for p in sorted(path.parent.glob("*.json")) if p != path][:1]
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize(
    "damage",
    [cut, halve, zero, put_another, Path.unlink, lambda path: flip(path, 300)],
    ids=["cut", "half", "zeros", "of another point", "deleted", "flipped"],
)
def test_a_lost_record_comes_back_from_its_copy_once_every_disk_is_read(
    folder: ReplicaFolder, which: int, damage: Callable[[Path], None]
) -> None:
    ids = [point.id for point in folder.points()]
    path = folder.point_path(ids[which])
    before = path.read_bytes()
    damage(path)
    check_way_back(folder, which, before, ids)
    check_points(folder, states())
    add_point(folder, states()[2])  # the chain goes on
    assert len(folder.points()) == 4


def test_other_points_fail_over_while_a_record_is_lost(folder: ReplicaFolder) -> None:
    first, second, third = folder.points()
    folder.point_path(third.id).unlink()
    with pytest.raises(PointDamaged, match="only its copy is there"):
        failover(folder)
    assert failover(folder, point=second.id).point == second
    undo_failover(folder)
    assert lost_records(folder)[0].point_id == third.id  # the take-over kept its place
    verdicts = verify(folder)
    assert [verdict.is_intact for verdict in verdicts] == [True, True, False]
    (report,) = at_target(folder).repair("web01", verdicts)
    assert report.is_record_restored
    assert failover(folder).point == third
    assert [point.id for point in folder.points()] == [first.id, second.id, third.id]


# --- what is not proved is not promised ------------------------------------------------------


def refused(folder: ReplicaFolder, point_id: str) -> str:
    """Why `verify --repair` leaves the record as it is."""
    path = folder.point_path(point_id)
    before = path.read_bytes() if path.exists() else None
    verdicts = verify(folder)
    reports = {item.point_id: item for item in at_target(folder).repair("web01", verdicts)}
    assert (path.read_bytes() if path.exists() else None) == before
    report = reports[point_id]
    assert not report.is_complete
    assert not report.is_record_restored
    assert not all(item.is_ok for item in verify(folder))
    assert folder.record().state is ReplicaState.DAMAGED
    return report.record_problem


def test_without_a_copy_a_record_is_not_made_up(folder: ReplicaFolder) -> None:
    point = folder.points()[1]
    folder.copy_path(point.id).unlink()
    cut(folder.point_path(point.id))
    (verdict,) = at_target(folder).verify("web01", point=point.id)
    assert not verdict.has_copy
    assert verdict.disks == []
    assert "no copy of it is there" in verdict.record_problem
    assert refused(folder, point.id) == "no copy of it is there"


def test_a_damaged_copy_proves_nothing(folder: ReplicaFolder) -> None:
    point = folder.points()[1]
    flip(folder.copy_path(point.id), 300)
    cut(folder.point_path(point.id))
    assert "its copy is damaged, too: checksum" in refused(folder, point.id)
    folder.point_path(point.id).unlink()  # then it is a point that is not there, as ever
    assert lost_records(folder) == []


def test_an_older_copy_is_not_of_the_files_of_now(folder: ReplicaFolder) -> None:
    second = folder.points()[1]
    older = folder.copy_path(second.id).read_bytes()
    with WriterLease.acquire(folder, "session") as lease:
        merge_oldest(folder, lease)
    folder.copy_path(second.id).write_bytes(older)
    cut(folder.point_path(second.id))
    assert older != folder.copy_path(folder.points()[0].id).read_bytes()
    (lost,) = lost_records(folder)
    assert lost.copy is None
    assert refused(folder, second.id) == lost.without_copy


def test_a_copy_of_a_fenced_writer_makes_no_point(folder: ReplicaFolder) -> None:
    newest = folder.points()[-1]
    void = replace(newest, id="20990101T000000Z-0001", generation=99)
    folder.copy_path(void.id).write_bytes(encode_point(void))
    assert folder.scan_points().damaged == ()
    folder.check_untouched()
    folder.point_path(void.id).write_bytes(b"")
    assert "fenced writer" in lost_records(folder)[0].without_copy


def test_a_record_of_a_later_release_is_left_alone(folder: ReplicaFolder) -> None:
    point = folder.points()[2]
    later = replace(point, format=2, session="of a later release")
    folder.point_path(point.id).write_bytes(encoded_record("restore point", 2, later))
    assert refused(folder, point.id) == "it is sound, of another release: use that one"


def test_a_record_is_not_written_above_a_damaged_disk(folder: ReplicaFolder) -> None:
    point = folder.points()[1]
    flip(folder.point_path(point.id), 300)
    spoil(folder, point, 2 * PIECE)
    assert refused(folder, point.id) == ("nothing proves its copy: disk0 of the point is damaged")


def test_a_point_that_is_gone_and_cannot_be_proved_can_be_done_without(
    folder: ReplicaFolder,
) -> None:
    point = folder.points()[1]
    folder.point_path(point.id).unlink()
    spoil(folder, point, 2 * PIECE)
    copy = folder.copy_path(point.id)
    assert f"move {copy} away, too, and start the job with --accept-loss" in refused(
        folder, point.id
    )
    copy.unlink()
    assert folder.scan_points().damaged == ()


def spoil(folder: ReplicaFolder, point, offset: int) -> None:
    """Damage what the point's own layer of disk0 stores at a disk offset."""
    path = folder.path / point.disks[0].chain[0].file
    with vhdx.open_vhdx(path) as disk:
        (place,) = [row[2] for row in disk.mapped(offset, offset + 512)]
    flip(path, int(place))


def test_a_record_comes_back_after_the_pieces_that_somebody_still_has(
    folder: ReplicaFolder, tmp_path: Path
) -> None:
    point = folder.points()[1]
    before = folder.point_path(point.id).read_bytes()
    flip(folder.point_path(point.id), 300)
    spoil(folder, point, 2 * PIECE)
    raw = tmp_path / "disk0.raw"
    raw.write_bytes(states()[1]["disk0"])

    @contextlib.contextmanager
    def source() -> Iterator[dict]:
        with open_disk(raw) as disk:
            yield {"disk0": disk}

    verdicts = verify(folder)
    assert [len(verdict.damaged) for verdict in verdicts] == [0, 1, 1]
    with WriterLease.acquire(folder, "repair", action=Action.REPAIR) as lease:
        report = restored(folder, lease, verdicts[1], [source])
    assert (report.healed_bytes, report.is_record_restored) == (PIECE, True)
    assert folder.point_path(point.id).read_bytes() == before
    assert all(item.is_ok for item in verify(folder))
    check_points(folder, states())


def test_a_record_older_than_its_files_is_put_right_by_its_copy(folder: ReplicaFolder) -> None:
    second = folder.points()[1]
    older = folder.point_path(second.id).read_bytes()
    with WriterLease.acquire(folder, "session") as lease:
        merge_oldest(folder, lease)
    now = folder.point_path(second.id).read_bytes()
    folder.point_path(second.id).write_bytes(older)  # from a backup, say
    ids = [point.id for point in folder.points()]
    check_way_back(folder, 0, now, ids)
    check_points(folder, states()[1:])


def test_a_record_newer_than_its_copy_is_never_judged_by_it(folder: ReplicaFolder) -> None:
    point = folder.points()[2]
    newer = replace(point, session="a later rewriting")
    folder.point_path(point.id).write_bytes(encode_point(newer))
    assert lost_records(folder) == []
    assert all(item.is_ok for item in verify(folder))
    with WriterLease.acquire(folder, "session") as lease:
        assert renew_copies(folder, lease, folder.points()) == []
    assert folder.read_point(folder.copy_path(point.id)) == newer


def test_a_repair_of_a_record_is_cancelled_while_it_reads(folder: ReplicaFolder) -> None:
    cut(folder.point_path(folder.points()[0].id))
    verdicts = verify(folder)

    def stop(done: int, total: int) -> None:
        raise SessionStopped("verify", "web01")

    with pytest.raises(SessionStopped):
        at_target(folder).repair("web01", verdicts, stop)
    assert len(lost_records(folder)) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is of POSIX")
def test_killed_while_it_writes_the_record_again_a_repair_is_repeated(
    folder: ReplicaFolder, tmp_path: Path
) -> None:
    point = folder.points()[1]
    before = folder.point_path(point.id).read_bytes()
    halve(folder.point_path(point.id))
    verify(folder)  # marks it damaged
    base = tmp_path / "base"
    shutil.copytree(folder.path, base)
    names = replicas.trace("restore", folder.path, point.id)
    assert {"record restored:1", "lease checked:1"} <= set(names)
    for name in names:
        shutil.rmtree(folder.path)
        shutil.copytree(base, folder.path)
        assert replicas.run_child("restore", folder.path, point.id, kill=name) == "", name
        left = folder.point_path(point.id).read_bytes()
        assert left in (before, before[: len(before) // 2]), name
        assert replicas.run_child("restore", folder.path, point.id) in ("True", "False")
        assert folder.point_path(point.id).read_bytes() == before, name
        assert folder.copy_path(point.id).read_bytes() == before, name
        with WriterLease.acquire(folder, "session", action=Action.REPAIR) as lease:
            replicas.recover(folder, lease)
        assert list(folder.points_path.glob(".*")) == [], name
        check_points(folder, states())


# --- how copies are kept ---------------------------------------------------------------------


def check_copies(folder: ReplicaFolder) -> None:
    """Each record stands beside itself, and nothing else does."""
    copies = {path.stem: path.read_bytes() for path in folder.points_path.glob("*.copy")}
    records = {path.stem: path.read_bytes() for path in folder.points_path.glob("*.json")}
    assert copies == records


def test_a_commit_leaves_a_copy_of_its_record_which_is_no_unknown_file(
    folder: ReplicaFolder,
) -> None:
    check_copies(folder)
    assert folder.unknown_files() == []


def test_copies_that_are_missing_damaged_or_older_are_written_by_the_next_session(
    folder: ReplicaFolder,
) -> None:
    first, second, third = folder.points()
    folder.copy_path(first.id).unlink()  # a replica of before
    flip(folder.copy_path(second.id), 300)
    folder.copy_path(third.id).write_bytes(encode_point(replace(third, session="older")))
    folder.check_untouched()
    assert all(item.is_ok for item in verify(folder))
    with WriterLease.acquire(folder, "session") as lease:
        (said,) = renew_copies(folder, lease, folder.points())
        assert said.startswith(f"the copy of the commit record of {second.id} was damaged")
        check_copies(folder)
        assert renew_copies(folder, lease, folder.points()) == []


def test_a_copy_that_cannot_be_written_fails_nothing(
    folder: ReplicaFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = WriterLease.write

    def full(self: WriterLease, path: Path, data: bytes) -> None:
        if path.suffix == ".copy":
            raise DiskFull(str(path), 1, 0)
        write(self, path, data)

    monkeypatch.setattr(WriterLease, "write", full)
    done = add_point(folder, states()[2])
    assert folder.newest() == done
    assert not folder.copy_path(done.id).exists()


KILLED_AT = (
    "merge: intent",
    "merge: record removed",
    "merge: payload",
    "merge: record rewritten",
    "merge: base guid",
    "merge: child removed",
)


class Killed(BaseException):
    pass


def merge_killed_at(folder: ReplicaFolder, name: str) -> None:
    def handler(reached: str) -> None:
        if reached == name:
            raise Killed

    killpoints.install(handler)
    try:
        with WriterLease.acquire(folder, "session") as lease, pytest.raises(Killed):
            merge_oldest(folder, lease)
    finally:
        killpoints.install(None)


@pytest.mark.parametrize("name", KILLED_AT)
def test_a_merge_that_is_killed_takes_no_point_for_lost_and_keeps_its_copies(
    folder: ReplicaFolder, name: str
) -> None:
    merge_killed_at(folder, name)
    assert lost_records(folder) == []
    with WriterLease.acquire(folder, "session") as lease:
        assert finish_merge(folder, lease)
        assert renew_copies(folder, lease, folder.points()) == []
    check_copies(folder)
    assert len(folder.points()) == 2


def test_a_merge_that_is_killed_between_copy_and_record_leaves_no_copy_alone(
    folder: ReplicaFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = merging.remove_durably

    def killed_after_the_first(path: Path) -> None:
        remove(path)
        raise Killed

    with monkeypatch.context() as patched, WriterLease.acquire(folder, "session") as lease:
        patched.setattr(merging, "remove_durably", killed_after_the_first)
        with pytest.raises(Killed):
            merge_oldest(folder, lease)
    assert lost_records(folder) == []
    assert len(folder.points()) == 3
    with WriterLease.acquire(folder, "session") as lease:
        assert finish_merge(folder, lease)
    check_copies(folder)


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("name", KILLED_AT)
def test_a_record_that_is_lost_while_a_merge_is_cut_off_comes_back_after_it(
    folder: ReplicaFolder, name: str, which: int
) -> None:
    point = folder.points()[which]
    merge_killed_at(folder, name)
    cut(folder.point_path(point.id))
    with WriterLease.acquire(folder, "session") as lease:
        assert finish_merge(folder, lease)
    assert [lost.point_id for lost in lost_records(folder)] == [point.id]
    verdicts = verify(folder)
    (report,) = at_target(folder).repair("web01", verdicts)
    assert report.is_record_restored
    assert all(item.is_ok for item in verify(folder))
    check_points(folder, states()[1:])
