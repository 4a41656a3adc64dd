"""/metrics for Prometheus: what the state database and this process know, asked anew each time.

Nothing here asks a target or a mover while Prometheus waits: the time of a replica's newest point
is read at its target once per new point, by a thread of its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import standby
from standby.errors import StandbyError
from standby.model.report import SessionReport
from standby.model.session import SessionState
from standby.road.points import parsed_time
from standby.server.api.context import ApiContext
from standby.server.store import KnownReplica

CONTENT_TYPE = CONTENT_TYPE_LATEST

OUTCOMES = ("done", "warnings", "failed", "interrupted")
BATCH = 500
OVERLAP = timedelta(minutes=10)
"""How much later than its end a session may be recorded, by a process that is busy."""


class SessionTotals:
    """What sessions did, in whatever process, since this value was made. Thread-safe."""

    def __init__(self, context: ApiContext) -> None:
        self._store = context.server.store
        self._lock = threading.Lock()
        self._since = context.server.clock.now().astimezone(UTC)
        self._seen: dict[str, str] = {}
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.read: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        self._begin = self._since

    def refresh(self) -> None:
        """Count the sessions that ended since the last call."""
        with self._lock:
            after = max(self._begin, self._since - OVERLAP).isoformat()
            batch = self._store.ended_sessions(after, BATCH)
            while batch:
                for report in batch:
                    if report.id not in self._seen:
                        self._seen[report.id] = report.ended_at
                        self._since = max(self._since, datetime.fromisoformat(report.ended_at))
                        self._count(report)
                more = len(batch) == BATCH
                batch = self._store.ended_sessions(batch[-1].ended_at, BATCH) if more else []
            old = (self._since - 2 * OVERLAP).isoformat()
            self._seen = {name: at for name, at in self._seen.items() if at >= old}

    def _count(self, report: SessionReport) -> None:
        self.outcomes[report.job, report.outcome] += 1
        for machine in report.machines:
            for disk in machine.disks:
                self.read[report.job] += disk.read
                self.sent[report.job] += disk.sent
                self.written[report.job] += disk.written


class PointTimes:
    """When the newest point of each replica was taken. By its id that is nearly so; what the
    target's record says is asked for in the background. Thread-safe."""

    def __init__(self, context: ApiContext) -> None:
        self._server = context.server
        self._lock = threading.Lock()
        self._taken: dict[str, datetime] = {}
        self._asked: set[str] = set()
        self._thread: threading.Thread | None = None

    def taken_at(self, known: list[KnownReplica]) -> dict[str, datetime]:
        """Per point, when it was taken, as far as is known now."""
        points = {item.newest_point for item in known if item.newest_point}
        with self._lock:
            self._asked &= points
            self._taken = {key: at for key, at in self._taken.items() if key in points}
            if points - self._asked and self._thread is None:
                self._asked |= points
                self._thread = threading.Thread(target=self._look, name="points", daemon=True)
                self._thread.start()
            return {point: self._taken.get(point) or _by_id(point) for point in points}

    def join(self) -> None:
        """Wait for a look that is under way."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _look(self) -> None:
        found: dict[str, datetime] = {}
        with contextlib.suppress(StandbyError):
            for replica in self._server.replicas.all():
                for point in replica.points[-1:]:
                    taken = parsed_time(point.taken_at)
                    if taken is not None:
                        found[point.id] = taken
        with self._lock:
            self._taken.update(found)
            self._thread = None


def _by_id(point: str) -> datetime:
    try:
        return datetime.strptime(point[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:  # of a database that somebody wrote into
        return datetime.fromtimestamp(0, UTC)


class Metrics(Collector):
    """Everything that Prometheus gets. Thread-safe."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self.totals = SessionTotals(context)
        self.points = PointTimes(context)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Nothing before it is asked for."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every value as it is now."""
        yield _gauge(
            "standby_build_info", "1; the release", ["version"], [([standby.__version__], 1)]
        )
        is_active = self._context.lease() == "here"
        yield _gauge(
            "standby_active", "1 where this server runs the sessions", [], [([], is_active)]
        )
        yield from self._replicas()
        yield from self._sessions()
        yield from self._resources()

    def _replicas(self) -> Iterator[Metric]:
        server = self._context.server
        now = server.clock.now()
        known = server.store.known_replicas()
        taken = self.points.taken_at(known)
        ages, points, states = [], [], []
        for item in known:
            job = server.config.jobs.get(item.identity.job)
            machine = item.name.removesuffix(job.suffix) if job is not None else item.name
            labels = [item.identity.job, machine, item.name]
            if item.newest_point:
                age_s = (now - taken[item.newest_point]).total_seconds()
                ages.append((labels, max(0.0, age_s)))
            points.append((labels, item.points))
            states.append(([*labels, item.state], 1))
        names = ["job", "machine", "replica"]
        text = "Seconds since the checkpoint of the replica's newest restore point"
        yield _gauge("standby_replica_point_age_seconds", text, names, ages)
        yield _gauge("standby_replica_points", "Restore points of the replica", names, points)
        yield _gauge("standby_replica_state", "1; the replica's state", [*names, "state"], states)
        rpos = [([job.name], job.rpo_s) for job in server.config.jobs.values() if job.rpo_s]
        yield _gauge("standby_job_rpo_seconds", "The job's rpo", ["job"], rpos)

    def _sessions(self) -> Iterator[Metric]:
        server, totals = self._context.server, self.totals
        totals.refresh()
        jobs = list(server.config.jobs)
        ended = CounterMetricFamily(
            "standby_sessions", "Sessions that ended", labels=["job", "outcome"]
        )
        for job, outcome in sorted(
            {(job, outcome) for job in jobs for outcome in OUTCOMES} | set(totals.outcomes)
        ):
            ended.add_metric([job, outcome], totals.outcomes[job, outcome])
        yield ended
        for name, text, counts in (
            ("standby_read_bytes", "Bytes read at the source", totals.read),
            ("standby_sent_bytes", "Bytes on the link, packed", totals.sent),
            ("standby_written_bytes", "Bytes written into restore points", totals.written),
        ):
            family = CounterMetricFamily(name, text, labels=["job"])
            for job in sorted({*jobs, *counts}):
                family.add_metric([job], counts[job])
            yield family
        found = Counter(run.state for run in server.store.queue.open_sessions())
        states = (
            SessionState.QUEUED,
            SessionState.RUNNING,
            SessionState.STOPPING,
            SessionState.PAUSED,
        )
        rows = [([str(state)], found[state]) for state in states]
        yield _gauge("standby_queue_sessions", "Sessions without an end", ["state"], rows)
        alarms = Counter((alarm.kind, alarm.job) for alarm in server.store.alarms())
        count = [([kind, job], number) for (kind, job), number in sorted(alarms.items())]
        yield _gauge("standby_alarms_open", "Alarms to acknowledge", ["kind", "job"], count)

    def _resources(self) -> Iterator[Metric]:
        server = self._context.server
        usage = server.crews.resources.usage()
        # Child movers take no slots of `resources`; service movers' tasks are in both.
        running = max(usage.running, server.progress.disks())
        tasks = [(["running"], running), (["waiting"], usage.waiting)]
        yield _gauge("standby_tasks", "Disk tasks of this server", ["state"], tasks)
        names = ["kind", "name"]
        used = [([item.kind, item.name], item.used) for item in usage.slots]
        yield _gauge("standby_slots_used", "Task slots in use", names, used)
        limits = [
            ([item.kind, item.name], item.limit) for item in usage.slots if item.limit is not None
        ]
        yield _gauge("standby_slots_limit", "Task slots there are", names, limits)
        fleet = server.crews.fleet
        movers = [([name], fleet.mover(name).is_connected) for name in server.config.movers]
        text = "1 where the mover's control connection stands"
        yield _gauge("standby_mover_connected", text, ["mover"], movers)


def _gauge(
    name: str, text: str, labels: list[str], rows: Sequence[tuple[list[str], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family
