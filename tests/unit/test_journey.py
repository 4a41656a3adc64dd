"""How far a transfer is, as the next process finds it: what can be joined, and what was sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cli.processes import wait_until
from clocks import HeldClock
from standby.host.memory import MemoryHost
from standby.model.job import ReplicationJob
from standby.model.machine import Checkpoint
from standby.model.report import DiskReport, MachineReport, SessionReport
from standby.server.context import SessionContext, TaskSlots
from standby.server.journey import FIGURES_EVERY_S, Journey, JourneyBook, Sender, add_transfer
from standby.server.store import Store

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
JOB = ReplicationJob("job", "prod", "dr", "main", ("*",))


@pytest.fixture
def context(tmp_path: Path) -> Iterator[SessionContext]:
    clock = HeldClock(NOW)
    with Store(tmp_path / "state.sqlite", clock) as store:
        slots = TaskSlots(1, threading.Semaphore(1))
        host = MemoryHost("prod", clock=clock)
        yield SessionContext("s1", "test", JOB, host, store, slots, clock=clock)


def begun(context: SessionContext) -> tuple[JourneyBook, Journey]:
    book = JourneyBook(context, "vm1")
    checkpoint = Checkpoint("c1", "vm1", "clone", NOW.isoformat(), "crash")
    reports = [DiskReport("d0", "scsi:0:0", virtual_size=100), DiskReport("d1", "scsi:0:1")]
    journey = Journey(
        "crew", "dr1", "/dr/vm1", "vm1", "p1", 1, "intent", checkpoint, {}, reports, []
    )
    book.begin(journey)
    return book, journey


def test_what_earlier_attempts_sent_is_told_apart_from_what_the_joined_one_tells(
    context: SessionContext,
) -> None:
    book, journey = begun(context)
    journey.reports[0].sent = 7  # of an attempt through another proxy, which failed
    book.sending("scsi:0:0", Sender("t1", "px1"))
    journey.reports[0].sent += 50  # it has ended, and tells that again when it is joined
    book.sending("scsi:0:1", Sender("t2", "px1"))
    found = JourneyBook(context, "vm1").found()
    assert found is not None
    assert {place: sender.sent_before for place, sender in found.senders.items()} == {
        "scsi:0:0": 7,
        "scsi:0:1": 0,
    }
    assert list(context.store.journey_intents()) == ["intent"]


@pytest.mark.parametrize("is_begun", [False, True], ids=["not yet", "already"])
def test_disks_that_begin_at_once_are_recorded_together(
    context: SessionContext, monkeypatch: pytest.MonkeyPatch, is_begun: bool
) -> None:
    """Those that come before the transaction has begun go with it, the others with the next."""
    book, journey = begun(context)
    may_go_on, saves = threading.Event(), []
    save = type(context.store).save_journey

    def slow(store: Store, job: str, machine: str, newest: Callable[[], tuple[str, str]]) -> None:
        told = newest() if is_begun else None
        saves.append(machine)
        assert may_go_on.wait(30)
        save(store, job, machine, newest if told is None else lambda: told)

    monkeypatch.setattr(type(context.store), "save_journey", slow)
    known: list[bool] = []

    def send(number: int) -> None:
        place = f"scsi:0:{number}"
        book.sending(place, Sender(f"t{number}", "px1"))
        found = JourneyBook(context, "vm1").found()
        known.append(found is not None and place in found.senders)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(journey.senders) == len(threads), "all are to be recorded")
    may_go_on.set()
    for thread in threads:
        thread.join()
    assert known == [True] * len(threads)
    assert len(saves) == (2 if is_begun else 1)


def test_a_transfer_that_has_ended_tells_its_figures_until_the_commit_and_keeps_no_checkpoint(
    context: SessionContext,
) -> None:
    book, journey = begun(context)
    journey.reports[0].sent, journey.reports[0].changed = 50, 80
    book.sent()
    assert "intent" not in context.store.journey_intents()
    context.clock.advance(10 * JOB.checkpoint_max_age_s)  # type: ignore[attr-defined]
    found = JourneyBook(context, "vm1").found()
    assert found is not None
    assert found.is_sent
    disk = DiskReport("d0", "scsi:0:0", virtual_size=100, sent=1, changed=30, read=5)
    now = replace(disk)
    add_transfer([now], found.reports)
    assert now == replace(disk, sent=51, changed=80)  # what changed is told of both together
    book.drop()
    assert JourneyBook(context, "vm1").found() is None


def test_an_attempt_that_ends_leaves_nothing_to_count_once_more(context: SessionContext) -> None:
    book, _ = begun(context)
    book.sent()
    book.end()
    assert JourneyBook(context, "vm1").found() is None


def test_figures_are_recorded_now_and_then_and_stay_until_there_is_an_outcome(
    context: SessionContext,
) -> None:
    store, clock = context.store, context.clock
    session = SessionReport("s1", "job", NOW.isoformat(), machines=[])
    session.machines += [MachineReport("a", "vm1"), MachineReport("b", "vm2")]
    store.begin_session(session)
    at_work = MachineReport("a", "vm1", disks=[DiskReport("d0", "scsi:0:0", "full")])
    book = JourneyBook(context, "vm1", at_work)
    asked = []

    def so_far() -> list[DiskReport]:
        asked.append(clock.monotonic())
        return [replace(at_work.disks[0], sent=50, read=70)]

    book.tell()
    book.under_way(so_far)
    assert asked == []
    clock.advance(FIGURES_EVERY_S)  # type: ignore[attr-defined]
    book.under_way(so_far)
    book.under_way(so_far)
    assert len(asked) == 1
    session.machines[1].outcome = "done"
    store.save_session(session)  # the other VM has ended
    first, second = store.session("s1").machines
    assert (first.disks[0].mode, first.disks[0].sent, first.disks[0].read) == ("full", 50, 70)
    assert (first.outcome, second.outcome) == ("", "done")
    session.machines[0] = replace(at_work, outcome="failed")
    store.save_session(session)
    book.tell([])
    assert store.session("s1").machines[0] == session.machines[0]
