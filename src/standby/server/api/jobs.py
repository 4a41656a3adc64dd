"""Routes of jobs, sessions and alarms."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from standby.errors import IllegalRequest, UnknownName
from standby.model.job import ReplicationJob
from standby.model.report import SessionReport
from standby.model.session import (
    REQUESTS,
    SESSION_ENDS,
    Reason,
    RequestKind,
    SessionRun,
    TaskRun,
    legal_requests,
)
from standby.server.alive import at_work
from standby.server.api import models
from standby.server.api.answers import Told
from standby.server.api.context import ApiContext, Context, Operator, Viewer, called
from standby.server.api.operations import Progress
from standby.server.plan import JobPlan
from standby.server.serve import JobTimes, asked, check_request, job_times
from standby.server.server import BackupServer

router = APIRouter()

JobName = Annotated[models.Name, Path(examples=["nightly"])]
SessionId = Annotated[models.Name, Path(examples=["20261123T220000Z-1f2e3d4c"])]
WAIT_S_MAX = 60.0
LOOK_S = 1.0
"""How often a session is looked at that another process runs: nothing rings for that."""
Wait = Annotated[
    float,
    Query(ge=0, le=WAIT_S_MAX, description="Answer when it has ended, at the latest after this."),
]
Limit = Annotated[int, Query(ge=1, le=1000)]


# --- jobs ------------------------------------------------------------------------------------


@router.get("/jobs", response_model=models.JobList)
def list_jobs(context: Context, caller: Viewer) -> Response:
    """All jobs, with their schedules and next runs."""
    server = context.server
    zone = getattr(server.config.time_zone, "key", "")
    now = server.clock.now()
    jobs = {"jobs": server.jobs(), "times": job_times(server), "now": now, "time_zone": zone}
    return Told(jobs)


@router.get("/jobs/{job}", response_model=ReplicationJob)
def show_job(job: JobName, context: Context, caller: Viewer) -> Response:
    """One job with every default filled in."""
    return Told(context.server.config.job(job))


@router.get("/jobs/{job}/next", response_model=JobTimes)
def next_run(job: JobName, context: Context, caller: Viewer) -> Response:
    """The job's schedule, and when it runs next by it."""
    context.server.config.job(job)
    return Told(next(item for item in job_times(context.server) if item.job == job))


@router.get("/jobs/{job}/plan", response_model=JobPlan)
def plan(job: JobName, context: Context, caller: Viewer) -> Response:
    """What a session would do, per VM and disk; reads no disk."""
    return Told(context.server.plan(job))


@router.post("/jobs/{job}/plan", response_model=models.Operation, status_code=202)
def scan(
    job: JobName,
    context: Context,
    caller: Operator,
    asked: Annotated[models.PlanJob, Body(default_factory=models.PlanJob)],
) -> Response:
    """The same with exact figures: reads the disks, as an operation. Changes nothing."""
    server = context.server
    server.config.job(job)

    def work(progress: Progress) -> JobPlan:
        progress.go_through()
        return only(server.plan(job, scan=True), asked.machines)

    return Told(context.operations.begin("plan", job, called(caller), work).told(), 202)


def only(plan: JobPlan, machines: list[str]) -> JobPlan:
    """The plan of these VMs; of all where none is named."""
    known = tuple(item.machine for item in plan.machines)
    for name in machines:
        if name not in known:
            raise UnknownName(f"VM in job {plan.job}", name, known)
    chosen = tuple(item for item in plan.machines if not machines or item.machine in machines)
    return replace(plan, machines=chosen)


@router.post("/jobs/{job}/start", response_model=models.Queued, status_code=202)
def start(
    job: JobName,
    context: Context,
    caller: Operator,
    asked: Annotated[models.StartJob, Body(default_factory=models.StartJob)],
) -> Response:
    """Queue a session: the active server runs it. Look after it with GET /sessions/{session}."""
    server = context.server
    wanted = server.config.job(job)
    if asked.machines:
        known = tuple(item.name for item in server.machines(wanted))
        for name in asked.machines:
            if name not in known:
                raise UnknownName(f"VM in job {job}", name, known)
    run = server.store.queue.enqueue(
        job,
        Reason.MANUAL,
        priority=wanted.priority,
        machines=asked.machines,
        options={"take_over": asked.take_over, "accept_loss": asked.accept_loss},
        asked_by=called(caller),
    )
    assert run is not None  # only a slot can be taken already
    return Told({"session": run.id, "job": job, "state": run.state}, 202)


@router.post("/jobs/{job}/stop", response_model=models.Operation, status_code=202)
def stop(
    job: JobName,
    context: Context,
    caller: Operator,
    asked: Annotated[models.StopJob, Body(default_factory=models.StopJob)],
) -> Response:
    """End the running session of the job, in whatever process it is, as an operation that ends when
    the session has. What was transferred is kept."""
    server = context.server
    server.config.job(job)

    def work(progress: Progress) -> list[SessionReport]:
        progress.go_through()
        return server.stop(job, timeout_s=asked.timeout_s)

    return Told(context.operations.begin("stop", job, called(caller), work).told(), 202)


