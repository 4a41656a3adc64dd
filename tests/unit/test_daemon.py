"""The server's loop: what it queues, runs, tries again, goes on with. Sessions here do nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from standby.clock import Clock
from standby.errors import HostError, ServerFenced
from standby.model.machine import Machine
from standby.model.replica import ReplicaIdentity
from standby.model.report import MachineReport, SessionReport
from standby.model.session import Reason, RequestKind, SessionRun, SessionState, TaskState
from standby.server.config import load_config
from standby.server.daemon import Daemon, next_times
from standby.server.store import Store

S = SessionState
T = TaskState

CONFIG = """
[standby]
installation = "test"
time_zone = "Europe/Berlin"
[hosts.prod]
kind = "folder"
path = "vms"
[hosts.dr]
kind = "folder"
path = "replicas"
[repositories.main]
path = "repository"
"""
JOB = """
[jobs.{name}]
source = "prod"
target = "dr"
machines = ["*"]
{more}
schedule = {{ {schedule} }}
"""
NIGHTLY = 'daily = "22:00", retries = 2, retry_wait = "10 min"'


class HeldClock(Clock):
    """Time as the test says."""

    def __init__(self) -> None:
        self.wall = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)

    def now(self) -> datetime:
        return self.wall


class Runner:
    """A backup server whose sessions end as the test says."""

    def __init__(
        self,
        folder: Path,
        clock: HeldClock,
        more: str = "",
        place: Path | str = "",
        **schedules: str,
    ) -> None:
        text = CONFIG + "".join(
            JOB.format(name=name, schedule=words, more=more) for name, words in schedules.items()
        )
        (folder / "standby.toml").write_text(text)
        self.config = load_config(folder)
        self.clock = clock
        self.store = Store(place or folder / "state.sqlite", clock)
        self.names = ["web01", "db01"]
        self.outcomes: dict[str, str] = {}
        self.started: list[tuple[str, tuple[str, ...] | None]] = []
        self.host_error: HostError | None = None
        self.ages: dict[str, float] = {}
        self.replicas: Any = SimpleNamespace(newest_age_s=lambda job, item: self.ages.get(item))
        self.gate: threading.Event | None = None
        self.begun = threading.Semaphore(0)
        self.stopped_machines: set[str] = set()
        self.stopped_sessions: set[str] = set()
        self.leading: list[object] = []

    def machines(self, job: object) -> list[Machine]:
        if self.host_error is not None:
            raise self.host_error
        return [Machine(f"id-{name}", name, name) for name in self.names]

    def start(
        self,
        job: str,
        *,
        machines: Sequence[str] | None = None,
        session: str = "",
        take_over: bool = False,
        accept_loss: bool = False,
    ) -> SessionReport:
        self.started.append((job, tuple(machines) if machines is not None else None))
        report = SessionReport(session, job, self.clock.now().isoformat())
        self.store.begin_session(report)
        self.begun.release()
        if self.host_error is not None:
            raise self.host_error
        while self.gate is not None and not self.gate.wait(0.005):
            if self.store.is_asked_to_stop(session) or session in self.stopped_sessions:
                break
        is_stopped = self.store.is_asked_to_stop(session)
        for name in machines if machines is not None else self.names:
            outcome = self.outcomes.get(name, "done")
            if is_stopped or name in self.stopped_machines:
                outcome = "interrupted"
            report.machines.append(
                MachineReport(name, f"id-{name}", outcome=outcome, error=outcome)
            )
        report.outcome = "done"
        report.ended_at = self.clock.now().isoformat()
        self.store.save_session(report)
        return report

    def stop_session(self, session: str) -> bool:
        self.stopped_sessions.add(session)
        return True

    def lead(self, lease: object) -> None:
        self.leading.append(lease)

    def abandon(self) -> None:
        self.leading.append("abandoned")

    def stop_machine(self, session: str, machine: str) -> bool:
        self.stopped_machines.add(machine)
        return True


class Site:
    """A server that is stepped by hand."""

    def __init__(self, folder: Path, clock: HeldClock, **given: str) -> None:
        self.folder = folder
        self.clock = clock
        self.given = given
        self.published: list[tuple[str, dict[str, Any]]] = []
        self.daemons: list[Daemon] = []
        self.open()

    def open(self) -> None:
        self.runner = Runner(self.folder, self.clock, **self.given)
        self.daemon = Daemon(
            self.runner,
            publish=lambda event, payload: self.published.append((event, payload)),
        )
        self.daemons.append(self.daemon)
        assert self.daemon.acquire()
        self.daemon.begin()

    def die(self) -> None:
        """The process is gone: nothing is said, nothing is written any more."""
        self.daemon.close()
        gone = self.runner.store.lease("reaper", duration_s=0.001)
        with self.runner.store._database.writing() as connection:
            connection.exec_driver_sql("UPDATE server_lease SET expires_at = 0")
        del gone

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.close()
            daemon.runner.store.close()

    def step(self, **passed: float) -> datetime | None:
        """Let time pass, look, and let every session that began end."""
        self.clock.wall += timedelta(**passed)
        next_at = self.daemon.step()
        while True:
            for session in self.daemon.running():
                found = self.daemon._running_session(session)
                if found is not None:
                    assert found.join(10)
            self.daemon._rpo.join(10)
            before, next_at = next_at, self.daemon.step()
            if next_at == before and not self.daemon.running():
                return next_at

    def at_work(self, **passed: float) -> SessionRun:
        """Let time pass, and return when the session that is due is in the middle of its work."""
        self.runner.gate = threading.Event()
        self.clock.wall += timedelta(**passed)
        self.daemon.step()
        assert self.runner.begun.acquire(timeout=10)
        return self.runs()[-1]

    def runs(self, job: str = "nightly") -> list[SessionRun]:
        return self.runner.store.queue.last_sessions(job, 50)[::-1]

    def states(self, run: SessionRun) -> dict[str, TaskState]:
        return {task.machine: task.state for task in self.runner.store.queue.tasks(run.id)}

    def ask(self, run: SessionRun, kind: RequestKind, machine: str = "") -> str:
        """Ask, look, and what became of it."""
        request = self.runner.store.queue.ask(run.id, kind, machine=machine, by="test")
        self.daemon.step()
        (found,) = [
            item for item in self.runner.store.queue.requests(run.id) if item.id == request.id
        ]
        return found.result


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(**given: str) -> Site:
        sites.append(Site(tmp_path, HeldClock(), **given))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# --- what is due -----------------------------------------------------------------------------


def test_a_session_runs_when_its_slot_comes_and_once(made: Callable[..., Site]) -> None:
    site = made(nightly=NIGHTLY)
    assert site.step() == utc("2026-07-01T20:00")
    assert site.runner.started == []
    assert site.step(hours=8) == utc("2026-07-02T20:00")
    assert site.runner.started == [("nightly", None)]
    (run,) = site.runs()
    assert (run.state, run.reason, run.slot) == (
        S.DONE,
        Reason.SCHEDULE,
        "2026-07-01T20:00:00.000000+00:00",
    )
    assert site.states(run) == {"web01": T.DONE, "db01": T.DONE}
    assert site.runner.store.session(run.id).job == "nightly"
    site.step(minutes=5)
    site.step(minutes=-30)  # somebody sets the clock back
    site.step(minutes=30)
    assert len(site.runs()) == 1
    (event, payload) = site.published[0]
    assert (event, payload["session"], payload["outcome"]) == ("result", run.id, "done")


def test_what_was_missed_while_no_server_ran_is_run_once(made: Callable[..., Site]) -> None:
    site = made(nightly=NIGHTLY)
    site.step(hours=9)
    site.die()
    site.clock.wall += timedelta(days=4)
    site.open()
    site.step()
    assert [run.slot[:16] for run in site.runs()] == ["2026-07-01T20:00", "2026-07-05T20:00"]


def test_a_missed_slot_is_skipped_where_that_is_asked(made: Callable[..., Site]) -> None:
    site = made(nightly=NIGHTLY + ', missed = "skip"')
    site.step(hours=8)
    site.die()
    site.clock.wall += timedelta(days=4, hours=1)
    site.open()
    assert site.step() == utc("2026-07-06T20:00")
    assert len(site.runs()) == 1


def test_a_slot_under_a_running_session_is_passed_over(made: Callable[..., Site]) -> None:
    site = made(nightly='every = "1h"')
    site.at_work(minutes=1 * 60)
    site.clock.wall += timedelta(hours=2)
    site.daemon.step()
    assert site.runner.gate is not None
    site.runner.gate.set()
    site.step()
    assert len(site.runs()) == 1
    site.step(hours=1)
    assert len(site.runs()) == 2


def test_a_clock_that_was_a_year_ahead_does_not_silence_the_job(made: Callable[..., Site]) -> None:
    site = made(nightly=NIGHTLY)
    site.step(days=365)
    assert len(site.runs()) == 1
    site.step(days=-365)
    site.step(hours=8, minutes=1)
    assert len(site.runs()) == 2
    site.die()
    site.open()
    site.step(days=1)
    assert len(site.runs()) == 3


def test_a_job_follows_another_once_also_over_a_restart(made: Callable[..., Site]) -> None:
    site = made(nightly=NIGHTLY, second='after = "nightly"', third='after = "second"')
    site.step(hours=9)
    assert [job for job, _ in site.runner.started] == ["nightly", "second", "third"]
    (second,) = site.runs("second")
    assert (second.reason, second.after) == (Reason.AFTER_JOB, site.runs()[0].id)
    site.step(hours=1)
    site.die()
    site.open()
    site.step(hours=1)
    assert len(site.runs("second")) == 1


def test_a_job_waits_for_the_retries_of_the_one_before(made: Callable[..., Site]) -> None:
    site = made(nightly=NIGHTLY, second='after = "nightly"')
    site.runner.outcomes["db01"] = "failed"
    site.step(hours=9)
    assert site.runs("second") == []
    site.runner.outcomes.clear()
    site.step(minutes=10)
    assert len(site.runs("second")) == 1


def test_a_continuous_job_begins_again_and_waits_after_a_failure(
    made: Callable[..., Site],
) -> None:
    site = made(nightly='continuous = true, pause = "1m", retries = 0')
    assert site.step() == utc("2026-07-01T12:01")
    assert site.step(minutes=1) == utc("2026-07-01T12:02")
    site.runner.outcomes["db01"] = "failed"
    assert site.step(minutes=1) == utc("2026-07-01T12:12")
    assert len(site.runs()) == 3


def test_a_session_is_stopped_when_its_window_closes(made: Callable[..., Site]) -> None:
    site = made(
        nightly='daily = "22:00", window = "20:00-23:00", stop_at_window_end = true, retries = 9'
    )
    run = site.at_work(hours=8)
    assert site.daemon.step() == utc("2026-07-01T21:00")
    site.step(hours=1)
    assert site.runs()[0].state is S.STOPPED
    assert "window" in site.runs()[0].detail
    assert set(site.states(run).values()) == {T.INTERRUPTED}
    assert site.step() == utc("2026-07-02T20:00")


# --- retries ---------------------------------------------------------------------------------


def test_only_the_vms_that_failed_are_tried_again_and_only_so_often(
    made: Callable[..., Site],
) -> None:
    site = made(nightly=NIGHTLY)
    site.runner.outcomes["db01"] = "failed"
    assert site.step(hours=8) == utc("2026-07-01T20:10")
    (run,) = site.runs()
    assert run.state is S.RUNNING
    assert site.states(run) == {"web01": T.DONE, "db01": T.WAITING}
    site.step(minutes=10)
    site.step(minutes=10)
    assert site.runner.started == [("nightly", None), ("nightly", ("db01",)),
                                   ("nightly", ("db01",))]  # fmt: skip
    (run,) = site.runs()
    assert run.state is S.FAILED
    assert "db01" in run.detail
    assert {report.id for report in site.runner.store.sessions()} == {
        run.id,
        f"{run.id}.2",
        f"{run.id}.3",
    }


def test_a_retry_that_succeeds_ends_the_session_well(made: Callable[..., Site]) -> None:
    site = made(nightly=NIGHTLY)
    site.runner.outcomes["db01"] = "failed"
    site.step(hours=8)
    site.runner.outcomes.clear()
    site.die()
    site.open()  # another server goes on with it
    site.step(minutes=10)
    assert site.runner.started == [("nightly", ("db01",))]
    assert site.runs()[0].state is S.DONE


def test_the_next_slot_does_not_wait_for_retries(made: Callable[..., Site]) -> None:
    site = made(nightly='every = "15m", retries = 3, retry_wait = "1h"')
    site.runner.outcomes["db01"] = "failed"
    site.step(minutes=15)
    site.runner.outcomes.clear()
    site.step(minutes=15)
    assert [run.state for run in site.runs()] == [S.FAILED, S.DONE]


def test_a_host_that_cannot_be_asked_costs_retries_of_the_vms_known(
    made: Callable[..., Site],
) -> None:
    site = made(nightly=NIGHTLY)
    site.runner.store.remember_replica(
        ReplicaIdentity("test", "prod", "id-web01", "nightly"), "web01_replica", "x", "ready",
        "20260701T110000Z-aaaa", 1,
    )  # fmt: skip
    site.runner.host_error = HostError("prod", "is not reachable")
    site.step(hours=8)
    (run,) = site.runs()
    assert site.states(run) == {"web01": T.WAITING}
    site.runner.host_error = None
    site.step(minutes=10)
    assert site.states(run) == {"web01": T.DONE, "db01": T.DONE}


def test_a_host_without_any_vm_known_fails_the_session(made: Callable[..., Site]) -> None:
    site = made(nightly=NIGHTLY)
    site.runner.host_error = HostError("prod", "is not reachable")
    site.step(hours=8)
    assert site.runs()[0].state is S.FAILED
    assert "is not reachable" in site.runs()[0].detail
    assert site.published[0][1]["outcome"] == "failed"


# --- what people ask -------------------------------------------------------------------------


def test_a_session_is_stopped(made: Callable[..., Site]) -> None:
    site = made(nightly=NIGHTLY)
    run = site.at_work(hours=8)
    assert site.ask(run, RequestKind.STOP) == "stopping"
    site.step()
    assert site.runs()[0].state is S.STOPPED
    assert set(site.states(run).values()) == {T.INTERRUPTED}
    assert site.ask(run, RequestKind.STOP) == "it had ended: stopped"


def test_a_session_is_paused_and_goes_on_with_what_is_left(made: Callable[..., Site]) -> None:
    site = made(nightly=NIGHTLY)
    run = site.at_work(hours=8)
    assert site.ask(run, RequestKind.PAUSE) == "pausing"
    site.step()
    assert site.runs()[0].state is S.PAUSED
    site.step(days=1)  # a paused session holds its job
    assert len(site.runs()) == 1
    site.runner.gate = None
    assert site.ask(run, RequestKind.RESUME) == "queued"
    site.step()
    assert site.runs()[0].state is S.DONE


def test_one_vm_is_stopped_and_one_paused(made: Callable[..., Site]) -> None:
    site = made(nightly=NIGHTLY)
    run = site.at_work(hours=8)
    assert site.ask(run, RequestKind.STOP, "db01") == "stopping"
    assert site.ask(run, RequestKind.PAUSE, "web01") == "pausing"
    assert site.runner.gate is not None
    site.runner.gate.set()
    site.step()
    assert site.states(run) == {"web01": T.QUEUED, "db01": T.INTERRUPTED}
    assert site.runs()[0].state is S.PAUSED
    site.runner.stopped_machines.clear()
    site.ask(run, RequestKind.RESUME, "web01")
    site.step()
    assert site.states(run) == {"web01": T.DONE, "db01": T.INTERRUPTED}
    assert site.runs()[0].state is S.FAILED
    assert site.ask(run, RequestKind.RETRY, "db01") == "queued"
    site.step()
    assert site.runs()[0].state is S.DONE


def test_failed_vms_are_tried_again_at_once_when_asked(made: Callable[..., Site]) -> None:
    site = made(nightly=NIGHTLY)
    site.runner.outcomes["db01"] = "failed"
    site.step(hours=8)
    site.runner.outcomes.clear()
    (run,) = site.runs()
    site.ask(run, RequestKind.RETRY)
    site.step()
    assert site.runs()[0].state is S.DONE
    assert site.ask(run, RequestKind.RETRY) == "nothing failed"


def test_a_session_that_only_waits_is_stopped_at_once(made: Callable[..., Site]) -> None:
    site = made(nightly=NIGHTLY)
    site.runner.outcomes["db01"] = "failed"
    site.step(hours=8)
    assert site.ask(site.runs()[0], RequestKind.STOP) == "stopped"
    assert site.runs()[0].state is S.STOPPED


def test_a_session_that_anybody_queues_is_run(made: Callable[..., Site]) -> None:
    site = made(nightly=NIGHTLY)
    site.runner.store.queue.enqueue("nightly", Reason.MANUAL, machines=["db01"], asked_by="me")
    site.runner.store.queue.enqueue("gone", Reason.MANUAL, asked_by="me")
    site.step()
    assert site.runner.started == [("nightly", ("db01",))]
    assert site.runs("gone")[0].state is S.FAILED


# --- the end and the next beginning ----------------------------------------------------------


def test_an_orderly_end_gives_sessions_back_and_the_next_server_goes_on(
    made: Callable[..., Site],
) -> None:
    site = made(nightly=NIGHTLY)
    run = site.at_work(hours=8)
    site.daemon.end()
    assert site.runs()[0].state is S.QUEUED
    assert set(site.states(run).values()) == {T.QUEUED}
    site.daemon.close()
    site.open()
    site.step()
    assert site.runs()[0].state is S.DONE
    assert len(site.runs()) == 1


def test_what_a_dead_server_had_begun_is_gone_on_with(made: Callable[..., Site]) -> None:
    site = made(nightly=NIGHTLY)
    run = site.at_work(hours=8)
    dead = site.runner
    site.die()
    site.open()
    site.step()
    assert site.runs()[0].state is S.DONE
    assert site.runner.started == [("nightly", None)]
    assert dead.gate is not None
    dead.gate.set()  # the dead one was only slow: it changes nothing any more
    found = site.daemons[0]._running_session(run.id)
    assert found is not None
    assert found.join(10)
    assert site.runs()[0].state is S.DONE


def test_of_two_servers_one_acts_and_a_fenced_one_says_so(made: Callable[..., Site]) -> None:
    site = made(nightly=NIGHTLY)
    second = Daemon(site.runner)
    assert not second.acquire()
    site.die()
    assert second.acquire()
    site.clock.wall += timedelta(hours=9)
    with pytest.raises(ServerFenced):
        site.runner.store.dispatch(site.daemon._lease).claim_sessions()
    second.begin()
    second.end()
    second.close()


def test_a_server_that_lost_its_lease_ends_its_sessions_and_says_so(tmp_path: Path) -> None:
    clock = HeldClock()
    runner = Runner(tmp_path, clock, nightly=NIGHTLY)
    runner.gate = threading.Event()
    runner.store.queue.enqueue("nightly", Reason.MANUAL, asked_by="test")
    daemon = Daemon(runner, lease_s=0.3)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            daemon.run()
        except ServerFenced as exc:
            raised.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    assert runner.begun.acquire(timeout=10)
    with runner.store._database.writing() as connection:
        connection.exec_driver_sql("UPDATE server_lease SET server = 'b', generation = 7")
    thread.join(20)
    assert not thread.is_alive()
    assert "held by b" in str(raised[0])
    (run_now,) = runner.store.queue.last_sessions("nightly")
    assert run_now.state is S.RUNNING  # the other server's to adopt
    assert runner.leading == [daemon._lease, "abandoned"]
    assert runner.stopped_sessions == {run_now.id}  # nothing was written for that
    runner.store.close()


def test_servers_take_turns_and_hear_of_a_session_at_once_on_either_database(
    tmp_path: Path, state_place: Path | str
) -> None:
    runner = Runner(tmp_path, HeldClock(), place=state_place, nightly=NIGHTLY)
    ready: list[str] = []
    first = Daemon(runner, on_ready=lambda is_active: ready.append(f"first {is_active}"))
    is_active, is_standby = threading.Event(), threading.Event()

    def second_ready(is_now_active: bool) -> None:
        (is_active if is_now_active else is_standby).set()

    second = Daemon(runner, on_ready=second_ready)
    threads = [threading.Thread(target=daemon.run) for daemon in (first, second)]
    with Store(state_place) as elsewhere:
        threads[0].start()
        elsewhere.queue.enqueue("nightly", Reason.MANUAL, asked_by="test")
        assert runner.begun.acquire(timeout=20)
        threads[1].start()
        assert is_standby.wait(20)
        first.stop()
        threads[0].join(20)
        assert is_active.wait(20)
        elsewhere.queue.enqueue("nightly", Reason.MANUAL, asked_by="test")
        assert runner.begun.acquire(timeout=20)
        second.stop()
        threads[1].join(20)
        states = {run.state for run in elsewhere.queue.last_sessions("nightly", 5)}
    assert ready == ["first True"]
    assert states <= {S.DONE, S.QUEUED}
    assert not any(thread.is_alive() for thread in threads)
    runner.store.close()


def test_a_bug_ends_its_session_and_nothing_else(
    made: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = made(nightly=NIGHTLY, other='daily = "22:00"')
    start = site.runner.start

    def broken(job: str, **arguments: Any) -> SessionReport:
        if job == "nightly":
            raise RuntimeError("a bug")
        return start(job, **arguments)

    monkeypatch.setattr(site.runner, "start", broken)
    site.step(hours=8)
    assert site.runs()[0].state is S.FAILED
    assert "unexpected RuntimeError: a bug" in site.runs()[0].detail
    assert site.runs("other")[0].state is S.DONE


def test_job_stop_of_the_command_line_is_no_failure_to_try_again(
    made: Callable[..., Site],
) -> None:
    site = made(nightly=NIGHTLY)
    run = site.at_work(hours=8)
    site.runner.store.ask_to_stop(run.id)
    site.step()
    assert site.runs()[0].state is S.STOPPED
    assert set(site.states(run).values()) == {T.INTERRUPTED}


# --- rpo -------------------------------------------------------------------------------------


def test_an_rpo_alarm_comes_by_time_and_once(made: Callable[..., Site]) -> None:
    site = made(nightly='daily = "22:00"', more='rpo = "2h"')
    site.runner.store.remember_replica(
        ReplicaIdentity("test", "prod", "id-web01", "nightly"), "web01_replica", "x", "ready",
        "20260701T110000Z-aaaa", 1,
    )  # fmt: skip
    assert site.step() == utc("2026-07-01T13:00")
    assert site.runner.store.alarms() == []
    site.runner.ages["id-web01"] = 7200
    site.step(hours=1)
    site.step(minutes=1)
    (alarm,) = site.runner.store.alarms()
    assert (alarm.kind, alarm.job, alarm.machine) == ("rpo", "nightly", "web01")
    assert "is 7200 s old; rpo is 7200 s" in alarm.text
    events = [payload for event, payload in site.published if event == "alarm"]
    assert [item["machine"] for item in events] == ["web01"]


def test_a_point_that_was_resumed_is_as_young_as_the_target_says(
    made: Callable[..., Site],
) -> None:
    site = made(nightly='daily = "22:00"', more='rpo = "2h"')
    site.runner.store.remember_replica(
        ReplicaIdentity("test", "prod", "id-web01", "nightly"), "web01_replica", "x", "ready",
        "20260701T080000Z-aaaa", 1,
    )  # fmt: skip
    site.runner.ages["id-web01"] = 600
    assert site.step() == utc("2026-07-01T13:50")
    assert site.runner.store.alarms() == []


def test_a_job_that_never_made_a_point_is_an_alarm_too(made: Callable[..., Site]) -> None:
    site = made(nightly='daily = "22:00"', more='rpo = "2h"')
    site.step()
    site.step(hours=2)
    (alarm,) = site.runner.store.alarms()
    assert "no VM has a restore point" in alarm.text


def test_the_next_times_are_told_without_being_active(made: Callable[..., Site]) -> None:
    site = made(nightly=NIGHTLY, second='after = "nightly"')
    found = next_times(site.runner, site.clock.now())
    assert found == {"nightly": utc("2026-07-01T20:00"), "second": None}
