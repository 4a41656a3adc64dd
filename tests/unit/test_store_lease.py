"""One active server: the lease changes hands, and whoever lost it changes nothing any more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import ServerFenced, StandbyError, StateDatabaseUnreachable
from standby.model.session import Reason, SessionState, TaskState
from standby.server.store import Dispatch, LeaseKeeper, Store, TaskMove
from standby.server.store.lease import GENERATION_EPOCH
from wires import SetClock

LONG_AGO = SetClock(GENERATION_EPOCH - timedelta(days=1))
"""By which generations are counted from 1."""


@pytest.fixture
def store(state_place: Path | str) -> Iterator[Store]:
    with Store(state_place, LONG_AGO) as store:
        yield store


def queue_tasks(store: Store, count: int) -> list[str]:
    """A running session of nobody's lease, with queued tasks; their ids."""
    lease = store.lease("setup", duration_s=600)
    assert lease.acquire()
    dispatch = store.dispatch(lease)
    assert store.queue.enqueue("nightly", Reason.MANUAL) is not None
    (run,) = dispatch.claim_sessions()
    names = [(f"vm{number}", f"id-{number}") for number in range(count)]
    tasks = dispatch.add_tasks(run.id, names)
    lease.release()
    return [task.id for task in tasks]


def test_the_lease_is_one_servers_until_it_ends_or_is_given_up(store: Store) -> None:
    first = store.lease("first", address="one:9443", duration_s=600)
    second = store.lease("second", duration_s=600)
    assert first.holder() is None
    assert (first.acquire(), second.acquire()) == (True, False)
    assert first.acquire()  # again: it is renewed
    assert first.generation == 1
    holder = second.holder()
    assert holder is not None
    assert (holder.server, holder.address, holder.generation) == ("first", "one:9443", 1)
    assert 590 < holder.expires_in_s <= 600
    first.release()
    assert not first.is_held
    assert second.holder() is None
    assert second.acquire()
    assert second.generation == 2
    with pytest.raises(ServerFenced, match="backup server first of generation 0 is fenced"):
        first.renew()


def test_the_lease_of_a_server_that_does_not_renew_it_is_taken_over(store: Store) -> None:
    first = store.lease("first", duration_s=0.001)
    second = store.lease("second", duration_s=600)
    assert first.acquire()
    while not second.acquire():
        SYSTEM_CLOCK.sleep(0.001)
    assert second.generation == 2
    assert not first.is_held
    assert not first.acquire()
    with pytest.raises(ServerFenced) as caught:
        first.renew()
    assert (caught.value.generation, caught.value.current, caught.value.holder) == (1, 2, "second")


def generation_now(place: Path | str, clock: Clock, least: int = 0) -> int:
    """The generation of a server that begins now, with the database as it is, and ends."""
    with Store(place, clock) as store:
        lease = store.lease(str(clock.now()), least_generation=least)
        assert lease.acquire()
        found = lease.generation
        lease.release()
        return found


def test_a_lost_or_older_state_database_makes_no_lower_generation(tmp_path: Path) -> None:
    place = tmp_path / "state.sqlite"
    clock = SetClock(GENERATION_EPOCH + timedelta(days=40))
    first = generation_now(place, clock)
    assert first == 40 * 24 * 3600
    older = place.read_bytes()
    clock.advance(seconds=30)
    second = generation_now(place, clock)
    third = generation_now(place, clock)  # within the same second
    assert first < second < third
    clock.advance(seconds=30)
    place.write_bytes(older)
    fourth = generation_now(place, clock)
    assert fourth > third
    clock.advance(seconds=1)
    place.unlink()
    assert generation_now(place, clock) > fourth


def test_a_clock_that_jumps_makes_no_lower_generation(tmp_path: Path) -> None:
    place = tmp_path / "state.sqlite"
    clock = SetClock(GENERATION_EPOCH + timedelta(days=40))
    found = [generation_now(place, clock)]
    for days in (400, -400, -100, 0):  # ahead, and back to before the epoch
        clock.advance(days=days)
        found.append(generation_now(place, clock))
    assert found == sorted(set(found))
    # Lost after the clock was ahead: movers know a generation from the future.
    place.unlink()
    assert generation_now(place, clock, least=found[-1] + 1) == found[-1] + 1
    assert generation_now(place, clock) == found[-1] + 2