@router.post("/jobs/{job}/{request}", response_model=models.AskedOf, status_code=202)
def ask_job(
    job: JobName,
    request: models.JobRequest,
    context: Context,
    caller: Operator,
    what: Annotated[models.AskSession, Body(default_factory=models.AskSession)],
) -> Response:
    """Ask for `pause`, `resume` or `retry` of the job's newest session for which that makes
    sense."""
    run, text = asked(context.server, job, request.value, what.machine or "", by=called(caller))
    told = {"session": run.id, "machine": what.machine or "", "asked": request, "message": text}
    return Told(told, 202)


# --- sessions --------------------------------------------------------------------------------


@router.get("/sessions", response_model=models.SessionList)
def list_sessions(
    context: Context,
    caller: Viewer,
    job: Annotated[models.Name | None, Query()] = None,
    limit: Limit = 20,
) -> Response:
    """What sessions did, newest first; those that only wait are in the queue."""
    found = context.server.sessions(job, limit)
    if job is not None and not found:
        context.server.config.job(job)
    return Told({"sessions": found})


@router.get("/queue", response_model=models.Queue)
def queue(context: Context, caller: Viewer) -> Response:
    """Sessions without an end: queued, running, stopping, paused; and which reports still grow."""
    store = context.server.store
    busy = sorted(at_work(store, store.unfinished_sessions()))
    return Told({"sessions": store.queue.open_sessions(), "at_work": busy})


@router.get("/sessions/{session}", response_model=models.Session)
async def show_session(
    session: SessionId, context: Context, caller: Viewer, wait_s: Wait = 0.0
) -> Response:
    """Where a session stands, what its attempts did, and how far its disks are."""
    clock = context.server.clock
    deadline = clock.monotonic() + wait_s
    while True:
        found = await run_in_threadpool(_session, context, session)
        left_s = deadline - clock.monotonic()
        if found["has_ended"] or left_s <= 0:
            return Told(found)
        await context.bell.wait(min(LOOK_S, left_s))


@router.get("/sessions/{session}/report", response_model=SessionReport)
def report(session: SessionId, context: Context, caller: Viewer) -> Response:
    """What one attempt of a session did: the first one's id is the session's."""
    return Told(context.server.report(session))


@router.post("/sessions/{session}/{request}", response_model=models.AskedOf, status_code=202)
def ask_session(
    session: SessionId,
    request: RequestKind,
    context: Context,
    caller: Operator,
    what: Annotated[models.AskSession, Body(default_factory=models.AskSession)],
) -> Response:
    """Ask the active server to `stop`, `pause`, `resume` or `retry` a session, or one VM of it."""
    queue = context.server.store.queue
    run = queue.session(session)
    if run.state not in REQUESTS[request]:
        legal = tuple(str(item) for item in legal_requests(run.state))
        raise IllegalRequest(session, str(run.state), str(request), legal)
    check_request(context.server, run, request, what.machine or "")
    queue.ask(session, request, machine=what.machine or "", by=called(caller))
    about = f"VM {what.machine} of session {session}" if what.machine else f"session {session}"
    told = {"session": session, "machine": what.machine or "", "asked": request}
    return Told({**told, "message": f"asked: {request} {about}"}, 202)


def _session(context: ApiContext, session: str) -> dict[str, Any]:
    """As models.Session."""
    server = context.server
    run: SessionRun | None = None
    tasks: list[TaskRun] = []
    try:
        run = server.store.queue.session(session)
        tasks = server.store.queue.tasks(session)
    except UnknownName:  # one of the command line's own, or none at all
        reports = [server.report(session)]
    else:
        reports = attempts(server, session)
    has_ended = run.state in SESSION_ENDS if run is not None else bool(reports[-1].ended_at)
    return {
        "id": session,
        "job": run.job if run is not None else reports[0].job,
        "has_ended": has_ended,
        "run": run,
        "tasks": tasks,
        "reports": reports,
        "progress": server.progress.of(reports[-1].id) if reports else [],
        "legal_actions": list(legal_requests(run.state)) if run is not None else [],
    }


def attempts(server: BackupServer, session: str) -> list[SessionReport]:
    """The reports of a session of the queue, oldest attempt first."""
    found: list[SessionReport] = []
    try:
        while True:
            name = f"{session}.{len(found) + 1}" if found else session
            found.append(server.report(name))
    except UnknownName:
        return found


# --- alarms ----------------------------------------------------------------------------------


@router.get("/alarms", response_model=models.Alarms)
def list_alarms(
    context: Context,
    caller: Viewer,
    job: Annotated[models.Name | None, Query()] = None,
    is_open: Annotated[bool, Query(alias="open", description="Only open ones.")] = True,
) -> Response:
    """Alarms, newest first."""
    return Told({"alarms": context.server.store.alarms(open_only=is_open, job=job)})


@router.post("/alarms/acknowledge", response_model=models.Alarms)
def acknowledge(
    context: Context, caller: Operator, which: Annotated[models.Acknowledge, Body()]
) -> Response:
    """Acknowledge the open alarms that fit; held retention goes on. Tells those closed by this."""
    server = context.server
    if which.job is not None:
        server.config.job(which.job)
    closed = server.store.acknowledge(which.alarm, job=which.job, machine=which.machine)
    return Told({"alarms": closed})
