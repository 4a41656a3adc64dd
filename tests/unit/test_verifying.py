"""Verifying restore points, rebuilding digests, repairing pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from chains import add_point, check_points, make_replica
from crashing import crashing
from partials import content_of, noise
from standby import killpoints
from standby.digesting import PAGE, PIECE, DigestFile
from standby.disk import vhdx
from standby.disk.check import check_disk
from standby.disk.vhdx import VhdxDisk
from standby.errors import Fenced, NoSuchPoint, PointDamaged
from standby.files import File
from standby.model.extent import Extent
from standby.model.replica import Action
from standby.road import repairing
from standby.road.lease import WriterLease
from standby.road.repairing import repair
from standby.road.replica import ReplicaFolder
from standby.road.verifying import rebuild_digests, verify_point, verify_replica
from standby.server.replicas import Replicas
from standby.units import MiB

SIZE = PAGE + 2 * MiB + 512


def states() -> list[dict]:
    first = {"disk0": noise(1, SIZE, 0.2), "disk1": noise(2, MiB, 0.5)}
    first["disk0"][: 8 * PIECE] = b"\x11" * (8 * PIECE)
    second = {disk: bytearray(data) for disk, data in first.items()}
    second["disk0"][2 * PIECE : 4 * PIECE] = b"\x22" * (2 * PIECE)
    second["disk0"][PAGE : PAGE + MiB] = bytes(MiB)
    third = {disk: bytearray(data) for disk, data in second.items()}
    third["disk0"][3 * PIECE : 5 * PIECE] = b"\x33" * (2 * PIECE)
    third["disk0"][-512:] = b"\x33" * 512
    return [first, second, third]


@pytest.fixture
def three(tmp_path: Path) -> tuple[ReplicaFolder, list[dict]]:
    contents = states()
    return make_replica(tmp_path / "web01", contents), contents


def layer_path(folder: ReplicaFolder, point: int, disk: str = "disk0") -> Path:
    (part,) = [item for item in folder.points()[point].disks if item.disk_id == disk]
    return folder.path / part.chain[0].file


def flip(path: Path, offset: int, data: bytes = b"\xff\x00\xff") -> None:
    """Damage what a layer stores at a disk offset, below its format."""
    with vhdx.open_vhdx(path) as disk:
        (place,) = [row[2] for row in disk.mapped(offset // 512 * 512, offset // 512 * 512 + 512)]
    with File(path, writable=True) as file:
        file.write(data, int(place) + offset % 512)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("device", [True, False])
def test_sound_points_verify(three, threads: int, device: bool) -> None:
    folder, contents = three
    reports: list[tuple[int, int]] = []
    for point in folder.points():
        verdict = verify_point(
            folder,
            point.id,
            threads=threads,
            device=device,
            progress=lambda done, total: reports.append((done, total)),
        )
        assert verdict.is_ok
        assert verdict.root_ok
        assert verdict.digests_ok
        assert verdict.damaged == {}
    assert reports[-1][0] == reports[-1][1]
    assert [verdict.is_ok for verdict in verify_replica(folder)] == [True] * len(contents)


def test_a_point_that_is_not_there_is_said(three) -> None:
    with pytest.raises(NoSuchPoint):
        verify_point(three[0], "20990101T000000Z-0000")


def test_a_flipped_bit_is_found_in_every_point_that_shows_it(three) -> None:
    folder, _ = three
    base = layer_path(folder, 0)
    flip(base, PIECE)  # seen by all three
    flip(base, 2 * PIECE)  # overlaid from the second point on
    flip(base, PAGE + 5 * PIECE if states()[0]["disk0"][PAGE + 5 * PIECE] else PIECE)
    flip(layer_path(folder, 2), SIZE - 512)
    last = SIZE // PIECE * PIECE
    wanted = [
        [Extent(PIECE, 2 * PIECE)],
        [Extent(PIECE, PIECE)],
        [Extent(PIECE, PIECE), Extent(last, SIZE - last)],
    ]
    points = folder.points()
    for point, together, extents in zip(points, verify_replica(folder), wanted, strict=True):
        alone = verify_point(folder, point.id)
        for verdict in (alone, together):
            found = [item for item in verdict.damaged["disk0"] if item.offset < PAGE]
            assert found == [item for item in extents if item.offset < PAGE]
            assert not verdict.is_ok
            assert not verdict.root_ok
            assert verdict.digests_ok
        assert alone.damaged == together.damaged


def test_a_replica_is_verified_with_each_layer_read_once(
    three, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = three
    verdicts = verify_replica(folder)
    first, second, third = (sum(disk.bytes_read for disk in item.disks) for item in verdicts)
    assert first > 3 * MiB
    assert 0 < second < first // 4
    assert 0 < third < first // 4


def test_what_the_digests_do_not_know_is_damage_too(three) -> None:
    """Bytes where there should be zeros, and zeros where there should be bytes."""
    folder, _ = three
    path = layer_path(folder, 2)
    with vhdx.open_vhdx(path, writable=True, keep_data_write_guid=True) as disk:
        disk.write(PAGE + MiB // 2, b"\x01" * 512)
        disk.zero(3 * PIECE, PIECE)
    verdict = verify_point(folder, folder.points()[2].id)
    assert verdict.damaged["disk0"] == (
        Extent(3 * PIECE, PIECE),
        Extent(PAGE + MiB // 2, PIECE),
    )


def test_digests_are_not_believed_when_their_root_is_another(three) -> None:
    folder, contents = three
    ids = [point.id for point in folder.points()]
    path = folder.digests_path(ids[2], "disk0")
    path.write_bytes(folder.digests_path(ids[1], "disk0").read_bytes())
    verdict = verify_point(folder, ids[2])
    assert not verdict.digests_ok
    assert verdict.root_ok  # the content was read, and it has the recorded root
    assert "disk0.digests" in verdict.disks[0].digests_problem
    assert verdict.is_intact
    rebuild_digests(folder, ids[2])
    check_points(folder, contents)


@pytest.mark.parametrize("damage", ["missing", "garbage", "page"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_damaged_digests_are_rebuilt_from_sound_disks(three, number: int, damage: str) -> None:
    folder, contents = three
    point = folder.points()[number]
    path = folder.digests_path(point.id, "disk0")
    before = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "garbage":
        path.write_bytes(b"nothing")
    else:
        data = bytearray(before)
        data[4096] ^= 1
        path.write_bytes(data)
    verdict = verify_point(folder, point.id)
    assert not verdict.is_ok
    rebuild_digests(folder, point.id, "disk0")
    assert path.read_bytes() == before
    check_points(folder, contents)


def test_complete_digests_can_be_asked_for(three) -> None:
    folder, contents = three
    point = folder.points()[1]
    rebuild_digests(folder, point.id, complete=True)
    with DigestFile.open(folder.digests_path(point.id, "disk0")) as digests:
        assert digests.is_complete
        assert digests.root.hex() == point.disks[0].root
    check_points(folder, contents)


def test_digests_of_damaged_content_are_not_made(three) -> None:
    folder, _ = three
    flip(layer_path(folder, 0), PIECE)
    point = folder.points()[1]
    path = folder.digests_path(point.id, "disk0")
    before = path.read_bytes()
    with pytest.raises(PointDamaged, match="was committed"):
        rebuild_digests(folder, point.id)
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_opened_is_a_problem_not_a_crash(three) -> None:
    folder, _ = three
    layer_path(folder, 1).write_bytes(b"gone")
    verdicts = verify_replica(folder)
    assert [item.is_ok for item in verdicts] == [True, False, False]
    assert verdicts[1].disks[0].problem
    assert verdicts[1].disks[1].is_ok


# --- repairing ---------------------------------------------------------------------------------


def repaired(folder: ReplicaFolder, number: int, read_piece):
    with WriterLease.acquire(folder, "repair") as lease:
        verdict = verify_point(folder, folder.points()[number].id)
        return repair(folder, lease, verdict, read_piece)


def test_pieces_are_healed_in_the_layer_that_holds_them(three) -> None:
    folder, contents = three
    flip(layer_path(folder, 0), PIECE)
    flip(layer_path(folder, 1), 2 * PIECE)
    flip(layer_path(folder, 2), SIZE - 512)
    before = {path: path.stat().st_size for path in folder.path.glob("disk*/*.vhdx")}
    asked: list[tuple[str, int, int]] = []

    def read_piece(disk: str, offset: int, length: int) -> bytes:
        asked.append((disk, offset, length))
        return bytes(contents[2][disk][offset : offset + length])

    report = repaired(folder, 2, read_piece)
    last = SIZE // PIECE * PIECE
    assert asked == [
        ("disk0", PIECE, PIECE),
        ("disk0", 2 * PIECE, PIECE),
        ("disk0", last, SIZE - last),
    ]
    assert report.is_complete
    assert report.healed_bytes == 2 * PIECE + SIZE - last
    check_points(folder, contents)  # all points: the layers are shared; sizes and GUIDs as before
    assert {path: path.stat().st_size for path in before} == before


def test_wrong_or_missing_pieces_are_listed_and_not_written(three) -> None:
    folder, contents = three
    for piece in (0, 1, 5, 6, 7):
        flip(layer_path(folder, 0), piece * PIECE)

    def read_piece(disk: str, offset: int, length: int) -> bytes | None:
        if offset == 0:
            return bytes(contents[0][disk][offset : offset + length])
        if offset == PIECE:
            return b"\x99" * length
        if offset == 5 * PIECE:
            return b"short"
        return None

    report = repaired(folder, 0, read_piece)
    assert not report.is_complete
    assert report.healed_bytes == PIECE
    assert report.missing == {"disk0": (Extent(PIECE, PIECE), Extent(5 * PIECE, 3 * PIECE))}
    verdict = verify_point(folder, folder.points()[0].id)
    assert verdict.damaged == report.missing


def test_a_piece_whose_mapping_is_lost_goes_into_the_points_own_layer(three) -> None:
    folder, contents = three
    with vhdx.open_vhdx(layer_path(folder, 2), writable=True, keep_data_write_guid=True) as disk:
        disk.forget(0, disk.block_size)
    report = repaired(
        folder, 2, lambda disk, offset, length: bytes(contents[2][disk][offset : offset + length])
    )
    assert report.is_complete
    check_points(folder, contents)


def test_a_layer_that_had_to_grow_is_recorded_with_its_new_size(three) -> None:
    folder, contents = three
    path = layer_path(folder, 1, "disk1")
    with vhdx.open_vhdx(path, writable=True, keep_data_write_guid=True) as disk:
        disk.zero(0, PIECE)  # "stored" zeros where the parent has data
    report = repaired(
        folder, 1, lambda disk, offset, length: bytes(contents[1][disk][offset : offset + length])
    )
    assert report.healed_bytes > 0
    assert report.is_complete
    check_points(folder, contents)


def content_reader(contents: dict):
    return lambda disk, offset, length: bytes(contents[disk][offset : offset + length])


def test_repairs_that_were_killed_leave_no_space_that_nothing_uses(
    three, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, contents = three
    path = layer_path(folder, 2)
    size = path.stat().st_size
    last = SIZE // MiB * MiB  # the block at the file's end
    for action in (lambda disk: disk.forget(last, SIZE - last), VhdxDisk.take_back_unowned):
        with vhdx.open_vhdx(path, writable=True, keep_data_write_guid=True) as disk:
            action(disk)
    assert path.stat().st_size < size
    flush = VhdxDisk.flush

    def reached(disk: VhdxDisk) -> None:
        killpoints.reach("before the commit")
        flush(disk)

    monkeypatch.setattr(VhdxDisk, "flush", reached)
    for _ in range(3):
        with crashing(monkeypatch, kill_point=("before the commit", 1)) as crasher:
            repaired(folder, 2, content_reader(contents[2]))
        assert crasher.is_dead
        assert path.stat().st_size == size
    assert repaired(folder, 2, content_reader(contents[2])).is_complete
    check_points(folder, contents)
    report = check_disk(path, parents=folder.chain_paths(folder.points()[2], "disk0")[1:])
    assert (path.stat().st_size, report.findings, report.notes) == (size, (), ())


def test_a_repair_that_was_killed_before_it_recorded_a_longer_file_is_ended_by_the_next(
    three, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was damaged then, and no repair mended it: the file was not as its records said."""
    folder, contents = three
    with vhdx.open_vhdx(
        layer_path(folder, 1, "disk1"), writable=True, keep_data_write_guid=True
    ) as disk:
        disk.zero(0, PIECE)
    record_sizes = repairing._record_sizes

    def reached(*arguments) -> None:
        killpoints.reach("before the record")
        record_sizes(*arguments)

    monkeypatch.setattr(repairing, "_record_sizes", reached)
    with crashing(monkeypatch, kill_point=("before the record", 1)) as crasher:
        repaired(folder, 1, content_reader(contents[1]))
    assert crasher.is_dead
    replicas = Replicas.of_folder(folder.path.parent)
    verdicts = replicas.verify(folder.name)
    assert [(item.root_ok, item.is_ok) for item in verdicts] == [
        (True, True),
        (True, False),
        (True, False),
    ]
    with WriterLease.acquire(folder, "repair", action=Action.REPAIR) as lease:
        reports = [
            repair(folder, lease, item, content_reader(contents[1])) for item in verdicts[1:]
        ]
    assert all(report.is_complete for report in reports)
    assert all(item.is_ok for item in replicas.verify(folder.name))
    check_points(folder, contents)