def test_of_many_that_take_over_at_once_one_does(state_place: Path | str) -> None:
    Store(state_place).close()
    with ExitStack() as stack:
        stores = [stack.enter_context(Store(state_place, LONG_AGO)) for _ in range(4)]
        for turn in range(5):
            leases = [store.lease(f"{turn}-{n}") for n, store in enumerate(stores)]
            together = threading.Barrier(len(leases))
            taken: list[str] = []

            def take(lease, together=together, taken=taken) -> None:
                together.wait()
                if lease.acquire():
                    taken.append(lease)

            threads = [threading.Thread(target=take, args=(lease,)) for lease in leases]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            (holder,) = taken
            assert holder.generation == turn + 1
            holder.release()


def test_a_keeper_renews_until_another_server_takes_over(store: Store) -> None:
    lease = store.lease("first", duration_s=0.15)
    assert lease.acquire()
    renewed = threading.Semaphore(0)
    lost: list[StandbyError] = []
    is_lost = threading.Event()
    renew = lease.renew

    def counted() -> None:
        renew()
        renewed.release()

    def note(error: StandbyError) -> None:
        lost.append(error)
        is_lost.set()

    lease.renew = counted  # type: ignore[method-assign]
    with LeaseKeeper(lease, note):
        for _ in range(4):  # longer than it lasts
            assert renewed.acquire(timeout=30)
        assert not lost
        with store._database.writing() as connection:
            connection.exec_driver_sql("UPDATE server_lease SET server = 'x', generation = 7")
        assert is_lost.wait(30)
    (error,) = lost
    assert isinstance(error, ServerFenced)
    assert error.current == 7


def test_a_keeper_says_when_the_database_did_not_answer_for_too_long(store: Store) -> None:
    lease = store.lease("first", duration_s=0.1)
    assert lease.acquire()
    lost: list[StandbyError] = []
    is_lost = threading.Event()

    def fails() -> None:
        raise StateDatabaseUnreachable("x", "gone")

    def note(error: StandbyError) -> None:
        lost.append(error)
        is_lost.set()

    lease.renew = fails  # type: ignore[method-assign]
    with LeaseKeeper(lease, note):
        assert is_lost.wait(30)
    assert isinstance(lost[0], StateDatabaseUnreachable)
    assert not lease.is_held


# --- processes ---------------------------------------------------------------------------------

CHILD = """
import json, sys
from pathlib import Path
from standby.errors import StandbyError
from standby.model.report import SessionReport
from standby.model.session import TaskState
from standby.server.store import Store, TaskMove, opening
opening.IDLE_TRANSACTION_S = 1
place, how = sys.argv[1:]
with Store(place if "://" in place else Path(place)) as store:
    lease = store.lease("child", duration_s=0.5)
    assert lease.acquire()
    dispatch = store.dispatch(lease)
    (task,) = dispatch.claim_tasks(1)
    def say(word):
        print(json.dumps(word), flush=True)
        sys.stdin.readline()
    def in_a_transaction():
        with store._database.writing() as connection:
            lease.guard(connection)
            say("ready")
            connection.exec_driver_sql("UPDATE task_runs SET detail = 'late'")
    found = []
    changes = [
        in_a_transaction,
        lambda: dispatch.move_tasks([TaskMove(task.id, TaskState.DONE)]),
        lambda: dispatch.claim_tasks(9),
        lambda: store.guarded(lease).save_session(SessionReport("late", "nightly", "2026")),
        lease.renew,
    ]
    if how == "between":
        say("ready")
        changes.pop(0)
    for change in changes:
        try:
            change()
            found.append("done")
        except StandbyError as exc:
            found.append(type(exc).__name__)
    say(found)
"""


