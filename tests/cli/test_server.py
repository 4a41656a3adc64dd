"""`standby server` as a process: ready, idle, ended in order, killed, and going on."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Run, small_site
from cli.processes import children, started, state_of, wait_until
from simulation.site import Site
from standby.model.session import Reason, SessionState, TaskState
from standby.server.store import Store
from standby.units import MiB

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc")

LISTEN = ("--listen", "127.0.0.1:0")
STOP_POINT = {"STANDBY_STOP_POINT": "extent log commit", "STANDBY_KILL_PROCESS": "target mover"}


@contextmanager
def serving(site: Site, *more: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A server that is active."""
    arguments = ("server", "run", "--config", site.config, "--json", *LISTEN, *more)
    with started(*arguments, **environment) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert (told["state"], told["pid"]) == ("active", process.pid)
        yield process


def queued(site: Site) -> None:
    """A session for the server to run."""
    with Store(site.folder / "standby-state.sqlite") as store:
        store.queue.enqueue("job", Reason.MANUAL, asked_by="test")


def session(site: Site) -> Any:
    with Store(site.folder / "standby-state.sqlite") as store:
        (run,) = store.queue.last_sessions("job", 5)
        return run, [task.state for task in store.queue.tasks(run.id)]


def wait_for(site: Site, *states: SessionState) -> None:
    wait_until(lambda: session(site)[0].state in states, f"the session is one of {states}")


def hanging_mover(process: subprocess.Popen[str]) -> int:
    """The target mover, once it stopped in the middle of the transfer."""
    stopped: list[int] = []

    def is_stopped() -> bool:
        stopped[:] = [pid for pid in children(process.pid) if state_of(pid) in "Tt"]
        return bool(stopped) or process.poll() is not None

    wait_until(is_stopped, "the target mover stopped")
    assert stopped, process.communicate()
    return stopped[0]


def check_resumed(site: Site) -> None:
    """The session went on from what had been transferred, to one restore point."""
    run, tasks = session(site)
    assert run.state in (SessionState.DONE, SessionState.WARNINGS)
    assert tasks == [TaskState.DONE]
    with Store(site.folder / "standby-state.sqlite") as store:
        modes = {disk.mode for disk in store.sessions()[0].machines[0].disks}
    assert "resume" in modes
    site.remember_point("vm1_replica", site.replica().points()[-1].id, "vm1")
    assert site.check_points() == 1
    site.check_nothing_leaked()


