"""Figure 3: a thousand jobs of ten disks each, all waiting at once, on simulated movers.

    python bench/dispatch.py [--small] [--json] [--turns N] [--in FOLDER]

One process: the allocator of task slots (`standby.server.resources`), the state database (a task
is claimed before a mover is told, and recorded as done when it ends, each in its transaction), and
movers that only count time: 16 proxies of 4 slots, 50 ms per disk. Measured until all 10,000 disks
are done: dispatches per second; the time from a mover's report that a disk is done to the start of
the next one in its place (recording the end, choosing, claiming), the 99th of a hundred; memory at
its highest; and processor time while all wait and no proxy takes anything. Three times: without a
database, on an SQLite file in FOLDER, on a private PostgreSQL with syncs on.
"""

from __future__ import annotations

import argparse
import heapq
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from standby.model.session import Reason, TaskState
from standby.server.resources import Capacities, Resources, TaskRequest, Ticket
from standby.server.store import Dispatch, Store, TaskMove
from standby.units import MiB
from timing import ROOT, Claim, Report, arguments, run_bench

sys.path.append(str(ROOT / "tests"))
import databases

DISKS = 10
PROXIES = 16
SLOTS = 4
HOSTS = 8
TASK_S = 0.05
IDLE_S = 2.0
GOAL_PER_S, GOAL_P99_MS, GOAL_MIB = 200, 100, 300
GOAL_IDLE = 1.0
"""Percent of one core while nothing happens."""


class Movers:
    """Movers that do nothing for a while and then say that they are done."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: list[tuple[float, int, Ticket]] = []
        self._number = 0
        self._is_over = False
        self.ended: list[tuple[float, Ticket]] = []
        """(when it said so, what it has done), not yet taken note of."""
        self.has_news = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def begin(self, tickets: list[Ticket]) -> None:
        """Tell them to begin."""
        with self._changed:
            for ticket in tickets:
                self._number += 1
                heapq.heappush(self._running, (time.perf_counter() + TASK_S, self._number, ticket))
            self._changed.notify()

    def taken(self) -> list[tuple[float, Ticket]]:
        """What has ended since the last call."""
        with self._changed:
            found, self.ended = self.ended, []
            return found

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._is_over = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        with self._changed:
            while not self._is_over:
                now = time.perf_counter()
                while self._running and self._running[0][0] <= now:
                    self.ended.append((now, heapq.heappop(self._running)[2]))
                    self.has_news.set()
                self._changed.wait(self._running[0][0] - now if self._running else None)


@dataclass(slots=True)
class Figures:
    """What a run has shown."""

    per_s: float = 0.0
    idle_percent: float = 0.0
    latencies_s: list[float] = field(default_factory=list)

    def p99_ms(self) -> float:
        """The latency that one dispatch of a hundred exceeds."""
        return sorted(self.latencies_s)[int(len(self.latencies_s) * 0.99)] * 1000


def capacities() -> Capacities:
    """What the movers can take."""
    return Capacities(proxies={f"px{number}": SLOTS for number in range(PROXIES)})


def requests(jobs: int) -> Iterator[TaskRequest]:
    """All disks: each job between two of the hosts, half of the proxies see a host."""
    for job in range(jobs):
        sources = tuple(f"px{number}" for number in range(PROXIES) if number % 2 == job % 2)
        for disk in range(DISKS):
            yield TaskRequest(
                f"job{job}",
                f"session{job}",
                f"vm{job}",
                f"scsi:0:{disk}",
                source_host=f"host{job % HOSTS}",
                target_host="dr",
                repository="main",
                source_proxies=sources,
                priority=job % 3,
                job_max_tasks=2,
                size_bytes=MiB,
            )


def run(jobs: int, dispatch: Dispatch | None, ids: dict[tuple[str, str], str]) -> Figures:
    """Have all disks done; `ids` are the tasks' in the database by (job, place)."""
    resources = Resources()
    movers = Movers()
    figures = Figures()
    granted: list[Ticket] = []
    for number in range(PROXIES):
        resources.proxy_paused(f"px{number}", "the bench has not begun")
    resources.configure(capacities())
    for request in requests(jobs):
        resources.request(request, granted.append)
    assert resources.waiting == jobs * DISKS

    begun, used = time.perf_counter(), time.process_time()
    time.sleep(IDLE_S)
    figures.idle_percent = 100 * (time.process_time() - used) / (time.perf_counter() - begun)

    done = 0
    begun = time.perf_counter()
    for number in range(PROXIES):
        resources.proxy_up(f"px{number}")
    ended: list[tuple[float, Ticket]] = []
    while True:
        for _, ticket in ended:
            ticket.cancel()
        done += len(ended)
        begin, granted[:] = list(granted), []
        if dispatch is not None:
            wanted = {name_of(ticket, ids) for ticket in begin}
            moves = [TaskMove(name_of(item, ids), TaskState.DONE) for _, item in ended]
            _, claimed = dispatch.move_and_claim(moves, wanted)
            assert {task.id for task in claimed} == wanted
        movers.begin(begin)
        if ended:
            now = time.perf_counter()
            figures.latencies_s += [now - ended[0][0]] * len(begin)
        if done == jobs * DISKS:
            break
        movers.has_news.wait()
        movers.has_news.clear()
        ended = movers.taken()
    figures.per_s = done / (time.perf_counter() - begun)
    movers.close()
    assert (resources.waiting, resources.running) == (0, 0)
    assert resources.granted == jobs * DISKS
    return figures


