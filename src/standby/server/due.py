"""When each job is due: its schedule, and what the state database knows of its sessions."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

from standby.model.session import Reason, SessionRun, SessionState
from standby.server.daemon_sessions import Runner
from standby.server.schedule import AfterJob, Continuous, LastRuns, believed, next_due
from standby.server.store.queue import OPEN

CALLING_ENDS = frozenset({SessionState.DONE, SessionState.WARNINGS, SessionState.FAILED})
"""Ends after which the jobs that follow begin; a session that somebody stopped calls nobody."""


class DueTimes:
    """Per job, the slot that was handled last: the newest that was queued, and those passed over
    since this value was made. Use it from one thread."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._queue = runner.store.queue
        now = runner.clock.now().astimezone(UTC)
        self._since = now
        self._handled: dict[str, datetime] = {
            job: believed(datetime.fromisoformat(slot), now)
            for job, slot in self._queue.last_slots().items()
        }
        self._called_by: dict[str, str] = {}
        self._found: dict[str, tuple[datetime, datetime, datetime]] = {}

    def handled(self, job: str, slot: datetime) -> None:
        """The slot was queued, or passed over."""
        self._handled[job] = max(slot, self._handled.get(job, slot))

    def called_by(self, job: str) -> str:
        """The session that the job follows now, '' for a job with a schedule of its own."""
        return self._called_by.get(job, "")

    def open_jobs(self) -> set[str]:
        """The jobs of which a session is open, as far as a schedule asks for that."""
        schedules = self._runner.config.schedules.values()
        if any(isinstance(item.trigger, Continuous | AfterJob) for item in schedules):
            return self._queue.jobs_with(OPEN)
        return set()

    def next_at(self, job: str, now: datetime, open_jobs: Collection[str]) -> datetime | None:
        """When the job is due next; not after `now` where it is due. Continuous jobs and jobs
        after another are due only when nothing of them is open."""
        schedule = self._runner.config.schedules.get(job)
        if schedule is None:
            return None
        handled = believed(self._handled.get(job, self._since), now)
        if job in self._handled:
            self._handled[job] = handled
        else:
            self._since = believed(self._since, now)
        found = self._found.get(job)
        if found is not None and found[0] == handled and found[1] <= now < found[2]:
            return found[2]  # slots do not move: looked for once, not with every change anywhere
        last = LastRuns(handled)
        is_open = job in open_jobs
        if isinstance(schedule.trigger, Continuous):
            if is_open:
                return None
            last = self._after_own_end(job, handled)
        elif isinstance(schedule.trigger, AfterJob):
            called = None if is_open else self._caller(job, schedule.trigger.job)
            self._called_by[job] = called.id if called is not None else ""
            if called is not None:
                last = LastRuns(handled, called_at=datetime.fromisoformat(called.ended_at))
        due = next_due(schedule, last, now, self._runner.config.time_zone)
        if due is not None and not isinstance(schedule.trigger, Continuous | AfterJob):
            self._found[job] = (handled, now, due)
        return due

    def _after_own_end(self, job: str, handled: datetime) -> LastRuns:
        for run in self._queue.last_sessions(job, 1):
            if run.ended_at:
                ended = datetime.fromisoformat(run.ended_at)
                return LastRuns(handled, ended, run.state is SessionState.FAILED)
        return LastRuns(handled)

    def _caller(self, job: str, other: str) -> SessionRun | None:
        """The session of `other` that the job has still to follow."""
        for run in self._queue.last_sessions(other, 5):
            if run.state in CALLING_ENDS and run.reason is not Reason.MANUAL:
                own = self._queue.last_sessions(job, 5)
                known = datetime.fromisoformat(own[-1].queued_at) if own else self._since
                is_followed = any(item.after == run.id for item in own)
                is_new = datetime.fromisoformat(run.ended_at) > known
                return None if is_followed or not is_new else run
        return None


def next_times(runner: Runner, now: datetime) -> dict[str, datetime | None]:
    """Per job, when its schedule has it run next as far as that is known now; for the command
    line, in whatever process."""
    due = DueTimes(runner)
    open_jobs = due.open_jobs()
    return {
        job: due.next_at(job, now, open_jobs) if job in runner.config.schedules else None
        for job in runner.config.jobs
    }
