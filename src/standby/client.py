"""A backup server that answers elsewhere: its API, in the words of the command line.

    with RemoteServer("https://backup.example:9443", token) as server:
        report = server.start("nightly")

The methods are those of `server.local.LocalServer` and `server.all_replicas.AllReplicas`, with the
same values and the same errors. Standard library only.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import ssl
import urllib.parse
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import msgspec

import standby
from standby.clock import LOCAL_ZONE
from standby.errors import (
    CertificateRefused,
    ConfigurationError,
    JobError,
    LinkError,
    MoverFault,
    ProtocolError,
    RequestRefused,
    StandbyError,
    UnknownName,
    error_from_wire,
)
from standby.model.job import ReplicationJob
from standby.model.machine import PowerState
from standby.model.replica import ReplicaRecord
from standby.model.report import SessionReport
from standby.model.session import TASK_ENDS, SessionRun, SessionState, TaskRun, TaskState
from standby.ports import Progress
from standby.road.failing_over import FailoverResult
from standby.road.repairing import RepairReport
from standby.road.surveying import ReplicaStatus
from standby.road.verb_plans import VerbPlan
from standby.road.verifying import PointVerdict
from standby.server.context import ProgressCallback
from standby.server.infrastructure import Infrastructure
from standby.server.infrastructure_check import Check
from standby.server.local import JobTable, Queued, Request
from standby.server.plan import JobPlan
from standby.server.references import read_reference
from standby.server.serve import JobTimes, ServerStatus
from standby.server.store.tables import Alarm

T = TypeVar("T")

TIMEOUT_S = 120.0
"""For one request: plans and failovers take a while, nothing longer does."""
LOOK_S = 1.0
"""How long one look at something that takes long waits for its end."""
ANSWER_MAX = 256 << 20
TOKEN = "STANDBY_TOKEN"
AUTHORITY = "STANDBY_SERVER_CA"


def remote_server(url: str) -> RemoteServer:
    """The server at `url`, with the token that the environment's STANDBY_TOKEN is, or refers to as
    file:PATH; STANDBY_SERVER_CA is a file of certificates to trust instead of the system's."""
    text = os.environ.get(TOKEN, "").strip()
    if not text:
        raise ConfigurationError(
            TOKEN,
            f"is not set, and {url} asks for a token",
            f"Make one there with `standby token add`, and set {TOKEN} to it or to file:PATH",
        )
    if text.startswith("file:"):
        text = read_reference(text, TOKEN, Path.cwd())
    authority = os.environ.get(AUTHORITY, "")
    return RemoteServer(url, text, authority=Path(authority) if authority else None)