def spoil(folder: ReplicaFolder, number: int, offset: int) -> Path:
    """Damage one byte of the digests of disk0 at a point."""
    path = folder.digests_path(folder.points()[number].id, "disk0")
    with File(path, writable=True) as file:
        file.write(bytes([file.read(offset, 1)[0] ^ 1]), offset)
    return path


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("offset", [0, 5000, -60])
@pytest.mark.parametrize("number", [0, 2])
def test_a_flipped_byte_of_the_digests_is_told_from_damage_and_mended(
    three, number: int, offset: int, whole: bool
) -> None:
    folder, contents = three
    path = folder.digests_path(folder.points()[number].id, "disk0")
    before = path.read_bytes()
    spoil(folder, number, offset % len(before))
    verdicts = (
        verify_replica(folder) if whole else [verify_point(folder, folder.points()[number].id)]
    )
    assert all(verdict.is_intact for verdict in verdicts)
    assert not all(verdict.digests_ok for verdict in verdicts)
    assert any("disk0.digests" in item.disks[0].digests_problem for item in verdicts)
    with WriterLease.acquire(folder, "repair") as lease:
        reports = [repair(folder, lease, item, lambda *_: None) for item in verdicts]
    assert all(report.is_complete for report in reports)
    mended = [report.digests for report in reports if report.digests]
    assert mended == [{"disk0": (folder.points()[number].id,)}]
    assert path.read_bytes() == before
    check_points(folder, contents)


