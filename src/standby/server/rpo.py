"""Alarms of replicas whose newest point is older than the job's rpo: by time, not by session."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from standby.errors import StandbyError
from standby.model.job import ReplicationJob
from standby.server.daemon_sessions import Runner
from standby.server.logs import Log
from standby.server.overdue import RPO
from standby.server.store import KnownReplica, Store


class RpoWatch:
    """Knows when the next replica becomes too old, and raises the alarm then. It looks in a thread
    of its own: a target that is away must not hold up the server."""

    def __init__(
        self,
        runner: Runner,
        store: Store,
        log: Log,
        on_looked: Callable[[], None] = lambda: None,
    ) -> None:
        """Alarms go to `store`. `on_looked` is called from that thread when `check` knows more."""
        self._runner = runner
        self._store = store
        self._log = log
        self._on_looked = on_looked
        self._thread: threading.Thread | None = None
        self._since = runner.clock.now()
        self._next: dict[str, datetime] = {}
        self._again: set[str] = set()
        self._lock = threading.Lock()

    def look_again(self, job: str) -> None:
        """There may be a new point. From any thread."""
        with self._lock:
            self._again.add(job)

    def check(self, now: datetime) -> datetime | None:
        """Begin to look after the jobs of which a replica may be too old now; when the next one
        may be, as far as is known."""
        with self._lock:
            if self._thread is not None:
                return None
            jobs = [
                job
                for job in self._runner.config.jobs.values()
                if job.rpo_s and (job.name in self._again or self._next.get(job.name, now) <= now)
            ]
            self._again.clear()
            if jobs:
                self._thread = threading.Thread(
                    target=self._look, args=(jobs, now), name="rpo", daemon=True
                )
                self._thread.start()
            return min(self._next.values(), default=None)

    def join(self, timeout_s: float | None = None) -> None:
        """Wait for a look that is under way."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _look(self, jobs: list[ReplicationJob], now: datetime) -> None:
        found: dict[str, datetime] = {}
        try:
            for job in jobs:
                found[job.name] = now + timedelta(seconds=min(job.rpo_s, 600))
                try:
                    found[job.name] = self._checked(job, now)
                except StandbyError as exc:
                    self._log.error(f"cannot look after its rpo: {exc}", job=job.name)
        except Exception as exc:
            self._log.error(f"unexpected {type(exc).__name__}: {exc}", error=exc)
        finally:
            with self._lock:
                self._next.update(found)
                self._thread = None
            self._on_looked()

    def _checked(self, job: ReplicationJob, now: datetime) -> datetime:
        """Raise the job's alarms that are due; when the next one may be."""
        rpo = timedelta(seconds=job.rpo_s)
        known = self._runner.store.known_replicas(job.name)
        due: list[datetime] = []
        if not any(item.points for item in known):
            due.append(self._since + rpo)
            if due[0] <= now:
                self._raise(job, "", f"no VM has a restore point; rpo is {job.rpo_s} s")
        late: list[tuple[KnownReplica, datetime]] = []
        for item in known:
            if item.points:
                due.append(self._taken_at(job, item, now) + rpo)
                if due[-1] <= now:
                    late.append((item, due[-1] - rpo))
        ids = {item.identity.machine_id for item, _ in late}
        left_out = self._runner.left_out(job, ids) if ids else set()
        for item, taken_at in late:
            if item.identity.machine_id in left_out:
                continue
            name = item.name.removesuffix(job.suffix) if job.suffix else item.name
            age_s = (now - taken_at).total_seconds()
            text = f"the newest restore point of {name} is {age_s:.0f} s old"
            self._raise(job, name, f"{text}; rpo is {job.rpo_s} s")
        # One that is overdue stays so until a session ends: it is not raised with every look.
        return min((time for time in due if time > now), default=now + rpo)

    def _taken_at(self, job: ReplicationJob, item: KnownReplica, now: datetime) -> datetime:
        """The time of the replica's newest point. The id of a point that was resumed is older than
        its state, so that only the target's own record can call it too old."""
        by_id = datetime.strptime(item.newest_point[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if now - by_id <= timedelta(seconds=job.rpo_s):
            return by_id
        age_s = self._runner.replicas.newest_age_s(job, item.identity.machine_id)
        return now - timedelta(seconds=age_s) if age_s is not None else by_id

    def _raise(self, job: ReplicationJob, machine: str, text: str) -> None:
        self._store.raise_alarm(RPO, job.name, machine, text)