def name_of(ticket: Ticket, ids: dict[tuple[str, str], str]) -> str:
    """The database's name of a task."""
    return ids[(ticket.request.job, ticket.request.place)]


@contextmanager
def filled(place: Path | str, jobs: int) -> Iterator[tuple[Store, Dispatch, dict]]:  # type: ignore[type-arg]
    """A state database with a running session of every job, its disks queued."""
    with Store(place) as store:
        lease = store.lease("bench", duration_s=3600)
        assert lease.acquire()
        dispatch = store.dispatch(lease)
        for number in range(jobs):
            assert store.queue.enqueue(f"job{number}", Reason.MANUAL)
        ids = {}
        for session in dispatch.claim_sessions(jobs):
            disks = [(f"scsi:0:{disk}", f"{session.id}-{disk}") for disk in range(DISKS)]
            for task in dispatch.add_tasks(session.id, disks):
                ids[(session.job, task.machine)] = task.id
        assert len(ids) == jobs * DISKS
        yield store, dispatch, ids


def bench(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """All three, in turns."""
    jobs = 50 if options.small else 1000
    found: dict[str, list[Figures]] = {}
    with databases.running_cluster(is_durable=True) as cluster:
        for turn in range(options.turns):
            found.setdefault("no database", []).append(run(jobs, None, {}))
            places: dict[str, Path | str] = {
                "SQLite": folder / f"{turn}.sqlite",
                "PostgreSQL": cluster.new_database(),
            }
            for name, place in places.items():
                with filled(place, jobs) as (store, dispatch, ids):
                    found.setdefault(name, []).append(run(jobs, dispatch, ids))
                    states = {task.state for task in store.queue.tasks()}
                    assert states == {TaskState.DONE}
    for name, runs in found.items():
        goals = (None, None) if name == "no database" else (GOAL_PER_S, GOAL_P99_MS)
        rates = sorted(item.per_s for item in runs)
        waits = sorted(item.p99_ms() for item in runs)
        middle = len(runs) // 2
        report.claims += [
            Claim(
                f"{name}, dispatches per second",
                rates[middle],
                goals[0],
                is_at_most=False,
                spread=(rates[0], rates[-1]),
            ),
            Claim(
                f"{name}, dispatch latency p99, ms",
                waits[middle],
                goals[1],
                spread=(waits[0], waits[-1]),
            ),
        ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    idle = max(item.idle_percent for runs in found.values() for item in runs)
    report.claims += [
        Claim("peak memory, MiB", peak / MiB, GOAL_MIB),
        Claim("idle with all waiting, % of a core", idle, GOAL_IDLE),
    ]
    report.notes.append(
        f"{jobs * DISKS} disks of {jobs} jobs; {PROXIES * SLOTS} slots of {TASK_S:g} s each can do "
        f"{PROXIES * SLOTS / TASK_S:.0f} per second"
    )


if __name__ == "__main__":
    sys.exit(run_bench("dispatch", arguments(__doc__, turns=1), bench))