class RemoteServer:
    """A backup server by its API. Thread-safe: every request has a connection of its own."""

    def __init__(self, url: str, token: str, *, authority: Path | None = None) -> None:
        """ConfigurationError for a URL that cannot be, or would have the token travel in the clear
        to another machine."""
        self.url = url.rstrip("/")
        self._token = token
        parts = urllib.parse.urlsplit(self.url)
        try:
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError as exc:
            raise ConfigurationError("--server", f"{url}: {exc}", _URL_HINT) from None
        if parts.scheme not in ("http", "https") or not self._host or parts.path or parts.query:
            raise ConfigurationError("--server", f"{url!r} is no URL of a server", _URL_HINT)
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            try:
                self._tls = ssl.create_default_context(cafile=authority)
            except OSError as exc:
                raise ConfigurationError(AUTHORITY, f"{authority}: {exc}", "") from None
        elif not _is_local(self._host):
            raise ConfigurationError(
                "--server", f"{url}: the token would travel in the clear", "Use https://"
            )
        self.replicas = RemoteReplicas(self)

    def __enter__(self) -> RemoteServer:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open between requests."""

    # --- requests ----------------------------------------------------------------------------

    def get(self, kind: type[T], path: str, **query: Any) -> T:
        """What is told at the path below /api/v1, as a value of that type."""
        given = {name: value for name, value in query.items() if value is not None}
        more = f"?{urllib.parse.urlencode(given)}" if given else ""
        found: T = self._told(kind, "GET", f"/api/v1{path}{more}", None)
        return found

    def post(self, kind: type[T], path: str, **body: Any) -> T:
        """What a POST of these values tells."""
        given = {name: value for name, value in body.items() if value is not None}
        found: T = self._told(kind, "POST", f"/api/v1{path}", given)
        return found

    def operation(
        self,
        begun: dict[str, Any],
        kind: Any,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Any:
        """The result of an operation, waited for. An interrupt has it end."""
        try:
            while begun["state"] == "running":
                begun = self.get(dict, f"/operations/{begun['id']}", wait_s=LOOK_S)
                for step in begun["progress"] if progress is not None else ():
                    assert progress is not None
                    progress(step["label"], step["done"], step["total"])
        except KeyboardInterrupt:
            with contextlib.suppress(StandbyError):  # what cannot stop ends by itself
                self.post(dict, f"/operations/{begun['id']}/cancel")
            raise
        if begun["state"] != "done":
            raise self._error(500, begun["error"])
        return self._as(kind, begun["result"])

    def _told(self, kind: Any, method: str, path: str, body: Any) -> Any:
        status, data = self._exchanged(method, path, body)
        try:
            document = msgspec.json.decode(data)
        except msgspec.DecodeError as exc:
            raise ProtocolError(self.url, f"HTTP {status}, and no JSON: {exc}") from None
        if status >= 400:
            raise self._error(status, document)
        return self._as(kind, document)

    def _as(self, kind: Any, document: Any) -> Any:
        try:
            return msgspec.convert(document, kind)
        except msgspec.ValidationError as exc:
            raise ProtocolError(
                self.url, f"its answer is not as expected: {exc}; is it of another release?"
            ) from None

    def _exchanged(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        connection: http.client.HTTPConnection
        if self._tls is not None:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=TIMEOUT_S, context=self._tls
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        headers = {
            "Authorization": f"Bearer {self._token}",
            "User-Agent": f"standby/{standby.__version__}",
            "Accept": "application/json",
        }
        data = None
        if body is not None:
            data = msgspec.json.encode(body)
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(ANSWER_MAX)
        except ssl.SSLCertVerificationError as exc:
            hint = f"{AUTHORITY} names a file of certificates to trust"
            raise CertificateRefused(self.url, exc.verify_message, hint) from None
        except TimeoutError:
            raise LinkError(self.url, f"no answer within {TIMEOUT_S:.0f} s") from None
        except ValueError:  # a token that cannot be a header; the message would hold it
            raise ConfigurationError(TOKEN, "holds a character no token has", "") from None
        except (OSError, http.client.HTTPException) as exc:
            reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
            raise LinkError(self.url, reason) from None
        finally:
            connection.close()

    def _error(self, status: int, body: Any) -> StandbyError:
        """The error that the server raised, or its own refusal."""
        if not isinstance(body, dict) or "error" not in body:
            return ProtocolError(self.url, f"HTTP {status}, and no reason")
        name, fields = str(body["error"]), body.get("fields") or {}
        found = error_from_wire({"error": name, **fields}) if fields else None
        if found is None or (isinstance(found, MoverFault) and name != "MoverFault"):
            hint = str(body.get("hint", ""))
            return RequestRefused(self.url, status, str(body.get("message", name)), hint)
        return found

    # --- jobs and sessions -------------------------------------------------------------------

    def job_table(self) -> JobTable:
        """All jobs."""
        told = self.get(dict, "/jobs")
        zone = told["time_zone"]
        return JobTable(
            self._as(list[ReplicationJob], told["jobs"]),
            self._as(list[JobTimes], told["times"]),
            self._as(datetime, told["now"]),
            ZoneInfo(zone) if zone else LOCAL_ZONE,
        )

    def plan(self, job: str, *, scan: bool = False) -> JobPlan:
        """What a session would do."""
        path = f"/jobs/{_quoted(job)}/plan"
        if not scan:
            return self.get(JobPlan, path)
        found: JobPlan = self.operation(self.post(dict, path), JobPlan)
        return found

    def enqueue(
        self, job: str, machines: Sequence[str], *, take_over: bool, accept_loss: bool
    ) -> Queued:
        """Leave a session to the active server."""
        return self.post(
            Queued,
            f"/jobs/{_quoted(job)}/start",
            machines=list(machines),
            take_over=take_over,
            accept_loss=accept_loss,
        )

    def start(
        self,
        job: str,
        *,
        machines: Sequence[str] | None = None,
        take_over: bool = False,
        accept_loss: bool = False,
        progress: ProgressCallback | None = None,
    ) -> SessionReport:
        """Have a session run, and wait until nothing of it is at work: VMs that the server tries
        again later are told as they are now. An interrupt asks it to stop."""
        if self._told(dict, "GET", "/healthz", None)["lease"] == "free":
            raise JobError(
                job,
                "no backup server is active",
                "Start one with `standby server`, or leave the session to it with --queue",
            )
        queued = self.enqueue(job, machines or (), take_over=take_over, accept_loss=accept_loss)
        path = f"/sessions/{_quoted(queued.session)}"
        try:
            while True:
                found = self.get(dict, path, wait_s=LOOK_S)
                for item in found["progress"] if progress is not None else ():
                    assert progress is not None
                    progress(item["machine"], item["place"], item["done"], item["total"])
                if found["has_ended"] or _only_waits(found):
                    break
        except KeyboardInterrupt:
            self.post(dict, f"{path}/stop")
            raise
        except LinkError as exc:
            if isinstance(exc, ProtocolError | CertificateRefused):
                raise
            text = (
                f"{exc.problem}. Session {queued.session} is the server's: it goes on there, or "
                f"when the server is back. See `standby job sessions --server {self.url}`"
            )
            raise LinkError(self.url, text) from None
        return merged(
            self._as(SessionRun, found["run"]),
            self._as(list[TaskRun], found["tasks"]),
            self._as(list[SessionReport], found["reports"]),
        )

    def ask(self, job: str, kind: str, machine: str) -> Request:
        """Ask the active server to pause, resume or retry the job's session."""
        told = self.post(dict, f"/jobs/{_quoted(job)}/{kind}", machine=machine or None)
        return Request(job, told["session"], told["message"])

    def stop(self, job: str, *, timeout_s: float) -> list[SessionReport]:
        """End the sessions of the job that run, and wait until they have."""
        begun = self.post(dict, f"/jobs/{_quoted(job)}/stop", timeout_s=timeout_s)
        stopped: list[SessionReport] = self.operation(begun, list[SessionReport])
        return stopped

    def sessions(self, job: str | None, limit: int) -> list[SessionReport]:
        """Past sessions, newest first."""
        told = self.get(dict, "/sessions", job=job, limit=limit)
        found: list[SessionReport] = self._as(list[SessionReport], told["sessions"])
        return found

    def alive(self, found: Sequence[SessionReport]) -> set[str]:
        """The ids of those sessions that a living process is at, the server's or another one."""
        if all(item.outcome for item in found):
            return set()
        busy = set(self.get(dict, "/queue")["at_work"])
        return {item.id for item in found if not item.outcome and item.id in busy}

    def report(self, session: str | None) -> SessionReport:
        """One session; None: the newest."""
        if session is not None:
            return self.get(SessionReport, f"/sessions/{_quoted(session)}/report")
        for newest in self.sessions(None, 1):
            return newest
        raise UnknownName("session", "newest")

    def alarms(self, job: str | None) -> list[Alarm]:
        """Open alarms (of the job), newest first."""
        found: list[Alarm] = self._as(list[Alarm], self.get(dict, "/alarms", job=job)["alarms"])
        return found

    def acknowledge(self, job: str) -> int:
        """Acknowledge the open alarms of the job; how many there were."""
        return len(self.post(dict, "/alarms/acknowledge", job=job)["alarms"])

    def server_status(self) -> ServerStatus:
        """Which server is active, and what it is at."""
        return self.get(ServerStatus, "/server")

    def infrastructure(self) -> Infrastructure:
        """What there is, as the server has it."""
        return self.get(Infrastructure, "/infrastructure")

    def check_infrastructure(self, progress: Progress | None = None) -> list[Check]:
        """Have the server try every part from whoever needs it."""

        def note(label: str, done: int, total: int) -> None:
            if progress is not None:
                progress(done, total)

        begun = self.post(dict, "/infrastructure/check")
        found: list[Check] = self.operation(begun, list[Check], note)
        return found