def test_digests_of_a_newer_point_are_mended_with_those_below_it(three) -> None:
    folder, contents = three
    spoil(folder, 0, 5000)
    spoil(folder, 2, 0)
    report = repaired(folder, 2, lambda *_: None)
    first, _, third = (point.id for point in folder.points())
    assert report.digests == {"disk0": (first, third)}
    check_points(folder, contents)


def test_digests_and_another_page_of_the_disk_are_mended_together(three) -> None:
    folder, contents = three
    spoil(folder, 2, 5000)  # the leaves of the first page
    flip(layer_path(folder, 2), SIZE - 512)  # in the second
    verdict = verify_point(folder, folder.points()[2].id)
    last = SIZE // PIECE * PIECE
    assert verdict.damaged["disk0"] == (Extent(last, SIZE - last),)
    assert not verdict.digests_ok
    report = repaired(
        folder, 2, lambda disk, offset, length: bytes(contents[2][disk][offset : offset + length])
    )
    assert report.is_complete
    check_points(folder, contents)


@pytest.mark.parametrize("offset", [0, 5000])
def test_a_disk_that_nothing_proves_stays_damaged(three, offset: int) -> None:
    folder, _ = three
    path = spoil(folder, 0, offset)
    before = path.read_bytes()
    flip(layer_path(folder, 0), PIECE)
    for verdict in (verify_replica(folder)[0], verify_point(folder, folder.points()[0].id)):
        assert not verdict.is_intact
        assert not verdict.root_ok
        assert not verdict.digests_ok
    report = repaired(folder, 0, lambda *_: None)
    assert not report.is_complete
    assert "disk0" in report.problems
    assert path.read_bytes() == before


