"""One session of the queue, run by the active server: its VMs attempted, ended, tried again.

A session's thread runs what can be run now and ends. VMs that failed wait in the state database
for their next attempt, and the daemon starts another thread when that is due; so a session that
waits costs nothing, and one of a server that died is gone on with by the next.
"""

from __future__ import annotations

import contextlib
import enum
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any, Protocol

from standby.clock import Clock
from standby.errors import JobError, ServerFenced, SessionStopped, StandbyError, UnknownName
from standby.model.job import ReplicationJob
from standby.model.machine import Machine
from standby.model.report import MachineReport, SessionReport
from standby.model.session import (
    TASK_ENDS,
    RequestKind,
    SessionRun,
    SessionState,
    TaskRun,
    TaskState,
)
from standby.server.config import Config
from standby.server.logs import Log
from standby.server.schedule import Schedule, retry_due
from standby.server.store import ServerLease, Store
from standby.server.store.dispatch import Dispatch, TaskMove
from standby.server.waits import waits_end_when

OPTIONS = ("take_over", "accept_loss")
"""What a session of the queue may carry to `BackupServer.start`."""
ALL_TASKS = 1_000_000


class Ages(Protocol):
    """What the daemon asks of replicas."""

    def newest_age_s(self, job: ReplicationJob, machine_id: str) -> float | None: ...


class Runner(Protocol):
    """What the daemon needs of `BackupServer`."""

    @property
    def config(self) -> Config: ...
    @property
    def store(self) -> Store: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def replicas(self) -> Ages: ...
    def machines(self, job: ReplicationJob) -> list[Machine]: ...
    def start(
        self,
        job: str,
        *,
        machines: Sequence[str] | None = None,
        session: str = "",
        take_over: bool = False,
        accept_loss: bool = False,
    ) -> SessionReport: ...
    def left_out(self, job: ReplicationJob, machine_ids: Collection[str]) -> set[str]: ...
    def stop_session(self, session: str) -> bool: ...
    def stop_machine(self, session: str, machine: str) -> bool: ...
    def lead(self, lease: ServerLease | None) -> None: ...
    def abandon(self) -> None: ...


class Intent(enum.Enum):
    """Why a running session is to end before its work is done."""

    NONE = ""
    STOP = "stopped"
    WINDOW = "stopped: its window closed"
    PAUSE = "paused"
    GIVE_BACK = "given back by a server that ended"


@dataclass(frozen=True, slots=True)
class Work:
    """What all sessions of an active server share."""

    runner: Runner
    store: Store
    """The state database, as long as this is the active server."""
    dispatch: Dispatch
    log: Log
    on_report: Callable[[SessionRun, SessionReport], None]
    on_end: Callable[[SessionRun], None]
    """Called with the session as it stands when its thread has ended."""

    @property
    def zone(self) -> tzinfo:
        """The zone of the schedules' times."""
        return self.runner.config.time_zone

    def schedule(self, job: str) -> Schedule:
        """The job's schedule; one without a trigger where it has none."""
        return self.runner.config.schedules.get(job) or Schedule()

    def paused(self, session: str) -> set[str]:
        """The VMs that are paused ('' is the session itself), from the trail of requests."""
        found: set[str] = set()
        for request in self.store.queue.requests(session):
            if request.kind is RequestKind.PAUSE:
                found.add(request.machine)
            elif request.machine:
                found.discard(request.machine)
            else:
                found.clear()
        return found


