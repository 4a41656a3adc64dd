"""The states of sessions and of their tasks (one VM each), and the tables of legal steps.

The tables are the single source for the state database, the daemon, the command line's messages,
the API and the docs. What a session *did* is a `SessionReport` (model.report); the values here say
where it stands and who runs it, so that another server can go on with it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


class SessionState(enum.StrEnum):
    """Where a session stands."""

    QUEUED = "queued"
    RUNNING = "running"
    STOPPING = "stopping"
    PAUSED = "paused"
    DONE = "done"
    WARNINGS = "warnings"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    STOPPED = "stopped"


class TaskState(enum.StrEnum):
    """Where one VM of a session stands. WAITING: until the time of its next attempt."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    INTERRUPTED = "interrupted"


class Reason(enum.StrEnum):
    """Why there is a session."""

    SCHEDULE = "schedule"
    MANUAL = "manual"
    RETRY = "retry"
    AFTER_JOB = "after job"


class RequestKind(enum.StrEnum):
    """What somebody may ask of a session, or of one VM of it."""

    STOP = "stop"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"


@dataclass(frozen=True, slots=True)
class SessionStep:
    """A session may go from `state` to `result`; `when` says on which occasion."""

    state: SessionState
    result: SessionState
    when: str


@dataclass(frozen=True, slots=True)
class TaskStep:
    """A task may go from `state` to `result`; `when` says on which occasion."""

    state: TaskState
    result: TaskState
    when: str


_S = SessionState
_T = TaskState

SESSION_STEPS: tuple[SessionStep, ...] = (
    SessionStep(_S.QUEUED, _S.RUNNING, "the active server takes it"),
    SessionStep(_S.QUEUED, _S.PAUSED, "asked to pause before it began"),
    SessionStep(_S.QUEUED, _S.STOPPED, "asked to stop before it began"),
    SessionStep(_S.QUEUED, _S.FAILED, "its job is gone from the configuration"),
    SessionStep(_S.RUNNING, _S.STOPPING, "asked to stop"),
    SessionStep(_S.RUNNING, _S.PAUSED, "asked to pause, and no task runs any more"),
    SessionStep(_S.RUNNING, _S.QUEUED, "given back by a server that ends in an orderly way"),
    SessionStep(_S.RUNNING, _S.DONE, "every task is done"),
    SessionStep(_S.RUNNING, _S.WARNINGS, "every task is done or skipped, with warnings"),
    SessionStep(_S.RUNNING, _S.FAILED, "a task failed for good, or the job cannot run"),
    SessionStep(_S.RUNNING, _S.INTERRUPTED, "its server died, and it is not gone on with"),
    SessionStep(_S.STOPPING, _S.STOPPED, "no task runs any more"),
    SessionStep(_S.STOPPING, _S.DONE, "every task was done before the stop reached it"),
    SessionStep(_S.STOPPING, _S.WARNINGS, "every task was done before the stop reached it"),
    SessionStep(_S.STOPPING, _S.FAILED, "the last task failed before the stop reached it"),
    SessionStep(_S.STOPPING, _S.INTERRUPTED, "its server died while it was stopping"),
    SessionStep(_S.PAUSED, _S.QUEUED, "asked to resume"),
    SessionStep(_S.PAUSED, _S.STOPPED, "asked to stop"),
    SessionStep(_S.FAILED, _S.QUEUED, "asked to retry"),
    SessionStep(_S.WARNINGS, _S.QUEUED, "asked to retry"),
    SessionStep(_S.INTERRUPTED, _S.QUEUED, "asked to retry"),
    SessionStep(_S.STOPPED, _S.QUEUED, "asked to retry"),
)

TASK_STEPS: tuple[TaskStep, ...] = (
    TaskStep(_T.QUEUED, _T.RUNNING, "the active server takes it"),
    TaskStep(_T.QUEUED, _T.SKIPPED, "its replica is not ready, or the VM is gone"),
    TaskStep(_T.QUEUED, _T.FAILED, "it cannot be run at all"),
    TaskStep(_T.QUEUED, _T.INTERRUPTED, "asked to stop"),
    TaskStep(_T.RUNNING, _T.DONE, "its restore point is committed"),
    TaskStep(_T.RUNNING, _T.WAITING, "it failed, and is tried again later"),
    TaskStep(_T.RUNNING, _T.FAILED, "it failed for good"),
    TaskStep(_T.RUNNING, _T.SKIPPED, "its replica is not ready"),
    TaskStep(_T.RUNNING, _T.INTERRUPTED, "asked to stop, or its server died"),
    TaskStep(_T.RUNNING, _T.QUEUED, "given back: paused, or its server died"),
    TaskStep(_T.WAITING, _T.RUNNING, "its next attempt is due"),
    TaskStep(_T.WAITING, _T.QUEUED, "asked to retry at once"),
    TaskStep(_T.WAITING, _T.FAILED, "given up"),
    TaskStep(_T.WAITING, _T.INTERRUPTED, "asked to stop"),
    TaskStep(_T.FAILED, _T.QUEUED, "asked to retry"),
    TaskStep(_T.SKIPPED, _T.QUEUED, "asked to retry"),
    TaskStep(_T.INTERRUPTED, _T.QUEUED, "asked to retry"),
)

