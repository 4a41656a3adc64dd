"""Changes of several threads in one transaction of a real state database: each with its own end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from cli.processes import wait_until
from standby.errors import IllegalStep, StandbyError, UnknownName
from standby.model.report import MachineReport, SessionReport
from standby.model.session import Reason, SessionState, TaskState
from standby.server.store import Dispatch, ServerLease, Store, TaskMove, line

BEGAN = "2026-11-24T02:00:00+00:00"


@pytest.fixture
def store(state_place: Path | str) -> Iterator[Store]:
    with Store(state_place) as store:
        yield store


@pytest.fixture
def lease(store: Store, monkeypatch: pytest.MonkeyPatch) -> ServerLease:
    """One transaction at a time, over PostgreSQL too: so all that wait go with the next one."""
    monkeypatch.setattr(line, "AT_ONCE", 1)
    lease = store.lease("active", duration_s=600)
    assert lease.acquire()
    return lease


@pytest.fixture
def dispatch(store: Store, lease: ServerLease) -> Dispatch:
    return store.dispatch(lease)


def together(lease: ServerLease, calls: list[Callable[[], Any]]) -> list[Any]:
    """What each call returns or raises, when all stand in the line before the next transaction;
    the first call stands there first."""
    may_end = threading.Event()
    found: dict[int, Any] = {}

    def hold(connection: sa.Connection) -> None:
        assert may_end.wait(30)

    def call(number: int) -> None:
        try:
            found[number] = calls[number]()
        except StandbyError as exc:
            found[number] = exc

    threads = [threading.Thread(target=lease.line.write, args=(hold,))]
    threads[0].start()
    wait_until(lambda: lease.line._joint._leaders == 1, "a transaction to be under way")
    for number in range(len(calls)):
        threads.append(threading.Thread(target=call, args=(number,)))
        threads[-1].start()
        wait_until(lambda: lease.line.waiting + len(found) == len(threads) - 1, "it to wait")
    may_end.set()
    for thread in threads:
        thread.join(30)
    return [found[number] for number in range(len(calls))]


def running_tasks(store: Store, dispatch: Dispatch, count: int) -> list[str]:
    """The ids of tasks that run, each of a session of its own."""
    for number in range(count):
        assert store.queue.enqueue(f"job{number}", Reason.MANUAL)
    for run in dispatch.claim_sessions(count):
        dispatch.add_tasks(run.id, [("vm", "id-vm")])
    return [task.id for task in dispatch.claim_tasks(count)]


def test_each_gets_what_its_own_change_returns(
    store: Store, lease: ServerLease, dispatch: Dispatch
) -> None:
    tasks = running_tasks(store, dispatch, 4)
    guarded = store.guarded(lease)
    sessions = {task.id: task.session for task in store.queue.tasks()}
    calls: list[Callable[[], Any]] = [
        partial(dispatch.move_tasks, [TaskMove(task, TaskState.DONE)]) for task in tasks[:3]
    ]
    calls += [
        partial(dispatch.move_session, sessions[tasks[0]], SessionState.DONE),
        partial(guarded.begin_session, SessionReport("s1", "nightly", BEGAN)),
        partial(dispatch.move_tasks, [TaskMove(tasks[3], TaskState.FAILED, "lost")]),
    ]
    *moved, session, begun, failed = together(lease, calls)
    assert [[(task.id, task.state) for task in item] for item in moved] == [
        [(task, TaskState.DONE)] for task in tasks[:3]
    ]
    assert (session.id, session.state) == (sessions[tasks[0]], SessionState.DONE)
    assert begun is None
    assert [(task.id, task.detail) for task in failed] == [(tasks[3], "lost")]
    assert store.has_session("s1")
    assert {task.id: task.state for task in store.queue.tasks()} == {
        **dict.fromkeys(tasks[:3], TaskState.DONE),
        tasks[3]: TaskState.FAILED,
    }


def test_a_refused_change_takes_no_other_with_it(
    store: Store, lease: ServerLease, dispatch: Dispatch
) -> None:
    tasks = running_tasks(store, dispatch, 2)
    calls: list[Callable[[], Any]] = [
        partial(dispatch.move_tasks, [TaskMove(task, TaskState.DONE)])
        for task in (tasks[0], "nobody", tasks[1])
    ]
    calls.append(partial(store.guarded(lease).checkpoint_released, "none"))
    first, unknown, second, no_intent = together(lease, calls)
    assert [task.state for task in (*first, *second)] == [TaskState.DONE] * 2
    assert isinstance(unknown, UnknownName)
    assert isinstance(no_intent, UnknownName)


def test_of_two_that_end_one_task_the_second_is_refused(
    store: Store, lease: ServerLease, dispatch: Dispatch
) -> None:
    (task,) = running_tasks(store, dispatch, 1)
    move = partial(dispatch.move_tasks, [TaskMove(task, TaskState.DONE)])
    (first,), second = together(lease, [move, move])
    assert first.state is TaskState.DONE
    assert isinstance(second, IllegalStep)


def test_a_session_saved_twice_at_once_is_as_it_was_saved_last(
    store: Store, lease: ServerLease
) -> None:
    guarded = store.guarded(lease)
    machines = [MachineReport("vm1", "id1"), MachineReport("vm2", "id2")]
    report = SessionReport("s1", "nightly", BEGAN, machines=machines)
    later = [MachineReport("vm1", "id1", outcome="done"), machines[1]]
    saves = [
        partial(guarded.save_session, report),
        partial(guarded.save_session, SessionReport("s0", "nightly", BEGAN)),
        partial(guarded.save_session, SessionReport("s1", "nightly", BEGAN, machines=later)),
    ]
    assert together(lease, [*saves]) == [None] * 3
    assert [item.outcome for item in store.session("s1").machines] == ["done", ""]
    assert store.session("s0").machines == []


@pytest.mark.parametrize("is_guarded", [False, True], ids=["by itself", "of the active server"])
def test_a_journey_is_the_text_that_it_was(
    store: Store, lease: ServerLease, is_guarded: bool
) -> None:
    """However it is carried: quotes, backslashes, braces, controls, what looks like a parameter."""
    writer = store.guarded(lease) if is_guarded else store
    texts = [
        '{"a": "\\"\\\\"}',
        "{1,2}",
        "C:\\x\t\n\u2028 'é' \U0001f600",
        ":rows %s %(x)s $1",
        "null",
        "",
    ]
    for number, text in enumerate(texts):
        writer.save_journey("nightly", f"vm{number}", partial(tuple, [f"i{number}", text]))
    assert [store.journey("nightly", f"vm{n}") for n in range(len(texts))] == texts
    assert store.journey_intents().keys() == {f"i{n}" for n in range(len(texts))}
