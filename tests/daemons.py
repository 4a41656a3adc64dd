"""A backup server's loop over a runner and a clock that tests hold."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from standby.clock import Clock
from standby.errors import HostError
from standby.model.machine import Machine
from standby.model.report import MachineReport, SessionReport
from standby.model.session import RequestKind, SessionRun, SessionState, TaskState
from standby.server.config import load_config
from standby.server.daemon import Daemon
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
        self.excluded: set[str] = set()
        self.gate: threading.Event | None = None
        self.begun = threading.Semaphore(0)
        self.stopped_machines: set[str] = set()
        self.stopped_sessions: set[str] = set()
        self.leading: list[object] = []

    def left_out(self, job: object, machine_ids: Collection[str]) -> set[str]:
        return self.excluded.intersection(machine_ids)

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
            begun = len(self.runner.started)
            before, next_at = next_at, self.daemon.step()
            # One that began just now may have ended already, and another follows it.
            is_quiet = len(self.runner.started) == begun and not self.daemon.running()
            if next_at == before and is_quiet:
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


@contextmanager
def made_sites(folder: Path) -> Iterator[Callable[..., Site]]:
    """Makes sites over one database, which end with the block."""
    sites: list[Site] = []

    def make(**given: str) -> Site:
        sites.append(Site(folder, HeldClock(), **given))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
