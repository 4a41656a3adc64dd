"""Durable writes of several threads: in one transaction, each with its own end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from cli.processes import wait_until
from standby.errors import ServerFenced, StandbyError, UnknownName
from standby.model.machine import Checkpoint
from standby.model.report import SessionReport
from standby.server.store import Store, tables
from standby.server.store.joint import MOST, JointWrites
from standby.server.store.line import Write

CHECKPOINT = Checkpoint("c1", "id-vm1", "clone", "2026-11-23T22:00:00+00:00", "crash")


class Slow:
    """A database of which every commit waits for the test."""

    def __init__(self, at_once: int = 1) -> None:
        self.joint: JointWrites[Write[None], None] = JointWrites(self.transact, at_once)
        self.sizes: list[int] = []
        self.may_commit = threading.Semaphore(0)

    def transact(self, writes: Sequence[Write[None]]) -> list[None]:
        self.sizes.append(len(writes))
        for write in writes:
            write(None)  # type: ignore[arg-type]
        assert self.may_commit.acquire(timeout=30)
        return [None] * len(writes)


class Asking:
    """Threads of which each writes once, and what became of it."""

    def __init__(self) -> None:
        self.errors: dict[str, StandbyError | None] = {}
        self.threads: list[threading.Thread] = []

    def put(self, name: str, write: Callable[[], None]) -> None:
        def work() -> None:
            try:
                write()
                self.errors[name] = None
            except StandbyError as exc:
                self.errors[name] = exc

        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()

    def join(self) -> dict[str, StandbyError | None]:
        for thread in self.threads:
            thread.join(30)
        return self.errors


def nothing(connection: sa.Connection) -> None:
    """Writes nothing."""


def refused(connection: sa.Connection) -> None:
    raise UnknownName("intent", "x")


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def store(state_place: Path | str) -> Iterator[Store]:
    with Store(state_place) as store:
        yield store


def test_what_comes_while_one_commits_goes_together_with_the_next(slow: Slow) -> None:
    asking = Asking()
    asking.put("first", partial(slow.joint.put, nothing))
    wait_until(lambda: slow.sizes == [1], "the first one to commit")
    for number in range(MOST + 5):
        asking.put(str(number), partial(slow.joint.put, nothing))
    wait_until(lambda: slow.joint.waiting == MOST + 5, "the others to wait")
    for _ in range(3):
        slow.may_commit.release()
    assert set(asking.join().values()) == {None}
    assert slow.sizes == [1, MOST, 5]
    assert slow.joint.waiting == 0


def test_as_many_as_may_commit_at_once_wait_for_nobody() -> None:
    slow = Slow(2)
    asking = Asking()
    for number in range(2):
        asking.put(str(number), partial(slow.joint.put, nothing))
    wait_until(lambda: slow.sizes == [1, 1], "both to commit")
    for number in range(2, 5):
        asking.put(str(number), partial(slow.joint.put, nothing))
    wait_until(lambda: slow.joint.waiting == 3, "the others to wait")
    slow.may_commit.release()
    wait_until(lambda: slow.sizes == [1, 1, 3], "them to commit together")
    for _ in range(2):
        slow.may_commit.release()
    assert set(asking.join().values()) == {None}
    asking.put("last", partial(slow.joint.put, nothing))
    asking.put("last but one", partial(slow.joint.put, nothing))
    wait_until(lambda: slow.sizes == [1, 1, 3, 1, 1], "two to commit again")
    for _ in range(2):
        slow.may_commit.release()
    asking.join()


def test_one_that_fails_fails_alone(slow: Slow) -> None:
    asking = Asking()
    asking.put("first", partial(slow.joint.put, nothing))
    wait_until(lambda: slow.sizes == [1], "the first one to commit")
    for name, write in (("a", nothing), ("b", refused), ("c", nothing)):
        asking.put(name, partial(slow.joint.put, write))
        wait_until(lambda: slow.joint.waiting == len(asking.threads) - 1, "it to wait")
    for _ in range(4):
        slow.may_commit.release()
    ends = asking.join()
    assert isinstance(ends.pop("b"), UnknownName)
    assert ends == {"first": None, "a": None, "c": None}
    assert slow.sizes == [1, 3, 1, 1, 1]


def test_the_next_one_leads_though_the_leader_failed(slow: Slow) -> None:
    slow.may_commit.release()
    for _ in range(2):
        with pytest.raises(UnknownName):
            slow.joint.put(refused)
    slow.joint.put(nothing)
    assert slow.sizes == [1, 1, 1]


@pytest.mark.parametrize("is_guarded", [False, True], ids=["by itself", "of the active server"])
def test_many_threads_record_and_find_what_they_recorded(store: Store, is_guarded: bool) -> None:
    if is_guarded:
        lease = store.lease("active", duration_s=600)
        assert lease.acquire()
        store = store.guarded(lease)

    def record(number: int) -> None:
        vm = f"vm{number}"
        intent = store.record_intent("prod", vm, "s1", "2026-11-23T22:00:00+00:00")
        store.checkpoint_made(intent, CHECKPOINT)
        store.save_journey("nightly", vm, lambda: ("none", f"plan of {vm}"))
        store.save_journey("nightly", vm, lambda: (intent, f"journey of {vm}"))
        store.begin_session(SessionReport(f"s{number}", "nightly", "2026-11-23T22:00:00+00:00"))
        if number % 2:
            store.drop_journey("nightly", vm)

    threads = [threading.Thread(target=record, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    intents = store.open_intents()
    assert {intent.machine_id for intent in intents} == {f"vm{n}" for n in range(12)}
    assert {intent.checkpoint for intent in intents} == {CHECKPOINT}
    assert store.journey_intents().keys() == {
        intent.id for intent in intents if int(intent.machine_id[2:]) % 2 == 0
    }
    assert [store.journey("nightly", f"vm{n}") for n in range(2)] == ["journey of vm0", ""]
    assert all(store.has_session(f"s{n}") for n in range(12))
    assert not store.has_session("s12")


def test_a_transfer_is_recorded_before_a_takeover_or_not_at_all(store: Store) -> None:
    late = store.lease("late", duration_s=600)
    assert late.acquire()
    guarded = store.guarded(late)
    waiting = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    asking = Asking()
    with store._database.writing() as connection:  # another server is about to have taken over
        connection.execute(tables.lease.select().with_for_update())  # as `ServerLease.acquire`
        connection.execute(tables.lease.update().values(server="next"))
        asking.put("vm1", partial(guarded.save_journey, "nightly", "vm1", lambda: ("i1", "late")))

        def waits() -> bool:
            if store._database.is_sqlite:
                return True  # for its turn, now or in a moment
            with store._database.reading() as looking:
                return bool(looking.execute(waiting).scalar())

        wait_until(waits, "the late server to wait for the takeover")
    assert isinstance(asking.join()["vm1"], ServerFenced)
    assert store.journey("nightly", "vm1") == ""


def test_a_server_that_was_overtaken_writes_for_none_of_its_threads(store: Store) -> None:
    late = store.lease("late", duration_s=600)
    assert late.acquire()
    guarded = store.guarded(late)
    guarded.save_journey("nightly", "vm0", lambda: ("i0", "before"))
    late.release()
    assert store.lease("next", duration_s=600).acquire()
    asking = Asking()
    for number in range(4):
        vm = f"vm{number}"
        asking.put(vm, partial(guarded.save_journey, "nightly", vm, lambda: ("i1", "after")))
    assert {type(error) for error in asking.join().values()} == {ServerFenced}
    assert store.journey_intents().keys() == {"i0"}
    with pytest.raises(ServerFenced):
        guarded.begin_session(SessionReport("s1", "nightly", ""))
    assert not store.has_session("s1")