def start_child(state_place: Path | str, how: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(state_place), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert json.loads(child.stdout.readline()) == "ready"
    return child


def end_child(child: subprocess.Popen[str]) -> list[str]:
    """What it says when it goes on."""
    assert child.stdout is not None
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    found: list[str] = json.loads(child.stdout.readline())
    child.stdin.write("\n")
    child.stdin.close()
    child.stdout.close()
    assert child.wait(30) == 0
    return found


def take_over(store: Store) -> Dispatch:
    lease = store.lease("next", duration_s=600)
    while not lease.acquire():
        SYSTEM_CLOCK.sleep(0.02)
    return store.dispatch(lease)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows stops no process")
def test_a_server_that_was_stopped_and_wakes_up_late_changes_nothing(
    store: Store, state_place: Path | str
) -> None:
    task, _ = queue_tasks(store, 2)
    child = start_child(state_place, "between")
    os.kill(child.pid, signal.SIGSTOP)
    dispatch = take_over(store)
    ((run, _),) = dispatch.adopt()
    dispatch.move_tasks([TaskMove(task, TaskState.FAILED, detail="joined, and failed")])
    before = store.queue.tasks()
    os.kill(child.pid, signal.SIGCONT)
    assert end_child(child) == ["ServerFenced"] * 4
    assert store.queue.tasks() == before
    assert store.sessions() == []
    dispatch.move_session(run.id, SessionState.FAILED)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows stops no process")
def test_a_server_that_stops_inside_of_a_transaction_is_cut_off(
    postgresql: object, request: pytest.FixtureRequest
) -> None:
    # SQLite's writers take turns: there the others wait until it goes on or ends.
    place = request.getfixturevalue("postgresql").new_database()
    with Store(place) as store:
        queue_tasks(store, 2)
        child = start_child(place, "inside")
        os.kill(child.pid, signal.SIGSTOP)
        dispatch = take_over(store)
        dispatch.adopt()
        before = store.queue.tasks()
        os.kill(child.pid, signal.SIGCONT)
        found = end_child(child)
        assert found == ["StateDatabaseUnreachable", *["ServerFenced"] * 4]
        assert store.queue.tasks() == before


RACER = """
import json, sys
from pathlib import Path
from standby.server.store import Store
place, name = sys.argv[1:]
with Store(place if "://" in place else Path(place)) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    taken = []
    while store.queue.tasks(states=["queued"], limit=1):
        lease = store.lease(name, duration_s=600)
        if lease.acquire():
            taken += [task.id for task in store.dispatch(lease).claim_tasks(3)]
            lease.release()
    print(json.dumps(taken), flush=True)
"""


def test_of_two_processes_that_race_for_tasks_each_task_goes_to_one(
    store: Store, state_place: Path | str
) -> None:
    tasks = queue_tasks(store, 60)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(state_place), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    found = []
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        out, _ = child.communicate(timeout=60)
        found += json.loads(out)
    assert sorted(found) == sorted(tasks)
    assert {task.attempt for task in store.queue.tasks()} == {1}


def test_of_several_threads_of_the_active_server_each_task_goes_to_one(store: Store) -> None:
    tasks = queue_tasks(store, 60)
    lease = store.lease("active", duration_s=600)
    assert lease.acquire()
    dispatch = store.dispatch(lease)
    together = threading.Barrier(4)
    found: list[str] = []

    def take() -> None:
        together.wait()
        while taken := dispatch.claim_tasks(3):
            found.extend(task.id for task in taken)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(tasks)


# --- waking ------------------------------------------------------------------------------------


def test_a_waiting_server_wakes_when_another_process_queues(
    store: Store, state_place: Path | str
) -> None:
    with store.wakeups() as wakeups, Store(state_place) as other:
        assert not wakeups.wait(0)
        other.queue.enqueue("nightly", Reason.MANUAL)
        assert wakeups.wait(30)
        store.queue.enqueue("nightly", Reason.MANUAL)
        assert wakeups.wait(30)


def test_a_waiting_thread_is_woken_by_another_and_by_the_end(store: Store) -> None:
    wakeups = store.wakeups()
    woken: list[bool] = []

    def wait() -> None:
        while not wakeups.wait(30):
            pass
        woken.append(True)

    for end in (wakeups.wake, wakeups.close):
        thread = threading.Thread(target=wait)
        thread.start()
        end()
        thread.join(30)
        assert not thread.is_alive()
    wakeups.close()
    assert woken == [True, True]
    store.queue.enqueue("nightly", Reason.MANUAL)  # nobody listens, nobody minds


def test_a_lost_connection_is_made_again_and_wakes(
    postgresql: object, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("standby.server.store.wakeups.RETRY_S", 0.01)
    with Store(request.getfixturevalue("postgresql").new_database()) as store:
        with store.wakeups() as wakeups:
            with store._database.writing() as connection:
                connection.exec_driver_sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            assert wakeups.wait(30)  # it may have missed something
            store.queue.enqueue("nightly", Reason.MANUAL)  # and pooled connections are new ones
            assert wakeups.wait(30)
            # The listening connection is there again: heard without this process's own help.
            store._database.remove_listener(wakeups.wake)
            while not wakeups.wait(0.05):
                store.queue.enqueue("nightly", Reason.MANUAL)
            store._database.add_listener(wakeups.wake)
