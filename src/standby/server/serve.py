"""The parts of `standby server` put together: backup server, loop, webhooks; and what it shows."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from standby.errors import ConfigurationError, JobError
from standby.model.session import (
    SESSION_ENDS,
    RequestKind,
    SessionRun,
    SessionState,
    nothing_to_retry,
)
from standby.server.certificates import taking_enrolments
from standby.server.config import Config
from standby.server.config_watch import ConfigWatch, is_config_changed
from standby.server.daemon import Daemon
from standby.server.doing import Doing
from standby.server.due import next_times
from standby.server.logs import Log
from standby.server.schedule_config import describe
from standby.server.server import BackupServer
from standby.server.store.lease import LeaseHolder
from standby.server.webhooks import STATE_FILE, Webhooks, WebhookState

if TYPE_CHECKING:
    from standby.server.api.serving import Api

WEBHOOK_ALARM = "webhook"


@dataclass(frozen=True, slots=True)
class JobTimes:
    """A job's schedule in words, and when it runs next (None: not by itself, or not known yet)."""

    job: str
    schedule: str
    next_run: datetime | None


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What an active server, if there is one, is at."""

    active: LeaseHolder | None
    sessions: list[SessionRun]
    jobs: list[JobTimes]
    webhooks: list[WebhookState]
    is_config_changed: bool = False
    """Whether standby.toml is another one than the active server, on this machine, has read."""


@contextlib.contextmanager
def opened_daemon(
    server: BackupServer,
    *,
    address: str = "",
    on_ready: Callable[[bool], None] = lambda is_active: None,
    least_generation: int = 0,
) -> Iterator[Daemon]:
    """The loop over a backup server, its webhooks running and enrolments taken where it is
    configured; `run` it inside of the block."""
    log = Log()

    def failed(name: str, text: str) -> None:
        server.store.raise_alarm(WEBHOOK_ALARM, "", name, text)

    webhooks = Webhooks(
        server.config.webhooks.values(),
        server.config.installation,
        folder=server.config.path.parent,
        clock=server.clock,
        log=log,
        on_failed=failed,
        state_file=webhook_file(server.config),
    )
    watch = ConfigWatch(server.config, log)

    def ready(is_active: bool) -> None:
        if is_active:
            watch.leave(daemon.id)
        on_ready(is_active)

    server.crews.fleet.on_problem = lambda who, text: log.warning(f"certificate of {who}: {text}")

    doing = Doing(server.config, server.progress, server.clock)

    def moved(mover: str, problem: str) -> None:
        doing.moved(mover, problem)
        if problem and server.crews.fleet.is_fenced_by(mover) and not daemon.is_active:
            return  # another server has taken over: this one's end tells so
        if problem:
            log.warning(f"mover {mover} cannot be reached: {problem}")
        else:
            log.info(f"mover {mover} is there again")

    try:
        with taking_enrolments(server.config, server.clock, log):
            daemon = Daemon(
                server,
                log=log,
                address=address,
                on_ready=ready,
                on_look=watch.look,
                doing=lambda job, report: doing.of(server.config.job(job), report),
                publish=webhooks.publish,
                least_generation=least_generation,
            )
            server.crews.on_mover = moved
            yield daemon
    finally:
        webhooks.close()


def opened_api(server: BackupServer, listen: str = "") -> AbstractContextManager[Api]:
    """The server's API, to be entered; ConfigurationError where its packages are not installed."""
    try:
        from standby.server.api.serving import opened_api as opened
    except ModuleNotFoundError as exc:
        raise ConfigurationError(
            "standby server",
            f"its API needs the package {exc.name}, which is not installed",
            "Install the extra from the checkout: pip install '.[server]'",
        ) from None
    return opened(server, listen=listen)


def webhook_file(config: Config) -> Path:
    """Where a server of this machine leaves how its deliveries went."""
    return config.state_database.parent / STATE_FILE


def job_times(server: BackupServer) -> list[JobTimes]:
    """Every job with its schedule and its next run, as the state database has it."""
    found = next_times(server, server.clock.now())
    schedules = server.config.schedules
    return [JobTimes(job, describe(schedules.get(job)), at) for job, at in found.items()]


def server_status(server: BackupServer) -> ServerStatus:
    """What the active server is at, from whatever process this is."""
    holder = server.store.lease("status").holder()
    if holder is not None and holder.expires_in_s < 0:
        holder = None
    sessions = server.store.queue.open_sessions()
    is_changed = holder is not None and is_config_changed(server.config, holder.server)
    webhooks = webhook_states(server.config)
    return ServerStatus(holder, sessions, job_times(server), webhooks, is_changed)


def webhook_states(config: Config) -> list[WebhookState]:
    """How the deliveries of this machine's server went; none where it never delivered."""
    try:
        found = json.loads(webhook_file(config).read_bytes())
        return [WebhookState(**item) for item in found["webhooks"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def check_request(server: BackupServer, run: SessionRun, kind: RequestKind, machine: str) -> None:
    """Raises JobError for a retry where nothing failed."""
    if kind is RequestKind.RETRY:
        problem = nothing_to_retry(run, server.store.queue.tasks(run.id), machine)
        if problem:
            hint = "`standby job start` makes a new session"
            raise JobError(run.job, f"session {run.id} is not tried again: {problem}", hint)


def asked(
    server: BackupServer, job: str, kind: str, machine: str, *, by: str = "command line"
) -> tuple[SessionRun, str]:
    """Ask the active server for 'pause', 'resume', 'retry' or 'stop' of the job's newest session
    for which that makes sense; it, and a sentence about what was asked."""
    server.config.job(job)
    runs = server.store.queue.last_sessions(job, 20)
    wanted: dict[str, Callable[[SessionRun], bool]] = {
        "pause": lambda run: run.state not in SESSION_ENDS,
        "stop": lambda run: run.state not in SESSION_ENDS,
        "resume": lambda run: run.state in (SessionState.PAUSED, SessionState.RUNNING),
        "retry": lambda run: run.state is not SessionState.QUEUED,
    }
    fitting = [run for run in runs if wanted[kind](run)]
    if not fitting:
        states = ", ".join(dict.fromkeys(run.state for run in runs)) or "none"
        raise JobError(
            job,
            f"no session of the server's queue can be asked to {kind}; its sessions: {states}",
            "Only sessions that `standby server` runs can be asked",
        )
    run = fitting[0]
    check_request(server, run, RequestKind(kind), machine)
    server.store.queue.ask(run.id, RequestKind(kind), machine=machine, by=by)
    about = f"VM {machine} of session {run.id}" if machine else f"session {run.id}"
    active = server.store.lease("ask").holder()
    is_active = active is not None and active.expires_in_s > 0
    later = "" if is_active else "; no server is active, the next one will see to it"
    return run, f"asked: {kind} {about}{later}"
