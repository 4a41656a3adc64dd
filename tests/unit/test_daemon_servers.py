"""The end of a backup server's loop and the next one's beginning; two at once; what ends a session
unasked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from daemons import NIGHTLY, HeldClock, Runner, S, Site, T, made_sites
from standby import BackupServer
from standby.errors import ServerFenced
from standby.model.report import SessionReport
from standby.model.session import Reason
from standby.server.daemon import Daemon
from standby.server.fleet import Fleet
from standby.server.logs import Log
from standby.server.serve import opened_daemon, server_status
from standby.server.store import Store


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    with made_sites(tmp_path) as make:
        yield make


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


def test_movers_of_the_next_server_are_no_trouble_of_one_that_was_overtaken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end says what happened; a server that is active is told what helps."""
    (tmp_path / "standby.toml").write_text(
        '[standby]\ninstallation = "test"\n[movers.px1]\naddress = "px1:9440"\n'
    )
    told: list[str] = []
    monkeypatch.setattr(Log, "warning", lambda log, text, **fields: told.append(text))
    monkeypatch.setattr(Fleet, "is_fenced_by", lambda fleet, name: True)
    with BackupServer(tmp_path / "standby.toml") as server, opened_daemon(server) as daemon:
        server.crews.on_mover("px1", "one of generation 7 has taken over")
        assert told == []
        assert daemon.acquire()
        server.crews.on_mover("px1", "one of generation 7 has taken over")
        assert told == ["mover px1 cannot be reached: one of generation 7 has taken over"]
        daemon._lease.release()
        daemon.close()


def test_a_server_whose_configuration_was_edited_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "standby.toml"
    config.write_text('[standby]\ninstallation = "test"\n')
    told: list[str] = []
    monkeypatch.setattr(Log, "warning", lambda log, text, **fields: told.append(text))

    def edit(is_active: bool) -> None:
        found = server_status(server)
        assert found.active is not None
        assert (is_active, found.is_config_changed) == (True, False)
        config.write_text('[standby]\ninstallation = "test"\n# edited\n')
        daemon.step()
        assert server_status(server).is_config_changed
        daemon.step()
        daemon.stop()

    with BackupServer(config) as server, opened_daemon(server, on_ready=edit) as daemon:
        daemon.run()
    assert told == [f"{config}: configuration changed since start; restart to use it"]