def test_sigterm_gives_the_session_back_and_the_next_server_goes_on(tmp_path: Path) -> None:
    site = small_site(tmp_path / "site")
    queued(site)
    with serving(site, **STOP_POINT) as process:
        mover = hanging_mover(process)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: children(process.pid) == [mover], "the source mover ended")
        os.kill(mover, signal.SIGCONT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert session(site)[0].state is SessionState.QUEUED
    with serving(site) as process:
        wait_for(site, SessionState.DONE, SessionState.WARNINGS, SessionState.FAILED)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    check_resumed(site)


def test_a_server_that_was_killed_is_gone_on_with(tmp_path: Path) -> None:
    site = small_site(tmp_path / "site")
    queued(site)
    with serving(site, **STOP_POINT) as process:
        mover = hanging_mover(process)
        process.kill()
        process.wait(timeout=60)
        os.kill(mover, signal.SIGKILL)
    run, tasks = session(site)
    assert (run.state, tasks) == (SessionState.RUNNING, [TaskState.RUNNING])
    with sqlite3.connect(site.folder / "standby-state.sqlite") as database:
        database.execute("UPDATE server_lease SET expires_at = 0")  # as after its 15 seconds
    database.close()
    with serving(site) as process:
        wait_for(site, SessionState.DONE, SessionState.WARNINGS, SessionState.FAILED)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert "goes on: 1 of 1 VMs" in err
    check_resumed(site)


def test_a_second_server_stands_by_and_an_idle_one_costs_nothing(tmp_path: Path, run: Run) -> None:
    site = Site(tmp_path / "site", more='schedule = { daily = "22:00" }')
    place = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as system:
        system.bind(str(place))
        system.settimeout(60)
        with serving(site, "--log-format", "json", NOTIFY_SOCKET=str(place)) as first:
            assert system.recv(100) == b"READY=1"
            with started("server", "--config", site.config, *LISTEN) as second:
                assert second.stdout is not None
                assert second.stdout.readline().startswith("backup server of test: standing by")
                assert any(is_idle(first.pid) for _ in range(10))  # once it has begun
                found = run("server", "status", "--config", site.config, "--json").json
                assert f":{first.pid}:" in found["active"]["server"]
                first.send_signal(signal.SIGTERM)
                _, err = first.communicate(timeout=60)
                assert first.returncode == 0
                lines = [json.loads(line) for line in err.splitlines()]
                assert [line["level"] for line in lines] == ["info"]
                assert lines[0]["message"].startswith("active as ")
                assert err in (site.folder / "standby-server.log").read_text()
                assert second.stdout.readline().startswith("backup server of test: active")
                second.send_signal(signal.SIGINT)
                _, err = second.communicate(timeout=60)
                assert second.returncode == 0
                assert "is the active server: standing by" in err
    run("server", "status", "--config", site.config, expect=3)


def is_idle(pid: int) -> bool:
    """Whether it takes next to no processor time for a second."""
    before = spent_s(pid)
    time.sleep(1)
    return spent_s(pid) - before < 0.1


def spent_s(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- what is shown and asked, without a server ----------------------------------------------


def test_next_runs_are_shown(tmp_path: Path, run: Run) -> None:
    site = Site(tmp_path / "site", more='schedule = { daily = "22:00", days = "mon-fri" }')
    text = run("job", "next", "--config", site.config).out
    assert re.search(r"job +22:00 mon-fri +20\d\d-\d\d-\d\d 22:00 \(", text)
    assert (
        run("job", "next", "job", "--config", site.config, "--json")
        .json["jobs"][0]["next_run"]
        .endswith("Z")
    )
    run("job", "next", "nothing", "--config", site.config, expect=10)
    listed = run("job", "list", "--config", site.config).out
    assert "22:00 mon-fri" in listed
    found = run("job", "list", "--config", site.config, "--json").json
    assert list(found["next_runs"]) == ["job"]


def test_a_job_by_hand_has_no_next_run(tmp_path: Path, run: Run) -> None:
    site = Site(tmp_path / "site")
    assert run("job", "next", "--config", site.config).out.split()[-3:] == ["by", "hand", "-"]
    assert run("job", "next", "--config", site.config, "--json").json == {
        "jobs": [{"job": "job", "schedule": "by hand", "next_run": None}]
    }


def test_requests_are_left_for_the_server(tmp_path: Path, run: Run) -> None:
    site = Site(tmp_path / "site")
    ended = run("job", "pause", "job", "--config", site.config, expect=16)
    assert "Only sessions that `standby server` runs can be asked" in ended.err
    queued(site)
    text = run("job", "pause", "job", "--machine", "vm1", "--config", site.config).out
    assert "asked: pause VM vm1 of session" in text
    assert "no server is active" in text
    with Store(site.folder / "standby-state.sqlite") as store:
        (request,) = store.queue.requests()
    assert (request.kind, request.machine, request.asked_by) == ("pause", "vm1", "command line")


def test_a_session_is_queued_for_the_server(tmp_path: Path, run: Run) -> None:
    site = Site(tmp_path / "site")
    site.add_machine("vm1", (MiB,))  # a name that the job does not take is refused
    arguments = ("job", "start", "job", "--queue", "--machine", "vm1", "--accept-loss")
    found = run(*arguments, "--config", site.config, "--json").json
    queued_run, _ = session(site)
    assert found == {"job": "job", "session": queued_run.id, "state": "queued"}
    assert (queued_run.machines, queued_run.reason) == (("vm1",), Reason.MANUAL)
    assert queued_run.options == {"take_over": False, "accept_loss": True}
