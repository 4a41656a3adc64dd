"""Failover, undo and permanent failover with only the folder alive."""

from __future__ import annotations

from pathlib import Path

import pytest

import replicas
from replicas import (
    DISKS,
    VM_DATA,
    HeldClock,
    add_point,
    append_bytes,
    new_point,
    new_replica,
    pattern,
    ready_content,
    ready_path,
    run_vm,
    sealed_disk,
)
from standby.errors import (
    Fenced,
    IllegalTransition,
    MachineRunning,
    NoSuchPoint,
    PointDamaged,
    ReplicaConflict,
    ReplicaStarted,
    TargetRefuses,
)
from standby.model.replica import Action, ReplicaState
from standby.model.target_rules import TargetRules
from standby.road import ready
from standby.road.committing import commit
from standby.road.failing_over import (
    check_startable,
    failover,
    findings,
    mark_damaged,
    permanent_failover,
    started,
    status,
    undo_failover,
)
from standby.road.lease import WriterLease
from standby.units import MiB


def test_failover_to_the_newest_point_moves_no_file(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    point = add_point(folder)
    before = {name: ready_path(folder, name).stat().st_ino for name in DISKS}
    done = failover(folder)
    assert (done.point, done.renewed, done.fenced, done.warnings) == (point, False, False, ())
    record = folder.record()
    assert (record.state, record.failover_point) == (ReplicaState.FAILOVER, point.id)
    assert record.generation == 2
    assert {name: ready_path(folder, name).stat().st_ino for name in DISKS} == before
    check_startable(folder)
    assert folder.points()[-1] == point


def test_failover_to_an_older_point_puts_the_ready_layers_above_it(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    first = add_point(folder)
    add_point(folder)
    done = failover(folder, point=first.id)
    assert done.renewed
    for name in DISKS:
        assert ready_content(folder, name) == pattern(first.id, name)
    replicas.check_replica(folder)


def test_failover_to_a_time_takes_the_newest_point_before_it(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    first = add_point(folder)
    add_point(folder)
    assert failover(folder, point=first.taken_at).point == first


def test_failover_fences_a_running_session_and_its_partial_files_stay(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    first = add_point(folder)
    session = WriterLease.acquire(folder, "session-9")
    point = new_point(folder, session)
    sealed = {name: sealed_disk(folder, session, point.id, name) for name in DISKS}
    done = failover(folder)
    assert (done.point, done.fenced) == (first, True)
    assert "session session-9" in done.warnings[0]
    with pytest.raises(Fenced):
        commit(folder, session, point, sealed)
    session.release()
    assert all(item.partial_path.exists() for item in sealed.values())
    undo_failover(folder)
    assert all(item.partial_path.exists() for item in sealed.values())


def test_a_session_is_refused_during_a_failover_and_runs_again_after_undo(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    failover(folder)
    with pytest.raises(IllegalTransition):
        add_point(folder)
    undo_failover(folder)
    add_point(folder)
    assert len(replicas.check_replica(folder)) == 2


def test_undo_drops_what_the_vm_wrote(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    first = add_point(folder)
    second = add_point(folder)
    failover(folder, point=first.id)
    run_vm(folder)
    assert ready_content(folder, "disk0") == VM_DATA
    record = undo_failover(folder)
    assert (record.state, record.failover_point, record.ready_point) == (
        ReplicaState.READY,
        "",
        second.id,
    )
    for name in DISKS:
        assert ready_content(folder, name) == pattern(second.id, name)
    folder.check_untouched()


def test_undo_is_refused_while_the_vm_runs(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    failover(folder)
    run_vm(folder)
    with pytest.raises(MachineRunning):
        undo_failover(folder, is_running=lambda: True)
    assert ready_content(folder, "disk0") == VM_DATA
    undo_failover(folder, is_running=lambda: False)


def test_every_verb_names_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    before = folder.record()
    with monkeypatch.context() as patched:
        patched.setattr("os.access", lambda path, mode: False)
        with pytest.raises(ReplicaConflict, match="mounted read-only, or this user has no right"):
            failover(folder)
        with pytest.raises(ReplicaConflict, match="mounted read-only"):
            undo_failover(folder, drop_writes=True)
    assert folder.record() == before
    failover(folder)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ReplicaConflict, match="mounted read-only"):
        permanent_failover(folder, TargetRules())
    assert folder.record().state is ReplicaState.FAILOVER


def test_undo_without_a_failover_is_refused(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    with pytest.raises(IllegalTransition, match="cannot undo-failover while it is ready"):
        undo_failover(folder)


def test_a_running_source_has_to_be_known_about(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    with pytest.raises(ReplicaConflict, match="--source-may-run"):
        failover(folder, source_running=True)
    assert folder.record().generation == 1
    done = failover(folder, source_running=True, source_may_run=True)
    assert done.warnings == ("the source VM is running",)


def test_a_damaged_newest_point_is_named_and_an_older_one_can_be_taken(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    first, second = add_point(folder), add_point(folder)
    append_bytes(folder.chain_paths(second, "disk1")[0])
    with WriterLease.acquire(folder, "s") as lease:
        mark_damaged(folder, lease, "found by verify")
    with pytest.raises(PointDamaged, match=second.id):
        failover(folder)
    assert folder.record().state is ReplicaState.DAMAGED
    assert failover(folder, point=first.id).point == first
    assert ready_content(folder, "disk1") == pattern(first.id, "disk1")


def test_a_replica_that_was_damaged_is_so_again_after_an_undone_failover(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    with WriterLease.acquire(folder, "s") as lease:
        mark_damaged(folder, lease, "found by verify")
    assert "found by verify" in failover(folder).warnings[0]
    assert undo_failover(folder).state is ReplicaState.DAMAGED
    with pytest.raises(IllegalTransition):
        add_point(folder)


@pytest.mark.parametrize(
    ("damaged", "intact", "said"),
    [
        (0, 1, ""),
        (1, 0, "the VM may start from damaged data"),
        (0, None, "was not verified since"),
    ],
)
def test_a_failover_warns_of_a_damaged_or_unverified_point_alone(
    tmp_path: Path, damaged: int, intact: int | None, said: str
) -> None:
    folder = new_replica(tmp_path / "r")
    ids = [add_point(folder).id, add_point(folder).id]
    sound = [] if intact is None else [ids[intact]]
    with WriterLease.acquire(folder, "s") as lease:
        mark_damaged(folder, lease, "found by verify", [ids[damaged]], sound)
    warnings = failover(folder, point=ids[1]).warnings
    assert len(warnings) == bool(said)
    assert all(said in text and "found by verify" in text for text in warnings)
    assert undo_failover(folder).state is ReplicaState.DAMAGED


def test_damage_found_during_a_failover_leaves_it_one_that_can_be_undone(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    failover(folder)
    run_vm(folder)
    with WriterLease.acquire(folder, "verify", action=Action.MARK_DAMAGED) as lease:
        record = mark_damaged(folder, lease, "found by verify")
    assert (record.state, record.damage) == (ReplicaState.FAILOVER, "found by verify")
    check_startable(folder)
    assert undo_failover(folder).state is ReplicaState.DAMAGED
    folder.check_ready()


def test_a_failover_is_undone_above_the_newest_undamaged_point(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    first, second = add_point(folder), add_point(folder)
    layer = folder.chain_paths(second, "disk1")[0]
    failover(folder, point=first.id)
    run_vm(folder)
    with layer.open("r+b") as file:
        file.truncate(1 * MiB)
    record = undo_failover(folder)
    assert (record.state, record.ready_point) == (ReplicaState.DAMAGED, first.id)
    assert second.id in record.damage
    assert ready_content(folder, "disk0") == pattern(first.id, "disk0")
    assert failover(folder, point=first.id).point == first


def test_a_failover_without_any_undamaged_point_is_not_undone(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    point = add_point(folder)
    failover(folder)
    append_bytes(folder.chain_paths(point, "disk1")[0])
    with pytest.raises(PointDamaged, match=point.id):
        undo_failover(folder)
    assert folder.record().state is ReplicaState.FAILOVER
    assert not any("undo-failover" in item for item in status(folder).actions)


def test_only_what_would_be_accepted_is_possible_now(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    first, second = add_point(folder), add_point(folder)
    assert status(folder).actions[0].startswith("standby job start")
    append_bytes(folder.chain_paths(second, "disk1")[0])
    assert status(folder).actions == (
        f"standby replica failover r --point {first.id}",
        "standby replica verify r",
        "standby replica verify r --repair",
    )
    append_bytes(folder.chain_paths(first, "disk1")[0])
    assert not any(" failover " in item for item in status(folder).actions)


def test_after_writes_outside_of_a_failover_their_two_ways_are_possible(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    run_vm(folder)
    assert status(folder).actions == (
        "standby replica failover r --adopt",
        "standby replica verify r",
        "standby replica verify r --repair",
        "standby replica undo-failover r --drop-writes",
    )


def test_a_damaged_record_of_the_newest_point_is_not_passed_over(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    first, second = add_point(folder), add_point(folder)
    folder.point_path(second.id).write_bytes(b"{}")
    with pytest.raises(PointDamaged, match=second.id):
        failover(folder)
    assert failover(folder, point=first.id).point == first


def test_failover_without_any_point_says_so(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    with pytest.raises(IllegalTransition):
        failover(folder)
    add_point(folder)
    with pytest.raises(NoSuchPoint):
        failover(folder, point="20200101T000000Z-0000")


def test_failover_makes_ready_layers_that_are_missing(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder, renew=False)
    assert failover(folder).renewed
    undo_failover(folder)
    ready_path(folder).unlink()
    done = failover(folder)
    assert done.renewed
    assert ready_content(folder, "disk0") == pattern(done.point.id, "disk0")


def test_a_point_on_the_clock_of_another_day_fails_over_by_its_age(tmp_path: Path) -> None:
    clock = HeldClock()
    folder = new_replica(tmp_path / "r", clock)
    add_point(folder)
    clock.advance(86400)
    assert failover(folder).record.failover_started_at == f"{clock.now():%Y-%m-%dT%H:%M:%SZ}"


# --- started outside of a failover -----------------------------------------------------------


def test_writes_outside_of_a_failover_stop_everything_until_asked(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    point = add_point(folder)
    run_vm(folder)
    assert started(folder) is not None
    with pytest.raises(ReplicaStarted, match="--adopt"):
        failover(folder)
    with WriterLease.acquire(folder, "s") as lease:
        with pytest.raises(ReplicaStarted):
            ready.renew(folder, lease, point)
    with pytest.raises(ReplicaStarted, match="--drop-writes"):
        undo_failover(folder)
    assert ready_content(folder, "disk0") == VM_DATA


def test_adopting_the_writes_equals_a_failover(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    point = add_point(folder)
    run_vm(folder)
    done = failover(folder, adopt=True)
    assert (done.point, done.renewed) == (point, False)
    assert folder.record().state is ReplicaState.FAILOVER
    assert ready_content(folder, "disk0") == VM_DATA
    undo_failover(folder)
    assert ready_content(folder, "disk0") == pattern(point.id, "disk0")


def test_writes_are_adopted_only_above_their_own_point(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    first = add_point(folder)
    add_point(folder)
    run_vm(folder)
    with pytest.raises(ReplicaConflict, match="above the point"):
        failover(folder, point=first.id, adopt=True)
    assert ready_content(folder, "disk0") == VM_DATA


def test_writes_above_an_older_point_are_adopted_with_a_newer_one_there(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    first = add_point(folder)
    add_point(folder, renew=False)
    run_vm(folder)
    assert failover(folder, adopt=True).point == first


def test_dropping_the_writes_makes_the_replica_ready_again(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    point = add_point(folder)
    run_vm(folder)
    record = undo_failover(folder, drop_writes=True)
    assert record.state is ReplicaState.READY
    assert ready_content(folder, "disk0") == pattern(point.id, "disk0")
    folder.check_untouched()


def test_dropping_the_writes_of_a_damaged_replica_leaves_it_damaged(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    point = add_point(folder)
    run_vm(folder)
    with WriterLease.acquire(folder, "s") as lease:
        mark_damaged(folder, lease, "found by verify")
    with pytest.raises(ReplicaStarted):
        failover(folder)
    assert undo_failover(folder, drop_writes=True).state is ReplicaState.DAMAGED
    assert failover(folder).point == point


def test_a_damaged_merge_record_does_not_stand_in_the_way_of_a_failover(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    (folder.path / "merge.json").write_bytes(b"{")
    assert any("merge.json" in finding for finding in findings(folder))
    failover(folder)


# --- permanent -------------------------------------------------------------------------------


def test_permanent_failover_ends_the_replica_and_removes_no_file(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    failover(folder)
    before = sorted(path.name for path in folder.path.rglob("*.vhdx"))
    assert permanent_failover(folder, TargetRules()).state is ReplicaState.PERMANENT
    assert sorted(path.name for path in folder.path.rglob("*.vhdx")) == before
    with pytest.raises(IllegalTransition):
        add_point(folder)


@pytest.mark.parametrize("rules", [TargetRules(keep_points_min=1), TargetRules(keep_days_min=7)])
def test_the_targets_own_rules_refuse_a_permanent_failover(
    tmp_path: Path, rules: TargetRules
) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    failover(folder)
    with pytest.raises(TargetRefuses, match="keep 1 restore points"):
        permanent_failover(folder, rules)
    assert folder.record().state is ReplicaState.FAILOVER


def test_permanent_failover_needs_a_failover(tmp_path: Path) -> None:
    folder = new_replica(tmp_path / "r")
    add_point(folder)
    with pytest.raises(IllegalTransition):
        permanent_failover(folder, TargetRules())
