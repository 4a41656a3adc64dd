"""RULES 15's test: a merge is killed at every kill point, at every change of a file, in the middle
of writes, and with the power going too. Each time the remaining points open and hash equal, and
doing it again ends where an undisturbed merge ends."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from chains import check_points, make_replica
from clocks import HeldClock
from crashing import crashing
from partials import noise
from standby import killpoints
from standby.digesting import PIECE, DigestFile
from standby.disk import vhdx
from standby.road import merging
from standby.road.committing import recover
from standby.road.lease import WriterLease
from standby.road.merging import merge_oldest, pending_merge
from standby.road.replica import ReplicaFolder
from standby.units import MiB

SIZE = 3 * MiB + 512
KILL_POINTS = (
    "merge: intent",
    "merge: record removed",
    "merge: payload",
    "merge: base closed",
    "merge: locator",
    "merge: record rewritten",
    "merge: base guid",
    "merge: linkage2 cleared",
    "merge: child removed",
)


def states() -> list[dict]:
    """Three points: `disk0` changes, gets zeros in a block and a block of zeros, and a block that
    it had not; `disk1` begins a new chain at the second point. Few runs of each: every one is a
    change more to be killed at."""
    first = {"disk0": noise(1, SIZE, 0.5), "disk1": noise(2, MiB // 2, 0.2)}
    first["disk0"][MiB : 2 * MiB] = noise(3, MiB, 1.0)
    first["disk0"][2 * MiB : 3 * MiB] = bytes(MiB)
    first["disk0"][20 * PIECE : 23 * PIECE] = b"1" * (3 * PIECE)
    second = {disk: bytearray(data) for disk, data in first.items()}
    second["disk0"][3 * PIECE : 5 * PIECE] = b"2" * (2 * PIECE)
    for piece in (20, 22):
        second["disk0"][piece * PIECE : (piece + 1) * PIECE] = bytes(PIECE)
    second["disk0"][MiB : 2 * MiB] = bytes(MiB)
    for piece in (2, 9):
        start = 2 * MiB + piece * PIECE
        second["disk0"][start : start + PIECE] = b"2" * PIECE
    second["disk0"][-512:] = b"2" * 512
    second["disk1"] += bytes(MiB // 2)
    third = {disk: bytearray(data) for disk, data in second.items()}
    third["disk0"][4 * PIECE : 6 * PIECE] = b"3" * (2 * PIECE)
    third["disk0"][MiB + PIECE : MiB + 2 * PIECE] = b"3" * PIECE
    third["disk1"][:PIECE] = b"3" * PIECE
    return [first, second, third]


@pytest.fixture(scope="module")
def contents() -> list[dict]:
    return states()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, contents: list[dict]) -> Path:
    """A replica of three points and one of two, to be copied for every kill."""
    root = tmp_path_factory.mktemp("prepared")
    make_replica(root / "three", contents)
    make_replica(root / "two", contents[:2])
    return root


def copied(prepared: Path, name: str, tmp_path: Path) -> ReplicaFolder:
    path = tmp_path / "web01"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(prepared / name, path)
    return ReplicaFolder(path, HeldClock())


def retire(folder: ReplicaFolder) -> None:
    with WriterLease.acquire(folder, "retention") as lease:
        merge_oldest(folder, lease)


def is_before(folder: ReplicaFolder, wanted: list[dict]) -> bool:
    """Whether nothing of the merge has counted yet."""
    return len(folder.points()) == len(wanted) + 1


def finish(folder: ReplicaFolder, wanted: list[dict]) -> None:
    """What the next session does: recover, finish the merge, or begin it again."""
    with WriterLease.acquire(folder, "next") as lease:
        recover(folder, lease)
        merging.finish_merge(folder, lease)
        if is_before(folder, wanted):
            merge_oldest(folder, lease)


def check_finished(folder: ReplicaFolder, wanted: list[dict], *, digests: bool = True) -> None:
    check_points(folder, wanted, digests=digests)
    assert pending_merge(folder) is None
    assert folder.unknown_files() == []
    oldest = folder.points()[0]
    for disk in oldest.disks:
        assert len(disk.chain) == 1
        info = vhdx.read_info(folder.path / disk.chain[0].file)
        assert (info.log_is_dirty, info.has_parent) == (False, False)
        with DigestFile.open(folder.digests_path(oldest.id, disk.disk_id)) as digests:
            assert digests.is_complete
    for path in folder.path.glob("disk*/*.vhdx"):
        info = vhdx.read_info(path)
        assert not info.log_is_dirty
        assert "parent_linkage2" not in info.locator


def base_sizes(folder: ReplicaFolder) -> list[int]:
    """How long the oldest point's files are: kills leave nothing in them that nothing uses."""
    return [(folder.path / disk.chain[0].file).stat().st_size for disk in folder.points()[0].disks]