RUN_BY_A_SERVER = frozenset({SessionState.RUNNING, SessionState.STOPPING})
"""The states in which a session belongs to one server and generation."""

SESSION_ENDS = frozenset(
    {
        SessionState.DONE,
        SessionState.WARNINGS,
        SessionState.FAILED,
        SessionState.INTERRUPTED,
        SessionState.STOPPED,
    }
)
RETRIED = frozenset({TaskState.FAILED, TaskState.SKIPPED, TaskState.INTERRUPTED, TaskState.WAITING})
"""The tasks that a retry is about."""

TASK_ENDS = frozenset({TaskState.DONE, TaskState.FAILED, TaskState.SKIPPED, TaskState.INTERRUPTED})


def next_session_states(state: SessionState) -> tuple[SessionState, ...]:
    """Where a session may go from `state`, in the table's order."""
    return tuple(step.result for step in SESSION_STEPS if step.state is state)


def next_task_states(state: TaskState) -> tuple[TaskState, ...]:
    """Where a task may go from `state`, in the table's order."""
    return tuple(step.result for step in TASK_STEPS if step.state is state)


_OPEN = frozenset(SessionState) - SESSION_ENDS
REQUESTS: dict[RequestKind, frozenset[SessionState]] = {
    RequestKind.STOP: _OPEN,
    RequestKind.PAUSE: _OPEN - {SessionState.STOPPING},
    RequestKind.RESUME: frozenset({SessionState.PAUSED, SessionState.RUNNING}),
    RequestKind.RETRY: (SESSION_ENDS - {SessionState.DONE}) | {SessionState.RUNNING},
}
"""The states in which each request makes sense."""


def legal_requests(state: SessionState) -> tuple[RequestKind, ...]:
    """What may be asked of a session in `state`."""
    return tuple(kind for kind in RequestKind if state in REQUESTS[kind])


def session_states_before(result: SessionState) -> tuple[SessionState, ...]:
    """From where a session may come to `result`."""
    return tuple(step.state for step in SESSION_STEPS if step.result is result)


def task_states_before(result: TaskState) -> tuple[TaskState, ...]:
    """From where a task may come to `result`."""
    return tuple(step.state for step in TASK_STEPS if step.result is result)


@dataclass(frozen=True, slots=True)
class SessionRun:
    """A session as it stands. Times are ISO 8601 in UTC, '' where there is none.

    `slot` is the time the schedule asked for ('' for others): one session per job and slot, so
    that a missed or repeated look makes no second one. `machines` empty means all of the job.
    `after` is the session this one follows. `server` and `generation` say who runs it, or ran it
    last. `options` are what a manual start gave (`accept_loss` …).
    """

    id: str
    job: str
    state: SessionState
    reason: Reason
    slot: str = ""
    priority: int = 0
    machines: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    asked_by: str = ""
    after: str = ""
    queued_at: str = ""
    started_at: str = ""
    ended_at: str = ""
    changed_at: str = ""
    server: str = ""
    generation: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class TaskRun:
    """One VM of a session as it stands. `attempt` counts the starts; `detail` says why it
    stands where it stands."""

    id: str
    session: str
    position: int
    machine: str
    machine_id: str
    state: TaskState
    attempt: int = 0
    next_attempt_at: str = ""
    started_at: str = ""
    ended_at: str = ""
    changed_at: str = ""
    server: str = ""
    generation: int = 0
    detail: str = ""


def nothing_to_retry(run: SessionRun, tasks: Sequence[TaskRun], machine: str = "") -> str:
    """Why the session with all these tasks, or its task for that VM, is not to be tried again; ''
    where it is. One that failed before it had tasks is, as a whole."""
    if run.state is SessionState.DONE:
        return "nothing failed: all its VMs are done"
    if not tasks:
        return "" if run.state in SESSION_ENDS else "nothing failed yet: it has not begun with VMs"
    if not machine:
        return "" if any(task.state in RETRIED for task in tasks) else "nothing failed"
    mine = [task for task in tasks if task.machine == machine]
    if not mine:
        return f"nothing failed: VM {machine} is not in it"
    if any(task.state in RETRIED for task in mine):
        return ""
    return f"nothing failed: VM {machine} is {mine[0].state}"


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """What somebody asked of a session (`machine` '': of all of it). Never deleted before its
    session: the trail of who asked what, when, and what became of it. `handled_at` '' means that
    the active server has still to act."""

    id: int
    session: str
    machine: str
    kind: RequestKind
    asked_by: str
    asked_at: str
    handled_at: str = ""
    handled_by: str = ""
    result: str = ""
