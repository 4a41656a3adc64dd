"""A writer killed at every kill point of a session, a failover and an undo: what follows converges.

Each verb runs in a child process of its own; its kill points are listed first, then it is killed at
each in turn, on a fresh copy of the same folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import replicas
from clocks import HeldClock
from replicas import DISKS, add_point, check_replica, new_replica, pattern, ready_content
from standby.model.replica import ReplicaState
from standby.road import ready
from standby.road.committing import recover
from standby.road.failing_over import failover, undo_failover
from standby.road.lease import WriterLease
from standby.road.replica import ReplicaFolder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is of POSIX")

NEXT = "20260401T000000Z-00aa"


def killed_everywhere(
    base: Path, work: Path, verb: str, *arguments: str, is_quick: bool = False
) -> Iterator[tuple[str, ReplicaFolder]]:
    """(kill point, the replica as the kill left it) for each kill point that the verb passes; a
    quick one leaves out those between the check of a lease and the rename behind it."""
    shutil.copytree(base, work)
    names = replicas.trace(verb, work, *arguments)
    if is_quick:
        names = [name for name in names if not name.startswith("lease checked")]
    shutil.rmtree(work)
    for name in names:
        shutil.copytree(base, work)
        assert replicas.run_child(verb, work, *arguments, kill=name) == "", name
        yield name, ReplicaFolder(work, HeldClock())
        shutil.rmtree(work)


def with_points(count: int) -> Callable[[Path], ReplicaFolder]:
    def build(path: Path) -> ReplicaFolder:
        folder = new_replica(path)
        for _ in range(count):
            add_point(folder)
        return folder

    return build


@pytest.mark.parametrize("count", [0, 1], ids=["first point", "later point"])
def test_a_session_killed_anywhere_leaves_a_whole_point_or_none(tmp_path: Path, count: int) -> None:
    before = with_points(count)(tmp_path / "base").points()
    seen = []
    for name, folder in killed_everywhere(tmp_path / "base", tmp_path / "work", "session", NEXT):
        seen.append(name.partition(":")[0])
        at_once = check_replica(folder)
        assert at_once[:count] == before, name
        with WriterLease.acquire(folder, "next") as lease:
            done = recover(folder, lease)
        assert recovered_twice_is_the_same(folder)
        points = check_replica(folder)
        assert len(points) in (count, count + 1), name
        assert points[: len(at_once)] == at_once, name
        was_pending = name != "lease checked:1" and "pending written" in seen
        assert (NEXT in [point.id for point in points]) == was_pending, name
        assert done.findings == (), name
        assert folder.unknown_files() == [], name
        if points:
            assert folder.record().state is ReplicaState.READY
            failover(folder)
            for disk_id in DISKS:
                assert ready_content(folder, disk_id) == pattern(points[-1].id, disk_id), name
    assert {"pending written", "file renamed", "point renamed", "ready layer renewed"} <= set(seen)


def recovered_twice_is_the_same(folder: ReplicaFolder) -> bool:
    with WriterLease.acquire(folder, "again") as lease:
        done = recover(folder, lease)
    return (done.committed, done.discarded) == ((), ())


def test_the_next_session_goes_on_after_a_kill_anywhere(tmp_path: Path) -> None:
    with_points(1)(tmp_path / "base")
    for name, folder in killed_everywhere(
        tmp_path / "base", tmp_path / "work", "session", NEXT, is_quick=True
    ):
        point = add_point(folder)
        points = check_replica(folder)
        assert points[-1] == point, name
        assert folder.record().ready_point == point.id
        folder.check_untouched()
        assert folder.unknown_files() == [], name


def test_recovery_killed_anywhere_is_recovered(tmp_path: Path) -> None:
    base = tmp_path / "base"
    with_points(1)(base)
    assert replicas.run_child("session", base, NEXT, kill="file renamed:2") == ""
    for name, folder in killed_everywhere(base, tmp_path / "work", "recover"):
        with WriterLease.acquire(folder, "next") as lease:
            recover(folder, lease)
        assert [point.id for point in check_replica(folder)][1:] == [NEXT], name


def test_taking_back_a_fenced_commit_can_be_killed_anywhere(tmp_path: Path) -> None:
    base = tmp_path / "base"
    with_points(1)(base)
    assert replicas.run_child("session", base, NEXT, kill="all files renamed") == ""
    WriterLease.acquire(ReplicaFolder(base), "fence", take_over=True).release()
    for name, folder in killed_everywhere(base, tmp_path / "work", "recover"):
        with WriterLease.acquire(folder, "next") as lease:
            recover(folder, lease)
        assert len(check_replica(folder)) == 1
        for disk_id in DISKS:
            partials = sorted(path.name for path in folder.disk_path(disk_id).iterdir())
            assert f"{NEXT}.1.partial.vhdx" in partials, name
            assert f"{NEXT}.1.partial.digests" in partials, name
            assert f"{NEXT}.1.extents" in partials, name
        assert folder.unknown_files() == [], name
        add_point(folder)
        check_replica(folder)


def test_a_take_over_killed_anywhere_can_be_repeated(tmp_path: Path) -> None:
    before = with_points(2)(tmp_path / "base").points()
    for name, folder in killed_everywhere(
        tmp_path / "base", tmp_path / "work", "take-over", is_quick=True
    ):
        points = check_replica(folder)
        assert points[:2] == before, name
        point = add_point(folder)
        assert check_replica(folder)[-1] == point


@pytest.mark.parametrize("which", [0, 1], ids=["older point", "newest point"])
def test_a_failover_killed_anywhere_can_be_repeated_or_left(tmp_path: Path, which: int) -> None:
    points = with_points(2)(tmp_path / "base").points()
    wanted = points[which].id
    for name, folder in killed_everywhere(tmp_path / "base", tmp_path / "work", "failover", wanted):
        left = tmp_path / "left"
        shutil.copytree(folder.path, left)
        is_over = folder.record().state is ReplicaState.FAILOVER
        if not is_over:
            folder.check_untouched()
            failover(folder, point=wanted)
        for disk_id in DISKS:
            assert ready_content(folder, disk_id) == pattern(wanted, disk_id), name
        other = ReplicaFolder(left, HeldClock())
        if is_over:
            undo_failover(other)
        else:
            with WriterLease.acquire(other, "next") as lease:
                ready.renew(other, lease, points[-1])
        other.check_untouched()
        for disk_id in DISKS:
            assert ready_content(other, disk_id) == pattern(points[-1].id, disk_id), name
        assert other.unknown_files() == [], name
        shutil.rmtree(left)


def test_an_undo_killed_anywhere_can_be_repeated(tmp_path: Path) -> None:
    base = tmp_path / "base"
    folder = with_points(2)(base)
    first, second = folder.points()
    failover(folder, point=first.id)
    for disk_id in DISKS:
        replicas.write_as_the_vm_would(
            folder.disk_path(disk_id) / "ready.vhdx",
            folder.chain_paths(first, disk_id),
            b"v" * 4096,
        )
    for name, work in killed_everywhere(base, tmp_path / "work", "undo"):
        if work.record().state is ReplicaState.FAILOVER:
            undo_failover(work)
        work.check_untouched()
        for disk_id in DISKS:
            assert ready_content(work, disk_id) == pattern(second.id, disk_id), name
