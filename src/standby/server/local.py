"""The backup server of this process, in the words of the command line. `standby.client` has the
same words for one that answers elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo

from standby.errors import UnknownName
from standby.model.job import ReplicationJob
from standby.model.report import SessionReport
from standby.model.session import Reason
from standby.server.alive import at_work
from standby.server.all_replicas import AllReplicas
from standby.server.context import ProgressCallback
from standby.server.infrastructure import Infrastructure, infrastructure_of
from standby.server.infrastructure_check import Check, Progress, checked
from standby.server.plan import JobPlan
from standby.server.serve import JobTimes, ServerStatus, asked, job_times, server_status
from standby.server.server import BackupServer
from standby.server.store.tables import Alarm

ASKED_BY = "command line"


@dataclass(frozen=True, slots=True)
class JobTable:
    """All jobs with their schedules and next runs; `now` and `zone` are the server's."""

    jobs: list[ReplicationJob]
    times: list[JobTimes]
    now: datetime
    zone: tzinfo


@dataclass(frozen=True, slots=True)
class Queued:
    """A session that waits for the active server."""

    job: str
    session: str
    state: str


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked of a session, and a sentence about it."""

    job: str
    session: str
    text: str


class LocalServer:
    """A `BackupServer` as commands use it."""

    def __init__(self, server: BackupServer) -> None:
        self._server = server

    @property
    def replicas(self) -> AllReplicas:
        """The replicas and their verbs."""
        return self._server.replicas

    def job_table(self) -> JobTable:
        """All jobs."""
        server = self._server
        zone = server.config.time_zone
        return JobTable(server.jobs(), job_times(server), server.clock.now(), zone)

    def plan(self, job: str, *, scan: bool = False) -> JobPlan:
        """See BackupServer."""
        return self._server.plan(job, scan=scan)

    def start(
        self,
        job: str,
        *,
        machines: Sequence[str] | None = None,
        take_over: bool = False,
        accept_loss: bool = False,
        progress: ProgressCallback | None = None,
    ) -> SessionReport:
        """See BackupServer."""
        return self._server.start(
            job,
            machines=machines,
            take_over=take_over,
            accept_loss=accept_loss,
            progress=progress,
        )

    def enqueue(
        self, job: str, machines: Sequence[str], *, take_over: bool, accept_loss: bool
    ) -> Queued:
        """Leave a session to the active server."""
        if machines:
            self._server.check_names(self._server.config.job(job), machines)
        run = self._server.store.queue.enqueue(
            job,
            Reason.MANUAL,
            priority=self._server.config.job(job).priority,
            machines=machines,
            options={"take_over": take_over, "accept_loss": accept_loss},
            asked_by=ASKED_BY,
        )
        assert run is not None  # only a slot can be taken already
        return Queued(job, run.id, run.state)

    def ask(self, job: str, kind: str, machine: str) -> Request:
        """Ask the active server to pause, resume or retry the job's session."""
        run, text = asked(self._server, job, kind, machine, by=ASKED_BY)
        return Request(job, run.id, text)

    def stop(self, job: str, *, timeout_s: float) -> list[SessionReport]:
        """See BackupServer."""
        return self._server.stop(job, timeout_s=timeout_s)

    def sessions(self, job: str | None, limit: int) -> list[SessionReport]:
        """Past sessions, newest first; UnknownName for a job that never was."""
        found = self._server.sessions(job, limit)
        if job is not None and not found:
            self._server.config.job(job)  # a removed job is not refused
        return found

    def alive(self, found: Sequence[SessionReport]) -> set[str]:
        """The ids of those sessions that a living process is at."""
        return at_work(self._server.store, found)

    def report(self, session: str | None) -> SessionReport:
        """One session; None: the newest."""
        if session is not None:
            return self._server.report(session)
        for newest in self._server.sessions(limit=1):
            return newest
        raise UnknownName("session", "newest")

    def alarms(self, job: str | None) -> list[Alarm]:
        """Open alarms (of the job), newest first."""
        if job is not None:
            self._server.config.job(job)
        return self._server.store.alarms(job=job)

    def acknowledge(self, job: str) -> int:
        """See BackupServer."""
        return self._server.acknowledge(job)

    def server_status(self) -> ServerStatus:
        """Which server is active, and what it is at."""
        return server_status(self._server)

    def infrastructure(self) -> Infrastructure:
        """What there is."""
        crews = self._server.crews
        return infrastructure_of(self._server.config, crews.fleet, crews.resources.usage())

    def check_infrastructure(self, progress: Progress | None = None) -> list[Check]:
        """Try every part from whoever needs it."""
        server = self._server
        return checked(server.crews.fleet, server.config, server.clock, progress)