def check_killed(
    folder: ReplicaFolder, wanted: list[dict], all_states: list[dict], *, digests: bool = True
) -> None:
    """Right after the kill: what counts is intact; after finishing: all is as undisturbed.
    (The digests in between are looked at by the test of the named steps.)"""
    check_points(folder, all_states if is_before(folder, wanted) else wanted, digests=False)
    finish(folder, wanted)
    check_finished(folder, wanted, digests=digests)


@pytest.mark.parametrize("name", ["three", "two"])
def test_every_named_step_survives_a_kill(
    name: str,
    prepared: Path,
    contents: list[dict],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = contents if name == "three" else contents[:2]
    reached: list[str] = []
    killpoints.install(reached.append)
    folder = copied(prepared, name, tmp_path)
    retire(folder)
    killpoints.install(None)
    check_finished(folder, before[1:])
    assert set(KILL_POINTS) <= set(reached)
    for point in KILL_POINTS:
        for time in range(1, reached.count(point) + 1):
            folder = copied(prepared, name, tmp_path)
            with crashing(monkeypatch, kill_point=(point, time)) as crasher:
                retire(folder)
            assert crasher.is_dead
            check_points(folder, before if is_before(folder, before[1:]) else before[1:])
            check_killed(folder, before[1:], before)


@pytest.mark.parametrize("name", ["three", "two"])
@pytest.mark.parametrize("manner", ["whole", "torn", "power"])
def test_every_change_of_a_file_survives_a_kill(
    name: str,
    manner: str,
    prepared: Path,
    contents: list[dict],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = contents if name == "three" else contents[:2]
    folder = copied(prepared, name, tmp_path)
    with crashing(monkeypatch) as crasher:
        retire(folder)
    total, sizes = crasher.count, base_sizes(folder)
    assert total > 50
    # Every change once, and a sample in the other manners.
    step = 1 if manner == "whole" and name == "three" else 4
    for at in range(1 + step // 2, total + 1, step):
        folder = copied(prepared, name, tmp_path)
        with crashing(
            monkeypatch,
            at,
            torn=manner == "torn",
            power_seed=at if manner == "power" else None,
        ) as crasher:
            retire(folder)
        assert crasher.is_dead
        check_killed(folder, before[1:], before, digests=at % 5 == 0)
        assert all(now <= size for now, size in zip(base_sizes(folder), sizes, strict=True)), at


def test_finishing_that_is_killed_too_still_ends_right(
    prepared: Path, contents: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in (12, 29, 47):
        folder = copied(prepared, "three", tmp_path)
        with crashing(monkeypatch, at):
            retire(folder)
        for again in range(3, 100, 21):
            with crashing(monkeypatch, again, torn=True, power_seed=again) as crasher:
                finish(folder, contents[1:])
            check_points(folder, contents if is_before(folder, contents[1:]) else contents[1:])
            if not crasher.is_dead:
                break
        finish(folder, contents[1:])
        check_finished(folder, contents[1:])


def test_slices_that_give_space_back_survive_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 6 * MiB
    all_states = [{"disk0": bytearray(size)}, {"disk0": noise(4, size, 1.0)}]
    all_states.append({"disk0": bytearray(all_states[1]["disk0"])})
    all_states[2]["disk0"][: 2 * PIECE] = b"t" * (2 * PIECE)
    make_replica(tmp_path / "three", all_states)
    monkeypatch.setattr(merging, "_SLICE_BYTES", MiB)
    monkeypatch.setattr(merging, "free_bytes", lambda path: 8 * MiB)
    target = tmp_path / "work"
    target.mkdir()
    folder = copied(tmp_path, "three", target)
    with crashing(monkeypatch) as crasher:
        retire(folder)
    check_finished(folder, all_states[1:])
    sizes = base_sizes(folder)
    for at in range(2, crasher.count, 9):
        folder = copied(tmp_path, "three", target)
        with crashing(monkeypatch, at, power_seed=at if at % 2 else None):
            retire(folder)
        check_killed(folder, all_states[1:], all_states)
        assert base_sizes(folder) <= sizes, at


@pytest.mark.parametrize("point", ["merge: record removed", "merge: base closed", "merge: locator"])
def test_a_take_over_in_the_middle_finishes_the_merge(
    point: str,
    prepared: Path,
    contents: list[dict],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = copied(prepared, "three", tmp_path)
    with crashing(monkeypatch, kill_point=(point, 1)):
        retire(folder)
    with WriterLease.acquire(folder, "other", take_over=True) as lease:
        assert merging.finish_merge(folder, lease)
    check_finished(folder, contents[1:])