class RemoteReplicas:
    """The replicas of a backup server, by its API. The verbs are those of `AllReplicas`."""

    def __init__(self, server: RemoteServer) -> None:
        self._server = server
        self._unreadable: dict[str, str] | None = None
        self._verified: dict[str, str] = {}

    def all(self) -> list[ReplicaStatus]:
        """The state of every replica."""
        told = self._server.get(dict, "/replicas")
        self._unreadable = dict(told["unreadable"])
        found: list[ReplicaStatus] = self._server._as(list[ReplicaStatus], told["replicas"])
        return found

    def unreadable(self) -> dict[str, str]:
        """Folder and problem of all that `all` could not show."""
        if self._unreadable is None:
            self.all()
        return dict(self._unreadable or {})

    def show(self, name: str) -> ReplicaStatus:
        """Everything about one replica."""
        return self._server.get(ReplicaStatus, f"/replicas/{_quoted(name)}")

    def plan(self, action: str, name: str, **options: Any) -> VerbPlan:
        """What `action` would do."""
        path = f"/replicas/{_quoted(name)}/plan"
        return self._server.post(VerbPlan, path, action=action, **options)

    def failover(
        self,
        name: str,
        *,
        point: str | None = None,
        adopt: bool = False,
        source_may_run: bool = False,
        power_on: bool = False,
    ) -> FailoverResult:
        """Work from the replica from now on."""
        return self._server.post(
            FailoverResult,
            f"/replicas/{_quoted(name)}/failover",
            point=point,
            adopt=adopt,
            source_may_run=source_may_run,
            power_on=power_on,
        )

    def undo_failover(self, name: str, *, drop_writes: bool = False) -> ReplicaRecord:
        """Drop what the replica wrote since its failover."""
        path = f"/replicas/{_quoted(name)}/undo-failover"
        return self._server.post(ReplicaRecord, path, drop_writes=drop_writes)

    def permanent_failover(self, name: str) -> ReplicaRecord:
        """Make the failed-over replica a VM of its own."""
        return self._server.post(ReplicaRecord, f"/replicas/{_quoted(name)}/permanent-failover")

    def power(self, name: str, *, on: bool, force: bool = False) -> PowerState:
        """Start or stop the replica's VM."""
        told = self._server.post(dict, f"/replicas/{_quoted(name)}/power", on=on, force=force)
        return PowerState(told["power"])

    def verify(
        self,
        name: str,
        *,
        point: str | None = None,
        threads: int = 2,
        progress: Progress | None = None,
    ) -> list[PointVerdict]:
        """Read points back and compare them with their digests; the server knows how many
        threads."""
        begun = self._server.post(dict, f"/replicas/{_quoted(name)}/verify", point=point)

        def note(label: str, done: int, total: int) -> None:
            if progress is not None:
                progress(done, total)

        told = self._server.operation(begun, dict, note)
        self._verified[name] = begun["id"]
        found: list[PointVerdict] = self._server._as(list[PointVerdict], told["points"])
        return found

    def repair(self, name: str, verdicts: list[PointVerdict]) -> list[RepairReport]:
        """Write damaged pieces anew where they can be had: those that the last `verify` found."""
        path = f"/replicas/{_quoted(name)}/repair"
        begun = self._server.post(dict, path, verify=self._verified.get(name))
        told = self._server.operation(begun, dict)
        found: list[RepairReport] = self._server._as(list[RepairReport], told["repairs"])
        return found


