"""The server's loop: what it queues, runs, tries again, goes on with. Sessions here do nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from daemons import NIGHTLY, S, Site, T, made_sites, utc
from standby.errors import HostError
from standby.model.replica import ReplicaIdentity
from standby.model.session import Reason, RequestKind
from standby.server.due import next_times


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    with made_sites(tmp_path) as make:
        yield make


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


def test_sessions_are_forgotten_when_they_are_history(
    made: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("standby.server.daemon.SESSIONS_KEPT", 2)
    site = made(nightly=NIGHTLY)
    site.step(hours=9)
    for _ in range(4):
        site.step(days=1)
    before = [run.id for run in site.runs()]
    assert len(before) == 5  # none is old enough
    site.step(days=100)  # queues one more first: with that, the newest two are kept
    assert [run.id for run in site.runs() if run.id in before] == before[-1:]
    assert len(site.runs()) == 2


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


def test_a_queued_session_whose_job_is_gone_fails(made: Callable[..., Site]) -> None:
    site = made(nightly=NIGHTLY)
    for job in ("gone", "nightly"):
        site.runner.store.queue.enqueue(job, Reason.MANUAL, asked_by="test")
    site.step()
    (gone,) = site.runs("gone")
    assert (gone.state, gone.detail) == (S.FAILED, "its job is gone from the configuration")
    assert [run.state for run in site.runs()] == [S.DONE]


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
    assert site.ask(run, RequestKind.RETRY) == "nothing failed: all its VMs are done"


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


def test_a_replica_that_is_owed_no_point_is_no_rpo_alarm(made: Callable[..., Site]) -> None:
    site = made(nightly='daily = "22:00"', more='rpo = "2h"')
    site.runner.store.remember_replica(
        ReplicaIdentity("test", "prod", "id-gone", "nightly"), "gone_replica", "x", "ready",
        "20260701T080000Z-aaaa", 1,
    )  # fmt: skip
    site.runner.excluded.add("id-gone")
    site.step()
    site.step(hours=3)
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