class RunningSession:
    """A session at work in a thread of its own, until nothing of it can be done now."""

    def __init__(self, work: Work, run: SessionRun) -> None:
        self.work = work
        self.run = run
        self.report_id = ""
        self.intent = Intent.NONE
        self._stopped_machines: set[str] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=f"session {run.id}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread's end; whether it has come."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def end(self, intent: Intent) -> None:
        """Have it end as soon as it can; what was transferred is kept. A second intent is passed
        over, but that a stop overrides a pause."""
        with self._lock:
            if self.intent is Intent.NONE or (self.intent, intent) == (Intent.PAUSE, Intent.STOP):
                self.intent = intent
            report = self.report_id
        if not report:
            return
        try:
            self.work.store.ask_to_stop(report)
        except StandbyError:  # fenced, or the database cannot be reached
            self.work.runner.stop_session(report)

    def end_machine(self, machine: str) -> bool:
        """Have the work on one VM end; False when it is not at work."""
        with self._lock:
            self._stopped_machines.add(machine)
            report = self.report_id
        return bool(report) and self.work.runner.stop_machine(report, machine)

    # --- the thread --------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            with waits_end_when(lambda: self.intent is not Intent.NONE):
                self.run = self._until_nothing_is_left()
        except StandbyError as exc:  # fenced, or the database cannot be reached
            self.work.log.error(
                f"the session cannot be recorded: {exc}", session=self.run.id, job=self.run.job
            )
        except BaseException as exc:  # a bug: this session's trouble is not the others'
            text = f"unexpected {type(exc).__name__}: {exc}"
            self.work.log.error(text, session=self.run.id, job=self.run.job, error=exc)
            with contextlib.suppress(StandbyError):
                self.run = self._failed(text)
        finally:
            self.work.on_end(self.run)

    def _until_nothing_is_left(self) -> SessionRun:
        """Attempt whatever is due until nothing is; the session as it stands then."""
        dispatch, run = self.work.dispatch, self.run
        try:
            self._add_tasks()
        except StandbyError as exc:
            if self.intent is not Intent.NONE:  # a mover was waited for until then
                return settled(self.work, run.id, self.intent)
            self._report_failure(exc)
            return dispatch.move_session(run.id, SessionState.FAILED, detail=str(exc))
        while self.intent is Intent.NONE:
            tasks = self.work.store.queue.tasks(run.id)
            ready = self._ready(tasks)
            if not ready:
                break
            claimed = dispatch.claim_tasks(ALL_TASKS, sessions=[run.id], tasks=ready)
            if not claimed:
                break
            self._attempt(claimed, is_all=len(claimed) == len(tasks))
        return settled(self.work, run.id, self.intent)

    def _ready(self, tasks: Sequence[TaskRun]) -> list[str]:
        """The ids of those that may be attempted, as soon as they are due."""
        if all(task.state in TASK_ENDS for task in tasks):
            return []
        paused = self.work.paused(self.run.id)
        return [
            task.id for task in tasks if task.state not in TASK_ENDS and task.machine not in paused
        ]

    def _add_tasks(self) -> None:
        """A task for each VM the session takes; those whose VM is gone are passed over."""
        run, runner = self.run, self.work.runner
        job = runner.config.job(run.job)
        try:
            found = [(item.name, item.id) for item in runner.machines(job)]
        except StandbyError:
            # The host cannot be asked: then the VMs it had are what fails, and is tried again.
            if self.work.store.queue.tasks(run.id):
                return
            found = [
                (item.name.removesuffix(job.suffix), item.identity.machine_id)
                for item in self.work.store.known_replicas(run.job)
            ]
            if not found:
                raise
        names = {name for name, _ in found}
        if run.machines and not names & set(run.machines):
            named = ", ".join(run.machines)
            raise UnknownName(f"VM in job {run.job}", named, tuple(sorted(names)))
        wanted = [item for item in found if not run.machines or item[0] in run.machines]
        if not wanted:
            raise JobError(run.job, "no VM matches", "See `standby job plan`")
        tasks = self.work.dispatch.add_tasks(run.id, wanted)
        gone = [
            TaskMove(task.id, TaskState.SKIPPED, "the job takes this VM no more")
            for task in tasks
            if task.state is TaskState.QUEUED and task.machine not in names
        ]
        if gone:
            self.work.dispatch.move_tasks(gone)

    def _failed(self, text: str) -> SessionRun:
        """The session ended with all that is open of it."""
        tasks = self.work.store.queue.tasks(self.run.id)
        self.work.dispatch.move_tasks(
            TaskMove(task.id, TaskState.FAILED, text)
            for task in tasks
            if task.state not in TASK_ENDS
        )
        return self.work.dispatch.move_session(self.run.id, SessionState.FAILED, detail=text)

    def _attempt(self, tasks: list[TaskRun], *, is_all: bool) -> None:
        """One session of `BackupServer` over these VMs, which may be all that the session has."""
        run, work = self.run, self.work
        with self._lock:
            self.report_id = self._free_report_id()
            self._stopped_machines.clear()
            is_wanted = self.intent is Intent.NONE
        fields = {"session": run.id, "job": run.job}
        error = ""
        report = SessionReport(self.report_id, run.job, "")
        if is_wanted:
            work.log.info(f"begins: {len(tasks)} VMs, {run.reason}", **fields)
            try:
                # Of all of the job: VMs that their host cannot describe are in the report too.
                is_whole = is_all and not run.machines
                machines = None if is_whole else [task.machine for task in tasks]
                options: dict[str, Any] = {key: bool(run.options.get(key)) for key in OPTIONS}
                report = work.runner.start(
                    run.job,
                    machines=machines,
                    session=self.report_id,
                    **options,
                )
            except ServerFenced:
                raise  # how it ends is the other server's to tell
            except StandbyError as exc:
                error = str(exc)
                if not isinstance(exc, SessionStopped):
                    self._report_failure(exc)
            else:
                work.on_report(run, report)
        if self.intent is Intent.NONE and work.store.is_asked_to_stop(self.report_id):
            self.intent = Intent.STOP  # by `standby job stop`, which knows reports only
        found = {item.machine: item for item in report.machines}
        now = work.runner.clock.now()
        with self._lock:
            moves = [self._move(task, found.get(task.machine), error, now) for task in tasks]
            self.report_id = ""
        work.dispatch.move_tasks(moves)
        self._add_unusable(tasks, report)
        for task, move in zip(tasks, moves, strict=True):
            level = "info" if move.to in (TaskState.DONE, TaskState.QUEUED) else "warning"
            text = f"{move.to}: {move.detail}" if move.detail else str(move.to)
            work.log.write(level, text, {"machine": task.machine, "task": task.id, **fields})

    def _add_unusable(self, tasks: list[TaskRun], report: SessionReport) -> None:
        """Tasks, failed, for VMs of the report that have none: their host cannot describe them."""
        known = {task.machine for task in tasks}
        more = [item for item in report.machines if item.machine and item.machine not in known]
        texts = {item.machine: item.error for item in more if item.outcome == "failed"}
        if not texts:
            return
        ids = [
            (item.machine, item.machine_id or item.machine)
            for item in more
            if item.machine in texts
        ]
        added = self.work.dispatch.add_tasks(self.run.id, ids)
        self.work.dispatch.move_tasks(
            TaskMove(task.id, TaskState.FAILED, texts[task.machine])
            for task in added
            if task.machine in texts and task.state is TaskState.QUEUED
        )

    def _free_report_id(self) -> str:
        """The session's id, with a number behind it from its second attempt on."""
        number, name = 1, self.run.id
        while self.work.store.has_session(name):
            number += 1
            name = f"{self.run.id}.{number}"
        return name

    def _report_failure(self, exc: StandbyError) -> None:
        """Tell of a session that could not do its work at all."""
        now = self.work.runner.clock.now().isoformat()
        name = self.report_id or self.run.id
        report = SessionReport(name, self.run.job, now, now, "failed")
        report.machines.append(MachineReport("", "", outcome="failed", error=str(exc)))
        self.work.log.error(str(exc), session=self.run.id, job=self.run.job)
        self.work.on_report(self.run, report)

    def _move(
        self, task: TaskRun, report: MachineReport | None, error: str, now: datetime
    ) -> TaskMove:
        """What becomes of a VM's task after an attempt."""
        if report is not None and report.outcome == "done":
            detail = "; ".join([*report.warnings, *report.alarms])
            return TaskMove(task.id, TaskState.DONE, detail)
        if report is not None and report.outcome == "skipped":
            return TaskMove(task.id, TaskState.SKIPPED, "; ".join(report.warnings))
        text = error or (report.error if report is not None else "") or self.intent.value
        if self.intent in (Intent.STOP, Intent.WINDOW):
            return TaskMove(task.id, TaskState.INTERRUPTED, self.intent.value)
        if self.intent is not Intent.NONE:
            return TaskMove(task.id, TaskState.QUEUED, self.intent.value)
        if task.machine in self.work.paused(self.run.id):
            return TaskMove(task.id, TaskState.QUEUED, Intent.PAUSE.value)
        if task.machine in self._stopped_machines:
            return TaskMove(task.id, TaskState.INTERRUPTED, Intent.STOP.value)
        due = retry_due(self.work.schedule(self.run.job), now, task.attempt, self.work.zone)
        if due is None:
            return TaskMove(task.id, TaskState.FAILED, text)
        return TaskMove(task.id, TaskState.WAITING, text, due.isoformat())