def _only_waits(found: dict[str, Any]) -> bool:
    """Whether what is left of a session is VMs that are tried again later."""
    reports, states = found["reports"], {task["state"] for task in found["tasks"]}
    has_ended = bool(reports) and all(report["ended_at"] for report in reports)
    return has_ended and TaskState.WAITING in states and states <= {*TASK_ENDS, TaskState.WAITING}


def merged(
    run: SessionRun, tasks: Sequence[TaskRun], reports: Sequence[SessionReport]
) -> SessionReport:
    """What a session of the queue did, all its attempts taken together: each VM as its last attempt
    left it. JobError where there was no attempt."""
    if not reports:
        raise JobError(run.job, f"session {run.id} ended: {run.state}: {run.detail}")
    machines = {machine.machine: machine for report in reports for machine in report.machines}
    for task in tasks:
        if task.state is TaskState.WAITING and task.machine in machines:
            text = f"the server tries it again at {task.next_attempt_at[:19]} UTC"
            machines[task.machine].warnings.append(text)
    if len(reports) == 1:
        return reports[0]
    first, last = reports[0], reports[-1]
    outcomes = {machine.outcome for machine in machines.values()}
    is_cut = run.state in (SessionState.STOPPED, SessionState.INTERRUPTED)
    if outcomes & {"failed", "interrupted"}:
        outcome = "interrupted" if is_cut else "failed"
    else:
        is_clean = outcomes == {"done"} and run.state is SessionState.DONE
        outcome = "done" if is_clean else "warnings"
    return SessionReport(
        first.id, run.job, first.started_at, last.ended_at, outcome, list(machines.values())
    )


_URL_HINT = "As in https://backup.example:9443"


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