def test_damage_below_shows_through_a_point_with_damaged_digests(three) -> None:
    folder, _ = three
    spoil(folder, 1, 5000)
    flip(layer_path(folder, 0), PAGE + MiB + PIECE)
    first, second, _ = verify_replica(folder)
    assert first.damaged
    assert first.digests_ok
    assert not second.is_intact
    assert not second.digests_ok


def test_a_fenced_repair_stops(three) -> None:
    folder, contents = three
    flip(layer_path(folder, 0), PIECE)
    lease = WriterLease.acquire(folder, "repair")
    verdict = verify_point(folder, folder.points()[0].id)

    def read_piece(disk: str, offset: int, length: int) -> bytes:
        WriterLease.acquire(folder, "other", take_over=True).release()
        return bytes(contents[0][disk][offset : offset + length])

    with pytest.raises(Fenced):
        repair(folder, lease, verdict, read_piece)
    lease.release()
    assert verify_point(folder, folder.points()[0].id).damaged["disk0"] == (Extent(PIECE, PIECE),)


def test_disks_that_cannot_be_opened_are_named_as_problems(three) -> None:
    folder, _ = three
    layer_path(folder, 2).write_bytes(b"gone")
    report = repaired(folder, 2, lambda disk, offset, length: None)
    assert "disk0" in report.problems
    assert not report.is_complete


def test_sessions_go_on_above_a_repaired_point(three) -> None:
    folder, contents = three
    flip(layer_path(folder, 0), PIECE)
    repaired(
        folder, 2, lambda disk, offset, length: bytes(contents[2][disk][offset : offset + length])
    )
    more = {disk: bytearray(data) for disk, data in contents[-1].items()}
    more["disk0"][:PIECE] = b"m" * PIECE
    add_point(folder, more)
    check_points(folder, [*contents, more])


def test_verifying_reads_nothing_of_what_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"disk0": bytearray(PAGE)}
    folder = make_replica(tmp_path / "web01", [content])
    assert content_of(layer_path(folder, 0)) == content["disk0"]
    read = []
    monkeypatch.setattr(VhdxDisk, "read_into", lambda *arguments: read.append(arguments))
    assert verify_point(folder, folder.points()[0].id).is_ok
    assert read == []
