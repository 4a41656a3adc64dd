"""What people ask of sessions while the server runs: stop, pause, resume, retry."""

from __future__ import annotations

from standby.errors import StandbyError
from standby.model.session import (
    RETRIED,
    SESSION_ENDS,
    TASK_ENDS,
    RequestKind,
    SessionRequest,
    SessionRun,
    SessionState,
    TaskRun,
    TaskState,
    nothing_to_retry,
)
from standby.server.daemon_sessions import Intent, RunningSession, Work, settled
from standby.server.store.dispatch import TaskMove


def handle_request(work: Work, running: RunningSession | None, request: SessionRequest) -> str:
    """Do what was asked; what became of it. `running` is the session where a thread is at it."""
    run = work.store.queue.session(request.session)
    tasks = [
        task for task in work.store.queue.tasks(run.id) if request.machine in ("", task.machine)
    ]
    try:
        if request.kind is RequestKind.STOP:
            return _stop(work, running, run, tasks, request.machine)
        if request.kind is RequestKind.PAUSE:
            return _pause(work, running, run, tasks, request.machine)
        if request.kind is RequestKind.RESUME:
            return _resume(work, run)
        problem = nothing_to_retry(run, work.store.queue.tasks(run.id), request.machine)
        return problem or _retry(work, run, tasks)
    except StandbyError as exc:
        return f"refused: {exc}"


def _stop(
    work: Work,
    running: RunningSession | None,
    run: SessionRun,
    tasks: list[TaskRun],
    machine: str,
) -> str:
    if run.state in SESSION_ENDS:
        return f"it had ended: {run.state}"
    if machine:
        return _stop_machine(work, running, run, tasks, machine)
    if running is not None:
        if run.state is SessionState.RUNNING:
            work.dispatch.move_session(run.id, SessionState.STOPPING, detail=Intent.STOP.value)
        running.end(Intent.STOP)
        return "stopping"
    if run.state is SessionState.RUNNING:  # it only waited to try VMs again
        work.on_end(settled(work, run.id, Intent.STOP))
        return "stopped"
    open_tasks = [task for task in tasks if task.state not in TASK_ENDS]
    work.dispatch.move_tasks(
        TaskMove(task.id, TaskState.INTERRUPTED, Intent.STOP.value) for task in open_tasks
    )
    work.dispatch.move_session(run.id, SessionState.STOPPED, detail=Intent.STOP.value)
    return "stopped"


def _stop_machine(
    work: Work,
    running: RunningSession | None,
    run: SessionRun,
    tasks: list[TaskRun],
    machine: str,
) -> str:
    if running is not None and running.end_machine(machine):
        return "stopping"
    waiting = [task for task in tasks if task.state in (TaskState.QUEUED, TaskState.WAITING)]
    if not waiting:
        return "it was not at work"
    work.dispatch.move_tasks(
        TaskMove(task.id, TaskState.INTERRUPTED, Intent.STOP.value) for task in waiting
    )
    if running is None and run.state is SessionState.RUNNING:
        work.on_end(settled(work, run.id, Intent.NONE))
    return "stopped"


def _pause(
    work: Work,
    running: RunningSession | None,
    run: SessionRun,
    tasks: list[TaskRun],
    machine: str,
) -> str:
    if run.state in SESSION_ENDS:
        return f"it had ended: {run.state}"
    if machine:
        if running is not None and running.end_machine(machine):
            return "pausing"
        is_open = any(task.state not in TASK_ENDS for task in tasks)
        return "paused" if is_open or not tasks else "it had ended"
    if running is not None:
        running.end(Intent.PAUSE)
        return "pausing"
    if run.state is SessionState.PAUSED:
        return "it was paused"
    if run.state is SessionState.RUNNING:
        work.on_end(settled(work, run.id, Intent.PAUSE))
    else:
        work.dispatch.move_session(run.id, SessionState.PAUSED, detail=Intent.PAUSE.value)
    return "paused"


def _resume(work: Work, run: SessionRun) -> str:
    if run.state is SessionState.PAUSED:
        work.dispatch.move_session(run.id, SessionState.QUEUED)
        return "queued"
    if run.state is SessionState.RUNNING:
        return "goes on"
    return f"it was not paused: {run.state}"


def _retry(work: Work, run: SessionRun, tasks: list[TaskRun]) -> str:
    work.dispatch.move_tasks(
        TaskMove(task.id, TaskState.QUEUED, "asked to retry")
        for task in tasks
        if task.state in RETRIED
    )
    if run.state in SESSION_ENDS:
        work.dispatch.move_session(run.id, SessionState.QUEUED, detail="asked to retry")
        return "queued"
    return "tried again now"
