"""A writer stopped anywhere in its work, replaced, and woken: it changes nothing that counts.

The test of RULES 3 on the replica's own library: SIGSTOP, take over, commit, SIGCONT, verify.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import replicas
from replicas import (
    DISKS,
    Child,
    HeldClock,
    add_point,
    check_replica,
    new_replica,
    pattern,
    ready_content,
)
from standby.errors import ReplicaBusy
from standby.road.failing_over import failover
from standby.road.lease import WriterLease, is_processing
from standby.road.replica import ReplicaFolder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGSTOP and fork are of POSIX")

LATE = "20260401T000000Z-00aa"
LAST = "ready layer renewed:1"
"""Stopped there a session has nothing left to do: it ends as if it had not been stopped."""


@pytest.fixture
def children() -> Iterator[list[Child]]:
    """Child processes of the test; none outlives it."""
    started: list[Child] = []
    yield started
    for child in started:
        child.end()


def stopped_session(children: list[Child], folder: Path, at: str) -> Child:
    """A session in a process of its own, stopped at a kill point."""
    child = Child("session", folder, LATE, stop=at)
    children.append(child)
    child.wait_stopped()
    return child


def opened(path: Path) -> ReplicaFolder:
    return ReplicaFolder(path, HeldClock())


def test_a_writer_stopped_before_its_point_rename_is_fenced(
    tmp_path: Path, children: list[Child]
) -> None:
    folder = new_replica(tmp_path / "r")
    first = add_point(folder)
    stopped = stopped_session(children, folder.path, "all files renamed")
    assert is_processing(folder)
    with WriterLease.acquire(folder, "new", take_over=True) as lease:
        second = add_point(folder, lease)
    said = stopped.wake()
    assert said.startswith("Fenced: replica r: writer of generation 1 is fenced")
    assert check_replica(folder) == (first, second)
    folder.check_untouched()
    third = add_point(folder)
    assert check_replica(folder) == (first, second, third)


@pytest.mark.parametrize("count", [0, 1], ids=["first point", "later point"])
def test_a_writer_stopped_anywhere_changes_nothing_that_counts(
    tmp_path: Path, count: int, children: list[Child]
) -> None:
    base, work = tmp_path / "base", tmp_path / "work"
    folder = new_replica(base)
    for _ in range(count):
        add_point(folder)
    before = folder.points()
    shutil.copytree(base, work)
    names = replicas.trace("session", work, LATE)
    shutil.rmtree(work)
    for name in names:
        shutil.copytree(base, work)
        stopped = stopped_session(children, work, name)
        folder = opened(work)
        with WriterLease.acquire(folder, "new", take_over=True) as lease:
            mine = add_point(folder, lease)
        record = folder.record_path.read_bytes()
        points = check_replica(folder)
        assert points[:count] == before, name
        assert points[-1] == mine, name
        assert len(points) <= count + 2, name
        said = stopped.wake()
        assert said.startswith("Fenced: ") or name == LAST, (name, said)
        assert check_replica(folder) == points, name
        assert folder.record_path.read_bytes() == record, name
        folder.check_untouched()
        for disk_id in DISKS:
            assert ready_content(folder, disk_id) == pattern(mine.id, disk_id), name
        for file in folder.unknown_files():
            assert LATE in file or ".unclaimed." in file or file.endswith("base.vhdx"), (name, file)
        last = add_point(folder)
        assert check_replica(folder) == (*points, last), name
        shutil.rmtree(work)


def test_a_writer_stopped_in_its_first_session_cannot_become_the_base(
    tmp_path: Path, children: list[Child]
) -> None:
    """Stopped before any rename, with the new writer's transfer still under way when it wakes."""
    folder = new_replica(tmp_path / "r")
    stopped = stopped_session(children, folder.path, "pending written")
    with WriterLease.acquire(folder, "new", take_over=True) as lease:
        assert stopped.wake().startswith("Fenced: ")
        point = add_point(folder, lease)
    assert check_replica(folder) == (point,)


def test_a_failover_cuts_off_a_stopped_session_and_keeps_the_vms_writes(
    tmp_path: Path, children: list[Child]
) -> None:
    base, work = tmp_path / "base", tmp_path / "work"
    add_point(new_replica(base))
    shutil.copytree(base, work)
    names = replicas.trace("session", work, LATE)
    shutil.rmtree(work)
    for name in names:
        shutil.copytree(base, work)
        stopped = stopped_session(children, work, name)
        folder = opened(work)
        done = failover(folder)
        assert done.fenced
        written = {}
        for disk_id in DISKS:
            layer = folder.disk_path(disk_id) / "ready.vhdx"
            replicas.write_as_the_vm_would(
                layer, folder.chain_paths(done.point, disk_id), b"v" * 4096
            )
            written[layer] = layer.read_bytes()
        said = stopped.wake()
        assert said.split(":")[0] in ("Fenced", "IllegalTransition") or name == LAST, (name, said)
        assert folder.record() == done.record, name
        assert {layer: layer.read_bytes() for layer in written} == written, name
        shutil.rmtree(work)


def test_a_commit_under_recovery_by_a_stopped_writer_is_left_to_it(
    tmp_path: Path, children: list[Child]
) -> None:
    """Taking a file back from its final name cannot be fenced: meanwhile nobody uses the name."""
    folder = new_replica(tmp_path / "r")
    assert replicas.run_child("session", folder.path, LATE, kill="all files renamed") == ""
    WriterLease.acquire(folder, "fence", take_over=True).release()
    child = Child("recover", folder.path, stop="file taken back:1")
    children.append(child)
    child.wait_stopped()
    with WriterLease.acquire(folder, "new", take_over=True) as lease:
        with pytest.raises(ReplicaBusy, match="takes a commit back"):
            add_point(folder, lease)
        assert child.wake().startswith("Fenced: ")
        point = add_point(folder, lease)
    assert check_replica(folder) == (point,)
