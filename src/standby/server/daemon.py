"""`standby server`: the active backup server, which queues due sessions and runs them.

It sleeps until the next due time or until something changes in the state database, and then looks
once (`step`). Sessions run in threads of their own (`daemon_sessions`). Of several servers on one
state database one is active by its lease; the others wait for it to end. A server that becomes
active goes on with what the last one had begun.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from standby.clock import new_token
from standby.errors import ServerFenced, StandbyError
from standby.model.report import SessionReport
from standby.model.session import SESSION_ENDS, Reason, SessionRun, SessionState, TaskState
from standby.server.daemon_events import alarm_payload, result_payload
from standby.server.daemon_requests import handle_request
from standby.server.daemon_sessions import Intent, Runner, RunningSession, Work, settled
from standby.server.due import DueTimes
from standby.server.logs import Log
from standby.server.rpo import RpoWatch
from standby.server.schedule import window_end
from standby.server.store.dispatch import Dispatch, TaskMove
from standby.server.store.lease import LEASE_S, LeaseKeeper

LOOK_S = 60.0
"""The longest sleep: after it, a clock that somebody set or a suspended machine is noticed."""
DETAIL_S = 10.0
"""How often the state database is told what sessions at work are at."""
TOGETHER_S = 0.05
"""What changes within that is looked at together: a session that ends says so several times, and
with a thousand that wait each look costs milliseconds."""
LOOK_PAUSE = 4
PAUSE_MAX_S = 1.0
"""For LOOK_PAUSE times as long as a look kept the processor, but no longer than that, what changes
is looked at together: looks take a fifth of it at most, however much there is to be looked at."""
GRACE_S = 60.0
"""How long sessions may take to end when the server does."""
MAX_SESSIONS = 16
HISTORY = timedelta(days=90)
"""Ended sessions are forgotten after that, but for each job's newest SESSIONS_KEPT; what they did
is in their reports."""
SESSIONS_KEPT = 100

Publish = Callable[[str, dict[str, object]], None]
"""Told of every 'result' and 'alarm', with what is to be said about it."""


class Daemon:
    """The server's loop. `run` it in one thread; `stop` and `wake` it from any."""

    def __init__(
        self,
        runner: Runner,
        *,
        log: Log | None = None,
        address: str = "",
        publish: Publish = lambda event, payload: None,
        on_ready: Callable[[bool], None] = lambda is_active: None,
        on_look: Callable[[], None] = lambda: None,
        doing: Callable[[str, str], str] = lambda job, report: "",
        max_sessions: int = MAX_SESSIONS,
        lease_s: float = LEASE_S,
        least_generation: int = 0,
    ) -> None:
        """`address` is where the API answers, for other servers to tell. `on_ready(is_active)` is
        called when the server is active, and before when it waits for another one to end; `on_look`
        whenever it looks what is due, once in LOOK_S at the least. `doing(job, report)` says what
        a session at work is at."""
        self.runner = runner
        self.clock = runner.clock
        self.log = log or Log()
        self.id = f"{platform.node()}:{os.getpid()}:{new_token(3)}"
        self._queue = runner.store.queue
        self._publish = publish
        self._on_ready = on_ready
        self._on_look = on_look
        self._doing = doing
        self._told: dict[str, str] = {}
        self._pause_s = TOGETHER_S
        self._max_sessions = max_sessions
        self._lease = runner.store.lease(
            self.id, address=address, duration_s=lease_s, least_generation=least_generation
        )
        self._store = runner.store.guarded(self._lease)
        self._wakeups = runner.store.wakeups()
        self._stopping = threading.Event()
        self._lost: StandbyError | None = None
        self._running: dict[str, RunningSession] = {}
        self._lock = threading.Lock()
        self._due = DueTimes(runner)
        self._rpo = RpoWatch(runner, self._store, self.log, self._wakeups.wake)
        self._forget_at = datetime.min.replace(tzinfo=UTC)
        self._last_alarm = max((alarm.id for alarm in runner.store.alarms()), default=0)

    # --- from other threads ------------------------------------------------------------------

    def wake(self) -> None:
        """Look now."""
        self._wakeups.wake()

    def stop(self) -> None:
        """End in an orderly way: sessions stop where they are and go on with the next server."""
        self._stopping.set()
        self._wakeups.wake()

    def running(self) -> list[str]:
        """The sessions at work now."""
        with self._lock:
            return list(self._running)

    # --- the loop ----------------------------------------------------------------------------

    def run(self) -> None:
        """Wait to be the active server, be it until `stop`; raises when another one took over."""
        try:
            if not self._become_active():
                return
            with LeaseKeeper(self._lease, self._lose):
                try:
                    self.begin()
                    self._on_ready(True)
                    while not self._stopping.is_set():
                        if self._wakeups.wait(self._round()):
                            self._stopping.wait(self._pause_s)
                            self._wakeups.wait(0)  # what came meanwhile is looked at now
                finally:
                    self.end()
            if self._lost is not None:
                raise self._lost
        finally:
            self.close()

    def close(self) -> None:
        """Stop listening to the state database; `run` does it by itself."""
        self._wakeups.close()

    @property
    def is_active(self) -> bool:
        """Whether this is the active server, as far as its clock tells."""
        return self._lost is None and self._lease.is_held

    def acquire(self) -> bool:
        """Become the active server if nobody is: what `run` waits for."""
        return self._lease.acquire()

    def _become_active(self) -> bool:
        is_told = False
        while not self._stopping.is_set():
            try:
                if self.acquire():
                    return True
                holder = self._lease.holder()
                if not is_told and holder is not None:
                    where = f" at {holder.address}" if holder.address else ""
                    self.log.warning(f"{holder.server}{where} is the active server: standing by")
                    self._on_ready(False)
                    is_told = True
                wait_s = max(0.1, holder.expires_in_s) if holder is not None else 0.1
            except StandbyError as exc:
                self.log.error(f"cannot become the active server: {exc}")
                wait_s = self._lease.duration_s / 3
            self._wakeups.wait(min(wait_s, self._lease.duration_s / 3))
        return False

    def _lose(self, error: StandbyError) -> None:
        """Another server is active; noticed by the lease's keeper, by the loop, or by both."""
        with self._lock:
            is_known, self._lost = self._lost is not None, self._lost or error
        if not is_known:
            self.runner.abandon()
            self.stop()

    def begin(self) -> None:
        """Being the active server, go on with what the last one had begun."""
        self.log.info(f"active as {self.id}, generation {self._lease.generation}")
        dispatch = self.runner.store.dispatch(self._lease)
        self._work = Work(self.runner, self._store, dispatch, self.log, self._report, self._ended)
        self.runner.lead(self._lease)
        self._adopt(dispatch)

    def end(self) -> None:
        """Have all sessions end, given back to the queue, and give up the lease."""
        self._stopping.set()
        self._end_sessions()
        if self._lost is None:
            self.runner.lead(None)
            self._lease.release()

    def _round(self) -> float:
        """Do what is due; seconds until something may be due again."""
        used_s = self.clock.thread_cpu_s()
        try:
            next_at = self.step()
        except StandbyError as exc:
            if isinstance(exc, ServerFenced) or not self._lease.is_held:
                self._lose(exc)
                return 0.0
            self.log.error(f"cannot go on now: {exc}")
            return self._lease.duration_s / 3
        used_s = self.clock.thread_cpu_s() - used_s
        self._pause_s = min(max(TOGETHER_S, LOOK_PAUSE * used_s), PAUSE_MAX_S)
        longest_s = DETAIL_S if self._told else LOOK_S
        if next_at is None:
            return longest_s
        return min(longest_s, max(0.0, (next_at - self.clock.now()).total_seconds()))

    def step(self) -> datetime | None:
        """Do everything that is due now; when something is due next, as far as is known."""
        now = self.clock.now()
        self._on_look()
        times: list[datetime | None] = []
        for request in self._queue.requests(open_only=True):
            text = handle_request(self._work, self._running_session(request.session), request)
            self._work.dispatch.handled(request.id, text)
            self.log.info(
                f"{request.kind} asked by {request.asked_by}: {text}",
                session=request.session,
                machine=request.machine,
            )
        times.append(self._queue_due(now))
        times.append(self._close_windows(now))
        self._start_retries(now)
        self._start_queued()
        retry_at = self._queue.next_retry_at()
        times.append(datetime.fromisoformat(retry_at) if retry_at else None)
        self._tell()
        times.append(self._rpo.check(now))
        self._publish_alarms()
        self._forget(now)
        later = [time for time in times if time is not None and time > now]
        return min(later, default=None)

    def _tell(self) -> None:
        """Have the state database say what the sessions at work are at."""
        with self._lock:
            running = dict(self._running)
        told = {
            name: self._doing(session.run.job, session.report_id)
            for name, session in running.items()
        }
        for name in self._told | told:  # those that only wait to try VMs again are at nothing
            if told.get(name, "") != self._told.get(name, ""):
                self._work.dispatch.tell_session(name, told.get(name, ""))
        self._told = told

    def _forget(self, now: datetime) -> None:
        """Once a day, the sessions that are history."""
        if now < self._forget_at:
            return
        while self._work.dispatch.forget_sessions(now - HISTORY, SESSIONS_KEPT):
            pass
        self._forget_at = now + timedelta(days=1)

    def _running_session(self, session: str) -> RunningSession | None:
        with self._lock:
            return self._running.get(session)

    # --- what is due -------------------------------------------------------------------------

    def _queue_due(self, now: datetime) -> datetime | None:
        """Queue the session of every slot that is due; when the next one is."""
        open_jobs = self._due.open_jobs()
        next_at: datetime | None = None
        for job in self.runner.config.schedules:
            due = self._due.next_at(job, now, open_jobs)
            if due is not None and due <= now:
                self._queue_slot(job, due, self._queue.open_sessions(job))
                due = self._due.next_at(job, now, open_jobs)
            if due is not None and due > now:
                next_at = due if next_at is None else min(next_at, due)
        return next_at

    def _queue_slot(self, job: str, slot: datetime, open_runs: list[SessionRun]) -> None:
        """A session for the slot. One that still works takes its place; one that only waits to try
        failed VMs again gives way to it, and one that was paused holds the job."""
        self._due.handled(job, slot)
        for run in open_runs:
            if run.state is SessionState.RUNNING and self._running_session(run.id) is None:
                self._give_up_retries(run)
            elif run.state is not SessionState.PAUSED or "" in self._work.paused(run.id):
                text = f"the slot of {slot:%Y-%m-%d %H:%M} UTC is passed over: a session is"
                self.log.info(f"{text} {run.state}", job=job, session=run.id)
                return
        called_by = self._due.called_by(job)
        self._queue.enqueue(
            job,
            Reason.AFTER_JOB if called_by else Reason.SCHEDULE,
            slot=slot.astimezone(UTC).isoformat(timespec="microseconds"),
            priority=self.runner.config.job(job).priority,
            asked_by="schedule",
            after=called_by,
            lease=self._lease,
        )

    def _give_up_retries(self, run: SessionRun) -> None:
        tasks = self._queue.tasks(run.id, {TaskState.WAITING})
        self._work.dispatch.move_tasks(
            TaskMove(task.id, TaskState.FAILED, f"{task.detail}; left to the next session")
            for task in tasks
        )
        self._ended(settled(self._work, run.id, Intent.NONE))

    def _close_windows(self, now: datetime) -> datetime | None:
        """Stop sessions whose window has closed; when the next one closes."""
        next_at: datetime | None = None
        with self._lock:
            running = list(self._running.values())
        for session in running:
            if session.run.reason is Reason.MANUAL:
                continue
            schedule = self._work.schedule(session.run.job)
            end = window_end(schedule, now, self._work.zone)
            if end is not None and end <= now:
                if session.intent is Intent.NONE:
                    self.log.warning(
                        "its window has closed: stopped, the next session goes on from there",
                        session=session.run.id,
                        job=session.run.job,
                    )
                session.end(Intent.WINDOW)
            elif end is not None:
                next_at = end if next_at is None else min(next_at, end)
        return next_at

    def _start_retries(self, now: datetime) -> None:
        """Go on with sessions of which a VM's next attempt is due, or that a VM came back to."""
        if not self._has_room():
            return
        due = {task.session for task in self._queue.due_retries(now)}
        for run in self._queue.sessions({SessionState.RUNNING}):
            if self._running_session(run.id) is not None or not self._has_room():
                continue
            if run.id not in due:
                queued = self._queue.tasks(run.id, {TaskState.QUEUED})
                paused = self._work.paused(run.id) if queued else set()
                if not any(task.machine not in paused for task in queued):
                    continue
            self._start(run)

    def _start_queued(self) -> None:
        """Take queued sessions as far as there is room."""
        with self._lock:
            room = self._max_sessions - len(self._running)
            busy = {session.run.job for session in self._running.values()}
        if room <= 0 or self._stopping.is_set():
            return
        queued = self._queue.jobs_with({SessionState.QUEUED})
        for job in queued - self.runner.config.jobs.keys():
            for run in self._queue.sessions({SessionState.QUEUED}, job=job):
                self._work.dispatch.move_session(
                    run.id, SessionState.FAILED, detail="its job is gone from the configuration"
                )
        if queued - busy:
            for run in self._work.dispatch.claim_sessions(room, without=busy):
                self._start(run)

    def _has_room(self) -> bool:
        with self._lock:
            return len(self._running) < self._max_sessions and not self._stopping.is_set()

    def _start(self, run: SessionRun) -> None:
        session = RunningSession(self._work, run)
        with self._lock:
            self._running[run.id] = session
        session.start()

    # --- what happened -----------------------------------------------------------------------

    def _report(self, run: SessionRun, report: SessionReport) -> None:
        """From a session's thread: an attempt has ended."""
        self._rpo.look_again(run.job)
        self._publish("result", result_payload(run, report))

    def _ended(self, run: SessionRun) -> None:
        """A session's thread has ended."""
        with self._lock:
            self._running.pop(run.id, None)
        if run.state in SESSION_ENDS:
            self.log.info(f"ended: {run.state}", session=run.id, job=run.job)
        self._wakeups.wake()

    def _publish_alarms(self) -> None:
        """Tell of alarms that were raised since the last look."""
        for alarm in self.runner.store.alarms_after(self._last_alarm):
            self._last_alarm = alarm.id
            self.log.warning(f"alarm: {alarm.text}", job=alarm.job, machine=alarm.machine)
            self._publish("alarm", alarm_payload(alarm))

    # --- the beginning and the end -----------------------------------------------------------

    def _adopt(self, dispatch: Dispatch) -> None:
        """Go on with the sessions of the last active server."""
        for run, tasks in dispatch.adopt():
            back = [task for task in tasks if task.state is TaskState.RUNNING]
            text = "its server ended; it goes on from what was transferred"
            dispatch.move_tasks(TaskMove(task.id, TaskState.QUEUED, text) for task in back)
            if run.state is SessionState.STOPPING:
                settled(self._work, run.id, Intent.STOP)
                continue
            self.log.info(
                f"goes on: {len(back)} of {len(tasks)} VMs were at work when its server ended",
                session=run.id,
                job=run.job,
            )
            if run.job not in self.runner.config.jobs:
                settled(self._work, run.id, Intent.STOP, detail="its job is gone")
            else:
                self._start(run)

    def _end_sessions(self) -> None:
        """Have all sessions end, given back to the queue, and wait for that."""
        with self._lock:
            running = list(self._running.values())
        for session in running:
            session.end(Intent.GIVE_BACK)
        deadline = self.clock.monotonic() + GRACE_S
        for session in running:
            left_s = max(0.0, deadline - self.clock.monotonic())
            if not session.join(left_s):
                self.log.error(
                    f"does not end within {GRACE_S:.0f} s: the next server goes on with it",
                    session=session.run.id,
                    job=session.run.job,
                )
