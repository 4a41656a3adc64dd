"""The writer lease: one writer, fencing, and records that an old writer cannot put back."""

from __future__ import annotations

from pathlib import Path

import pytest

from clocks import HeldClock
from replicas import add_point, new_replica
from standby import killpoints
from standby.errors import Fenced, IllegalTransition, ReplicaBusy
from standby.files import ByteLock
from standby.model.replica import Action, ReplicaState
from standby.road.lease import WriterLease, is_processing
from standby.road.naming import ready_candidate, temporary_name
from standby.road.replica import GUARD_BYTE, ReplicaFolder, encode_replica


def test_a_lease_keeps_the_generation_and_others_out(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    assert not is_processing(folder)
    with WriterLease.acquire(folder, "one") as lease:
        assert lease.generation == 1
        assert is_processing(folder)
        lease.check()
        with pytest.raises(ReplicaBusy, match="session one"):
            WriterLease.acquire(folder, "two")
    assert not is_processing(folder)
    with WriterLease.acquire(folder, "two") as lease:
        assert lease.generation == 1


def test_taking_over_raises_the_generation_and_fences_the_old_writer(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    point = add_point(folder)
    old = WriterLease.acquire(folder, "old")
    with WriterLease.acquire(folder, "new", take_over=True) as new:
        assert new.generation == 2
        assert folder.record().points == (point.id,)
        with pytest.raises(Fenced, match="generation 1 is fenced, the current generation is 2"):
            old.check()
        with pytest.raises(Fenced):
            old.update(damage="x")
        with pytest.raises(Fenced):
            old.write(folder.record_path, b"x")
        new.check()
    old.release()


def test_taking_over_nobody_raises_the_generation_too(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    for generation in (2, 3, 4):
        with WriterLease.acquire(folder, "new", take_over=True) as lease:
            assert lease.generation == generation


def test_a_released_lease_is_no_lease(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    lease = WriterLease.acquire(folder, "one")
    lease.release()
    with pytest.raises(Fenced):
        lease.check()


def test_a_session_is_refused_in_a_state_that_forbids_it(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    with WriterLease.acquire(folder, "setup") as lease:
        lease.update(state=ReplicaState.FAILOVER)
    with pytest.raises(IllegalTransition, match="cannot run a session while it is failover"):
        WriterLease.acquire(folder, "session")
    with pytest.raises(IllegalTransition):
        WriterLease.acquire(folder, "session", take_over=True)
    assert folder.record().generation == 1
    WriterLease.acquire(folder, "undo", action=Action.UNDO_FAILOVER).release()


def test_a_take_over_does_not_wait_for_a_hung_update(tmp_path: Path) -> None:
    clock = HeldClock()
    folder = new_replica(tmp_path / "r", clock)
    with ByteLock(folder.lock_path, GUARD_BYTE + 1):
        with WriterLease.acquire(folder, "old") as old:
            with pytest.raises(ReplicaBusy, match="locked for"):
                old.update(damage="x")
        began = clock.monotonic()
        with WriterLease.acquire(folder, "new", take_over=True) as new:
            assert new.generation == 2
            new.update(damage="x")  # and is not kept waiting by it either
        assert 10 <= clock.monotonic() - began < 11


def test_a_take_over_steps_past_one_that_hangs(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    with ByteLock(folder.lock_path, 2):
        with WriterLease.acquire(folder, "new", take_over=True) as lease:
            assert lease.generation == 3


def test_a_take_over_removes_what_older_writers_could_still_rename(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    stale = [
        folder.path / temporary_name("replica.json", 1),
        folder.points_path / temporary_name("20260301T220000Z-0a1b.json", 1),
        folder.disk_path("disk0") / ready_candidate(1),
        folder.disk_path("disk0") / ".20260301T220000Z-0a1b.1.partial.digests.0a1b2c3d.new",
        folder.disk_path("disk0") / ".20260301T220000Z-0a1b.1.extents.0a1b2c3d.new",
        folder.points_path / ".20260301T220000Z-0a1b.disk0.digests.0a1b2c3d.new",
    ]
    for path in stale:
        path.write_bytes(b"")
    with WriterLease.acquire(folder, "new", take_over=True):
        assert not any(path.exists() for path in stale)


def test_a_take_over_leaves_what_newer_writers_have_under_way(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    newer = [
        folder.path / temporary_name("replica.json", 3),
        folder.disk_path("disk0") / ".20260301T220000Z-0a1b.3.partial.digests.0a1b2c3d.new",
    ]
    for path in newer:
        path.write_bytes(b"")
    with WriterLease.acquire(folder, "new", take_over=True) as lease:
        assert lease.generation == 2
        assert all(path.exists() for path in newer)


@pytest.mark.parametrize("moment", ["before the raise", "before the sweep"])
def test_an_old_record_that_comes_back_meanwhile_does_not_stay(tmp_path: Path, moment: str) -> None:
    """A writer woken in the middle of a take-over renames its record over the raised one."""
    folder = new_replica(tmp_path / "r")
    point = add_point(folder)
    old = folder.record()
    wanted = {"before the raise": "lease checked", "before the sweep": "generation raised"}[moment]
    done = []

    def wake(name: str) -> None:
        if name == wanted and not done:
            done.append(name)
            folder.record_path.write_bytes(encode_replica(old))

    killpoints.install(wake)
    try:
        lease = WriterLease.acquire(folder, "new", take_over=True)
    finally:
        killpoints.install(None)
    assert done
    assert (folder.record().generation, folder.record().points) == (2, (point.id,))
    lease.check()
    lease.release()


def test_a_point_that_arrives_in_the_middle_of_a_take_over_counts(tmp_path: Path) -> None:
    """The old writer saw its own generation after its rename: it may have reported the point."""
    folder = new_replica(tmp_path / "r")
    first = add_point(folder)
    second = add_point(folder)
    kept = folder.point_path(second.id).read_bytes()
    folder.point_path(second.id).unlink()

    def wake(name: str) -> None:
        if name == "generation raised":
            folder.point_path(second.id).write_bytes(kept)

    killpoints.install(wake)
    try:
        WriterLease.acquire(folder, "new", take_over=True).release()
    finally:
        killpoints.install(None)
    assert [point.id for point in folder.points()] == [first.id, second.id]


def test_updates_of_live_processes_do_not_lose_each_other(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    again = ReplicaFolder(folder.path, HeldClock())
    with WriterLease.acquire(folder, "one") as lease:
        lease.update(damage="a")
        WriterLease(again, "one", 1, lease._lock).update(serve_pid=7)
        record = lease.update(serve_started="now")
    assert (record.damage, record.serve_pid, record.serve_started) == ("a", 7, "now")


def test_an_update_without_a_change_writes_nothing(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    with WriterLease.acquire(folder, "one") as lease:
        before = folder.record_path.stat().st_mtime_ns, folder.record_path.stat().st_ino
        lease.update(damage="")
        assert (folder.record_path.stat().st_mtime_ns, folder.record_path.stat().st_ino) == before