def settled(work: Work, session: str, intent: Intent, *, detail: str = "") -> SessionRun:
    """The session moved to where its tasks say, when no thread works on it: ended, paused, queued
    again, or as it is where VMs wait for their next attempt."""
    dispatch, queue = work.dispatch, work.store.queue
    tasks = queue.tasks(session)
    open_tasks = [task for task in tasks if task.state not in TASK_ENDS]
    if open_tasks and intent in (Intent.STOP, Intent.WINDOW):
        dispatch.move_tasks(
            TaskMove(task.id, TaskState.INTERRUPTED, detail or intent.value) for task in open_tasks
        )
        open_tasks = []
        tasks = queue.tasks(session)
    has_begun = bool(tasks) or intent is Intent.NONE
    if open_tasks or (not has_begun and intent in (Intent.GIVE_BACK, Intent.PAUSE)):
        if intent is Intent.GIVE_BACK:
            return dispatch.move_session(session, SessionState.QUEUED, detail=intent.value)
        paused = work.paused(session)
        is_held = all(
            task.state is TaskState.QUEUED and paused & {task.machine, ""} for task in open_tasks
        )
        if intent is Intent.PAUSE or is_held:
            return dispatch.move_session(session, SessionState.PAUSED, detail=Intent.PAUSE.value)
        return queue.session(session)
    run = queue.session(session)
    is_stopped = run.state is SessionState.STOPPING or intent in (Intent.STOP, Intent.WINDOW)
    states = {task.state for task in tasks}
    if is_stopped and (TaskState.INTERRUPTED in states or not has_begun):
        if run.state is SessionState.RUNNING:
            dispatch.move_session(session, SessionState.STOPPING, detail=detail or intent.value)
        return dispatch.move_session(session, SessionState.STOPPED, detail=detail or intent.value)
    if states & {TaskState.FAILED, TaskState.INTERRUPTED}:
        failed = [task.machine for task in tasks if task.state is not TaskState.DONE]
        detail = detail or f"not done: {', '.join(failed)}"
        return dispatch.move_session(session, SessionState.FAILED, detail=detail)
    if TaskState.SKIPPED in states or any(task.detail for task in tasks):
        return dispatch.move_session(session, SessionState.WARNINGS, detail=detail)
    return dispatch.move_session(session, SessionState.DONE, detail=detail)
