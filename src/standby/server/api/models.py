"""What the API takes and tells, for OpenAPI. Values that the rest of the project has (plans,
reports, replicas) are told as they are; here is what only the API has."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from standby.model.job import ReplicationJob
from standby.model.report import SessionReport
from standby.model.session import RequestKind, SessionRun, TaskRun
from standby.road.repairing import RepairReport
from standby.road.surveying import ReplicaStatus
from standby.road.verifying import PointVerdict
from standby.server.infrastructure_check import Check
from standby.server.plan import JobPlan
from standby.server.progress import DiskProgress
from standby.server.serve import JobTimes
from standby.server.store.tables import Alarm

Name = Annotated[
    str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f/]+$", examples=["web01"])
]
"""Of a job, a VM, a replica, a session."""


class Asked(BaseModel):
    """What a request may say: nothing else is taken."""

    model_config = ConfigDict(extra="forbid")


# --- what is asked ---------------------------------------------------------------------------


class StartJob(Asked):
    """Which session is wanted."""

    machines: list[Name] = Field(
        default=[], max_length=1000, description="Only these VMs; default all that the job takes."
    )
    take_over: bool = Field(default=False, description="Fence another writer that hangs.")
    accept_loss: bool = Field(default=False, description="Go on although the target lost points.")


class StopJob(Asked):
    """How long to wait for the end."""

    timeout_s: float = Field(default=120, ge=0, le=3600)


class PlanJob(Asked):
    """A plan that reads the disks."""

    machines: list[Name] = Field(default=[], max_length=1000, description="Only these VMs.")


class JobRequest(StrEnum):
    """What may be asked of a job's newest session."""

    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"


class AskSession(Asked):
    """What part of a session is meant."""

    machine: Name | None = Field(default=None, description="One VM; default the whole session.")


class Failover(Asked):
    """How to fail over."""

    point: Name | None = Field(
        default=None,
        description="A point's id, or a time (ISO 8601): the newest point before it.",
        examples=["20261123T220000Z-1f2e"],
    )
    adopt: bool = Field(default=False, description="Keep what the VM wrote outside of a failover.")
    source_may_run: bool = Field(default=False, description="The source VM runs: that is known.")
    power_on: bool = Field(default=False, description="Start the VM with QEMU.")


class UndoFailover(Asked):
    """How to undo."""

    drop_writes: bool = Field(
        default=False, description="Also drop writes made outside of a failover."
    )


class Verb(StrEnum):
    """A verb of a replica of which a plan can be made."""

    FAILOVER = "failover"
    UNDO_FAILOVER = "undo-failover"
    PERMANENT_FAILOVER = "permanent-failover"


class PlanVerb(Asked):
    """A verb with its options: those of other verbs are passed over."""

    action: Verb
    point: Name | None = None
    adopt: bool = False
    source_may_run: bool = False
    power_on: bool = False
    drop_writes: bool = False


class Power(Asked):
    """On or off."""

    on: bool
    force: bool = Field(default=False, description="End a guest that does not shut down.")


class Verify(Asked):
    """What to read."""

    point: Name | None = Field(default=None, description="Only this point; default all.")


class Repair(Asked):
    """What to repair."""

    verify: Name | None = Field(
        default=None, description="The operation that found the damage; default: look again."
    )
    point: Name | None = None


class Acknowledge(Asked):
    """Which alarms; everything given must fit."""

    alarm: int | None = Field(default=None, ge=1, le=2**31)
    job: Name | None = None
    machine: Name | None = None


# --- what is told ----------------------------------------------------------------------------


class Error(BaseModel):
    """Every refusal and failure. `error` is a class of the error tree, or the API's own refusal."""

    error: str = Field(examples=["UnknownName"])
    message: str = Field(examples=["no job named 'nightl'; known: nightly"])
    hint: str = Field(default="", examples=["did you mean nightly?"])
    legal_actions: list[str] | None = Field(
        default=None, description="With 409: what the state allows."
    )
    fields: dict[str, Any] = Field(default={}, description="The error's values.")
    retry: Literal["never", "later", "reconnect"]
    exit_code: int = Field(description="What the command line ends with.")


class Health(BaseModel):
    """Whether the server is well."""

    status: Literal["ok", "database unreachable"]
    version: str
    server: Literal["active", "standby"] = Field(description="Whether this server runs sessions.")
    lease: Literal["here", "elsewhere", "free", "unknown"]
    database: bool


class Caller(BaseModel):
    """Whose token it is."""

    name: str
    role: Literal["viewer", "operator", "admin"]
    expires_at: str = Field(description="'' for a token without an end.")


class JobList(BaseModel):
    """All jobs. `time_zone` is that of the schedules, '' for the server's own."""

    jobs: list[ReplicationJob]
    times: list[JobTimes]
    now: datetime
    time_zone: str


class Queued(BaseModel):
    """A session in the queue."""

    session: str
    job: str
    state: str


class SessionList(BaseModel):
    """What sessions did, newest first."""

    sessions: list[SessionReport]


class Queue(BaseModel):
    """Sessions without an end, in the order in which they are to run. `at_work` are the reports,
    by id, that a living process is at: also of sessions that the command line runs by itself, which
    are in no queue."""

    sessions: list[SessionRun]
    at_work: list[str]


class Session(BaseModel):
    """A session: where it stands (`run` and `tasks`; none for one that the command line ran by
    itself), what its attempts did, how far it is now. `progress` is known to the server that runs
    it."""

    id: str
    job: str
    has_ended: bool
    run: SessionRun | None
    tasks: list[TaskRun]
    reports: list[SessionReport]
    progress: list[DiskProgress]
    legal_actions: list[str]


class AskedOf(BaseModel):
    """What was asked of a session."""

    session: str
    machine: str
    asked: RequestKind
    message: str


class Alarms(BaseModel):
    """Alarms, newest first."""

    alarms: list[Alarm]


class Replicas(BaseModel):
    """Replicas, and folder and problem of those that cannot be shown."""

    replicas: list[ReplicaStatus]
    unreadable: dict[str, str]


class Powered(BaseModel):
    """The state of a replica's VM."""

    replica: str
    power: str


class Verdict(BaseModel):
    """The result of a `verify` operation."""

    points: list[PointVerdict]
    is_ok: bool


class Repaired(BaseModel):
    """The result of a `repair` operation."""

    repairs: list[RepairReport]


class Step(BaseModel):
    """How far an operation is with one thing."""

    label: str
    done: int
    total: int


class Operation(BaseModel):
    """Something that takes long. One whose server ended meanwhile has failed, and says so.
    `result` is a JobPlan (plan), a Verdict (verify), a Repaired (repair), SessionReports (stop) or
    the Checks of a check."""

    id: str
    kind: str
    name: str
    state: Literal["running", "done", "failed", "cancelled"]
    started_by: str
    started_at: str
    ended_at: str
    progress: list[Step]
    result: JobPlan | Verdict | Repaired | list[SessionReport] | list[Check] | None = None
    error: Error | None = None


class Operations(BaseModel):
    """Operations, newest first."""

    operations: list[Operation]
