"""Sessions and tasks in the state database: queued, taken once, moved on by legal steps only."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from clocks import NEW_YEAR, StepClock
from standby.errors import IllegalStep, ServerFenced, StateDatabaseError, UnknownName
from standby.model.report import SessionReport
from standby.model.session import (
    Reason,
    RequestKind,
    SessionRun,
    SessionState,
    TaskRun,
    TaskState,
)
from standby.server.store import Dispatch, ServerLease, Store, TaskMove
from standby.server.store.dispatch_tasks import BATCH
from standby.server.store.opening import QUICK_LOG_PAGES

S, T = SessionState, TaskState


@pytest.fixture
def clock() -> StepClock:
    return StepClock()


@pytest.fixture
def store(state_place: Path | str, clock: StepClock) -> Iterator[Store]:
    with Store(state_place, clock) as store:
        yield store


@pytest.fixture
def lease(store: Store) -> ServerLease:
    lease = store.lease("first", duration_s=600)
    assert lease.acquire()
    return lease


@pytest.fixture
def dispatch(store: Store, lease: ServerLease) -> Dispatch:
    return store.dispatch(lease)


def queued(store: Store, job: str = "nightly", **values: object) -> SessionRun:
    run = store.queue.enqueue(job, Reason.MANUAL, **values)  # type: ignore[arg-type]
    assert run is not None
    return run


def running(
    store: Store, dispatch: Dispatch, job: str = "nightly", machines: int = 3
) -> tuple[SessionRun, list[TaskRun]]:
    """A session that runs, its tasks queued."""
    run = queued(store, job)
    (taken,) = dispatch.claim_sessions(sessions=[run.id])
    names = [(f"vm{number}", f"id-{number}") for number in range(machines)]
    return taken, dispatch.add_tasks(run.id, names)


def taken_over(store: Store, lease: ServerLease) -> ServerLease:
    """Another server's lease, after the first one's ran out."""
    lease.duration_s = 0
    lease.renew()
    other = store.lease("second", duration_s=600)
    assert other.acquire()
    return other


# --- queueing ----------------------------------------------------------------------------------


def test_a_queued_session_reads_back_as_it_was_asked_for(store: Store) -> None:
    run = queued(
        store, priority=3, machines=["web", "db"], options={"accept_loss": True}, asked_by="ann"
    )
    assert store.queue.session(run.id) == run
    assert (run.state, run.machines, run.options) == (
        S.QUEUED,
        ("web", "db"),
        {"accept_loss": True},
    )
    with pytest.raises(UnknownName, match=f"no session named 'x'; known: {run.id}"):
        store.queue.session("x")


def test_a_slot_is_queued_once_whatever_became_of_it(store: Store, dispatch: Dispatch) -> None:
    slot = "2026-01-01T22:00:00+00:00"
    later = "2026-01-02T22:00:00+00:00"
    run = store.queue.enqueue("nightly", Reason.SCHEDULE, slot=slot)
    assert run is not None
    assert store.queue.enqueue("nightly", Reason.SCHEDULE, slot=slot) is None
    assert store.queue.enqueue("weekly", Reason.SCHEDULE, slot=slot) is not None
    dispatch.move_session(run.id, S.STOPPED)
    assert store.queue.enqueue("nightly", Reason.SCHEDULE, slot=slot) is None
    assert store.queue.enqueue("nightly", Reason.SCHEDULE, slot=later) is not None
    queued(store)
    queued(store)
    assert store.queue.last_slots() == {"nightly": later, "weekly": slot}
    assert [item.slot for item in store.queue.last_sessions("nightly", 3)] == ["", "", later]


def test_one_slot_asked_for_by_many_at_once_is_one_session(store: Store) -> None:
    together = threading.Barrier(4)
    made: list[SessionRun | None] = []

    def ask() -> None:
        together.wait()
        made.append(store.queue.enqueue("nightly", Reason.SCHEDULE, slot="2026"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([run for run in made if run is not None]) == 1
    assert len(store.queue.sessions()) == 1


# --- taking ------------------------------------------------------------------------------------


def test_sessions_are_taken_by_priority_then_age_one_per_job(
    store: Store, dispatch: Dispatch
) -> None:
    first, again = queued(store, "a"), queued(store, "a", priority=9)
    low, high = queued(store, "b"), queued(store, "c", priority=5)
    assert [run.id for run in dispatch.claim_sessions(1)] == [high.id]
    taken = dispatch.claim_sessions(9)
    assert [run.id for run in taken] == [first.id, low.id]
    assert {(run.state, run.server, run.generation) for run in taken} == {(S.RUNNING, "first", 1)}
    assert all(run.started_at for run in taken)
    assert dispatch.claim_sessions(9) == []
    dispatch.move_session(first.id, S.DONE)
    assert dispatch.claim_sessions(9, jobs=["b"]) == []
    assert dispatch.claim_sessions(9, sessions=[low.id]) == []
    assert [run.id for run in dispatch.claim_sessions(9, jobs=["a"])] == [again.id]


def test_sessions_of_jobs_that_are_busy_are_passed_over(store: Store, dispatch: Dispatch) -> None:
    queued(store, "a")
    (other, last) = queued(store, "b"), queued(store, "c")
    assert [run.id for run in dispatch.claim_sessions(1, without={"a", "c"})] == [other.id]
    assert store.queue.jobs_with({S.QUEUED}) == {"a", "c"}
    assert store.queue.jobs_with({S.RUNNING}) == {"b"}
    assert [run.id for run in store.queue.open_sessions("c")] == [last.id]
    assert store.queue.jobs_with({S.DONE}) == set()


def test_tasks_are_taken_in_order_once_and_with_their_attempt(
    store: Store, dispatch: Dispatch
) -> None:
    run, tasks = running(store, dispatch)
    assert [task.machine for task in tasks] == ["vm0", "vm1", "vm2"]
    assert dispatch.add_tasks(run.id, [("vm2", "id-2"), ("vm3", "id-3")])[-1].position == 3
    first = dispatch.claim_tasks(2)
    assert [(task.machine, task.state, task.attempt) for task in first] == [
        ("vm0", T.RUNNING, 1),
        ("vm1", T.RUNNING, 1),
    ]
    assert first == [store.queue.task(task.id) for task in first]
    assert dispatch.claim_tasks(9, sessions=["other"]) == []
    assert dispatch.claim_tasks(9, tasks=[tasks[0].id]) == []
    assert [task.machine for task in dispatch.claim_tasks(9)] == ["vm2", "vm3"]
    assert dispatch.claim_tasks(9) == []
    assert store.queue.counts(run.id) == {T.RUNNING: 4}


def test_tasks_claimed_by_name_come_by_session_then_position(
    store: Store, dispatch: Dispatch
) -> None:
    named = []
    for job, priority in (("low", 0), ("high", 5), ("other", 9)):
        assert store.queue.enqueue(job, Reason.MANUAL, priority=priority)
        (run,) = dispatch.claim_sessions()
        named.append(dispatch.add_tasks(run.id, [(f"vm{n}", f"{job}-{n}") for n in range(3)]))
    low, high, other = named
    wanted = [low[0].id, high[2].id, high[1].id, other[0].id, "unknown"]
    assert dispatch.claim_tasks(9, sessions=["x"], tasks=wanted) == []
    sessions = [low[0].session, high[0].session]
    taken = dispatch.claim_tasks(2, sessions=sessions, tasks=wanted)
    assert [task.id for task in taken] == [high[1].id, high[2].id]
    taken = dispatch.claim_tasks(9, tasks=wanted)
    assert [task.id for task in taken] == [other[0].id, low[0].id]
    assert dispatch.claim_tasks(9, tasks=[]) == []


@pytest.mark.parametrize("count", [1, 3, BATCH - 1, BATCH, BATCH + 1])
def test_any_number_of_tasks_ends_and_is_taken_at_once(
    store: Store, dispatch: Dispatch, count: int
) -> None:
    assert store.queue.enqueue("many", Reason.MANUAL)
    (run,) = dispatch.claim_sessions()
    tasks = dispatch.add_tasks(run.id, [(f"vm{n}", f"id-{n}") for n in range(2 * count)])
    first, second = ([task.id for task in half] for half in (tasks[:count], tasks[count:]))
    assert dispatch.move_tasks([]) == []
    assert {task.id for task in dispatch.claim_tasks(count, tasks=first)} == set(first)
    ended = dispatch.move_tasks([TaskMove(name, T.DONE) for name in first])
    taken = dispatch.claim_tasks(2 * count, tasks=second)
    assert [(task.id, task.state) for task in ended] == [(name, T.DONE) for name in first]
    assert {(task.id, task.state, task.attempt) for task in taken} == {
        (name, T.RUNNING, 1) for name in second
    }
    assert store.queue.counts(run.id) == {T.DONE: count, T.RUNNING: count}


def test_a_session_that_does_not_run_gives_no_tasks(store: Store, dispatch: Dispatch) -> None:
    run, _ = running(store, dispatch)
    dispatch.move_session(run.id, S.PAUSED)
    assert dispatch.claim_tasks(9) == []
    dispatch.move_session(run.id, S.QUEUED)
    assert dispatch.claim_tasks(9) == []
    (again,) = dispatch.claim_sessions()
    assert again.started_at == run.started_at
    assert len(dispatch.claim_tasks(9)) == 3


def test_a_task_waits_for_its_next_attempt(
    store: Store, dispatch: Dispatch, clock: StepClock
) -> None:
    run, _ = running(store, dispatch)
    (task, other, _) = dispatch.claim_tasks(3)
    soon, late = clock.at + timedelta(minutes=5), clock.at + timedelta(hours=1)
    dispatch.move_tasks(
        [TaskMove(task.id, T.WAITING, detail="link", next_attempt_at=soon.isoformat())]
    )
    dispatch.move_tasks([TaskMove(other.id, T.WAITING, next_attempt_at=late.isoformat())])
    assert store.queue.next_retry_at() == soon.isoformat()
    assert store.queue.due_retries(clock.at) == []
    assert dispatch.claim_tasks(9) == []
    clock.at = soon
    assert [item.id for item in store.queue.due_retries(soon)] == [task.id]
    (again,) = dispatch.claim_tasks(9)
    assert (again.id, again.attempt, again.next_attempt_at) == (task.id, 2, "")
    assert store.queue.next_retry_at() == late.isoformat()
    # Asked to retry at once.
    dispatch.move_tasks([TaskMove(other.id, T.QUEUED)])
    assert [item.id for item in dispatch.claim_tasks(9)] == [other.id]
    assert store.queue.next_retry_at() == ""
    assert store.queue.counts(run.id) == {T.RUNNING: 3}


# --- steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", [S.PAUSED, S.DONE, S.QUEUED, S.STOPPING])
def test_an_illegal_step_of_a_session_changes_nothing(
    store: Store, dispatch: Dispatch, to: SessionState
) -> None:
    run, _ = running(store, dispatch)
    ended = dispatch.move_session(run.id, S.DONE, detail="all 3")
    assert ended.ended_at
    with pytest.raises(IllegalStep, match=f"cannot become {to} while it is done; .* nothing"):
        dispatch.move_session(run.id, to)
    assert store.queue.session(run.id) == ended
    with pytest.raises(UnknownName):
        dispatch.move_session("x", S.DONE)


def test_a_step_may_expect_a_state(store: Store, dispatch: Dispatch) -> None:
    run, _ = running(store, dispatch)
    dispatch.move_session(run.id, S.STOPPING)
    with pytest.raises(IllegalStep, match="while it is stopping"):
        dispatch.move_session(run.id, S.DONE, expect=S.RUNNING)
    assert dispatch.move_session(run.id, S.DONE, expect=S.STOPPING).state is S.DONE


def test_moves_of_several_tasks_happen_together_or_not_at_all(
    store: Store, dispatch: Dispatch
) -> None:
    run, tasks = running(store, dispatch)
    first, second, _ = (task.id for task in tasks)
    dispatch.claim_tasks(2)
    with pytest.raises(IllegalStep, match=r"cannot become done while it is queued; .*running"):
        dispatch.move_tasks([TaskMove(first, T.DONE), TaskMove(tasks[2].id, T.DONE)])
    assert store.queue.counts(run.id) == {T.RUNNING: 2, T.QUEUED: 1}
    moved = dispatch.move_tasks([TaskMove(first, T.DONE), TaskMove(second, T.FAILED, "disk full")])
    assert [(task.state, task.detail) for task in moved] == [(T.DONE, ""), (T.FAILED, "disk full")]
    assert all(task.ended_at for task in moved)
    (again,) = dispatch.move_tasks([TaskMove(second, T.QUEUED)])
    assert (again.ended_at, again.attempt) == ("", 1)
    with pytest.raises(UnknownName, match="no task named 'x'"):
        dispatch.move_tasks([TaskMove("x", T.DONE)])


def test_a_retry_of_an_ended_session_belongs_to_nobody_until_it_is_taken(
    store: Store, dispatch: Dispatch
) -> None:
    run, _ = running(store, dispatch)
    dispatch.move_session(run.id, S.FAILED)
    again = dispatch.move_session(run.id, S.QUEUED)
    assert (again.server, again.generation, again.ended_at) == ("", 0, "")
    assert [item.id for item in dispatch.claim_sessions()] == [run.id]


# --- another server ----------------------------------------------------------------------------


def test_a_fenced_server_changes_nothing(
    store: Store, dispatch: Dispatch, lease: ServerLease
) -> None:
    run, _ = running(store, dispatch)
    (task,) = dispatch.claim_tasks(1)
    queued(store, "other")
    request = store.queue.ask(run.id, RequestKind.STOP, by="ann")
    other = taken_over(store, lease)
    assert (other.generation, other.is_held) == (2, True)
    before = (store.queue.sessions(), store.queue.tasks(), store.queue.requests())
    for change in (
        lambda: dispatch.claim_sessions(),
        lambda: dispatch.claim_tasks(),
        lambda: dispatch.add_tasks(run.id, [("new", "id-new")]),
        lambda: dispatch.move_session(run.id, S.DONE),
        lambda: dispatch.move_tasks([TaskMove(task.id, T.DONE)]),
        lambda: dispatch.adopt(),
        lambda: dispatch.handled(request.id, "done"),
        lambda: dispatch.forget_sessions(NEW_YEAR + timedelta(days=99), keep=0),
        lambda: lease.renew(),
        lambda: store.guarded(lease).save_session(SessionReport("s", "nightly", "2026")),
        lambda: store.guarded(lease).record_intent("host", "id", "s", "2026"),
    ):
        with pytest.raises(ServerFenced, match="current generation is 2, held by second"):
            change()
    assert (store.queue.sessions(), store.queue.tasks(), store.queue.requests()) == before
    assert store.sessions() == []
    assert store.open_intents() == []
    lease.release()  # not its own any more: nothing happens
    holder = other.holder()
    assert holder is not None
    assert (holder.server, holder.generation) == ("second", 2)
    store.guarded(other).save_session(SessionReport("s", "nightly", "2026"))
    assert len(store.sessions()) == 1


def test_a_server_that_takes_over_adopts_what_ran_and_joins_or_gives_it_back(
    store: Store, dispatch: Dispatch, lease: ServerLease
) -> None:
    run, tasks = running(store, dispatch)
    ended, _ = running(store, dispatch, "ended", machines=1)
    dispatch.move_session(ended.id, S.DONE)
    waiting = queued(store, "other")
    first, second = dispatch.claim_tasks(2)
    new = store.dispatch(taken_over(store, lease))
    # Before it adopts them, they are another generation's.
    with pytest.raises(IllegalStep, match="running by first of generation 1"):
        new.move_tasks([TaskMove(first.id, T.DONE)])
    with pytest.raises(IllegalStep, match="running by first of generation 1"):
        new.move_session(run.id, S.DONE)
    ((adopted, found),) = new.adopt()
    assert (adopted.id, adopted.state, adopted.server, adopted.generation) == (
        run.id,
        S.RUNNING,
        "second",
        2,
    )
    assert [(task.state, task.generation) for task in found] == [
        (T.RUNNING, 2),
        (T.RUNNING, 2),
        (T.QUEUED, 0),
    ]
    joined = found[0]
    assert joined.attempt == 1
    new.move_tasks([TaskMove(second.id, T.QUEUED, detail="its mover does not know it any more")])
    assert [task.id for task in new.claim_tasks(9)] == [second.id, tasks[2].id]
    assert new.move_tasks([TaskMove(joined.id, T.DONE)])[0].state is T.DONE
    assert new.adopt() == []
    assert [item.id for item in new.claim_sessions(9)] == [waiting.id]


# --- requests ----------------------------------------------------------------------------------


def test_requests_leave_a_trail(store: Store, dispatch: Dispatch) -> None:
    run, _ = running(store, dispatch)
    stop = store.queue.ask(run.id, RequestKind.STOP, by="ann")
    assert store.queue.ask(run.id, RequestKind.STOP, by="bob") == stop
    retry = store.queue.ask(run.id, RequestKind.RETRY, machine="vm1", by="bob")
    assert [item.id for item in store.queue.requests(open_only=True)] == [stop.id, retry.id]
    done = dispatch.handled(stop.id, "stopped")
    assert dispatch.handled(stop.id, "again") == done
    assert (done.asked_by, done.handled_by, done.result) == ("ann", "first", "stopped")
    assert done.asked_at < done.handled_at
    assert store.queue.requests(open_only=True) == [retry]
    assert store.queue.requests(run.id) == [done, retry]
    assert store.queue.ask(run.id, RequestKind.STOP, by="ann").id not in (stop.id, retry.id)
    with pytest.raises(UnknownName, match=r"no VM in session .* named 'x'; known: vm0, vm1, vm2"):
        store.queue.ask(run.id, RequestKind.STOP, machine="x", by="ann")
    with pytest.raises(UnknownName, match="no session named 'x'"):
        store.queue.ask("x", RequestKind.STOP, by="ann")
    with pytest.raises(UnknownName, match="no request named '99'"):
        dispatch.handled(99, "")


def test_old_sessions_are_forgotten_but_the_newest_and_those_without_an_end(
    store: Store, dispatch: Dispatch, clock: StepClock
) -> None:
    ended = []
    for _ in range(3):
        run, _ = running(store, dispatch, machines=2)
        store.queue.ask(run.id, RequestKind.STOP, by="ann")
        ended.append(dispatch.move_session(run.id, S.DONE).id)
    alive, _ = running(store, dispatch)
    cut = clock.at
    assert dispatch.forget_sessions(cut - timedelta(days=1), keep=0) == 0
    assert dispatch.forget_sessions(cut, keep=2) == 2
    assert [run.id for run in store.queue.sessions()] == [ended[2], alive.id]
    assert dispatch.forget_sessions(cut, keep=0) == 1
    assert [run.id for run in store.queue.sessions()] == [alive.id]
    assert len(store.queue.tasks()) == 3
    assert store.queue.requests() == []


def test_two_sessions_of_a_job_cannot_run_at_once_in_the_database(
    store: Store, dispatch: Dispatch
) -> None:
    running(store, dispatch)
    other = queued(store)
    with pytest.raises(StateDatabaseError, match=r"(?i)unique"):
        with store._database.writing() as connection:
            connection.exec_driver_sql(
                f"UPDATE session_runs SET state = 'running' WHERE id = '{other.id}'"
            )


# --- what a dispatch costs -----------------------------------------------------------------------


def test_no_statement_of_a_dispatch_reads_all_tasks(tmp_path: Path, clock: StepClock) -> None:
    # It did, where a condition had become "... IN (...) = 1": 1.7 ms a task among 30,000.
    with Store(tmp_path / "state.sqlite", clock) as store:
        lease = store.lease("first", duration_s=600)
        assert lease.acquire()
        dispatch = store.dispatch(lease)
        _, tasks = running(store, dispatch, machines=8)
        ids = [task.id for task in tasks]
        seen: list[tuple[str, object]] = []

        def note(_: object, __: object, statement: str, parameters: object, *___: object) -> None:
            seen.append((statement, parameters))

        engine = store._database._quick_engine
        sa.event.listen(engine, "before_cursor_execute", note)
        dispatch.claim_tasks(1)
        dispatch.claim_tasks(1, tasks=ids[1:3])
        dispatch.move_tasks([TaskMove(ids[0], T.DONE)])
        dispatch.move_tasks([TaskMove(ids[1], T.DONE)])
        dispatch.claim_tasks(2, tasks=ids[2:4])
        dispatch.move_tasks([TaskMove(task, T.FAILED, "why") for task in ids[2:4]])
        sa.event.remove(engine, "before_cursor_execute", note)
        about_tasks = [item for item in seen if item[0].startswith("UPDATE task_runs")]
        assert len(about_tasks) >= 6
        with engine.connect() as connection:
            for statement, parameters in about_tasks:
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                steps = [str(row[3]) for row in plan]
                assert any("SEARCH task_runs USING" in step for step in steps), statement
                assert not any(step.startswith("SCAN task_runs") for step in steps), steps


def test_commits_that_are_not_durable_leave_copying_the_log_to_those_that_are(
    tmp_path: Path, clock: StepClock
) -> None:
    with Store(tmp_path / "state.sqlite", clock) as store:
        pages = []
        for engine in (store._database._engine, store._database._quick_engine):
            with engine.connect() as connection:
                pages.append(connection.exec_driver_sql("PRAGMA wal_autocheckpoint").scalar())
        assert pages == [1000, QUICK_LOG_PAGES]
