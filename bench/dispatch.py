"""Figure 3: a thousand jobs of a VM with ten disks each, all waiting at once, on simulated movers.

    python bench/dispatch.py [--small] [--json] [--turns N] [--in FOLDER]

The server's own loop (`standby.server.daemon`) with its queue, sessions, tasks, leases and the
allocator of slots, as `standby server` has them; a session does what one of `BackupServer` does
with the state database (the report begun and ended, how far the transfer is recorded before each
disk's mover is told), and nothing else: its movers only count time. 24 proxies of 4 slots, 0.25 s
per disk, give or take a half: they can take 384 per second. Measured from the first free slot until
all 10,000 disks are done: disks per second; the time from when a disk could begin (its session
asked, and a mover said that a slot is free) to when its mover is told, the 99th of a hundred; the
processor's part of the whole; memory at its highest; and processor time while all wait and no proxy
takes anything. On an SQLite file in FOLDER, on a private PostgreSQL with syncs on; and the
allocator alone, without sessions and database, all 10,000 disks waiting for slots that take 50 ms.
"""

from __future__ import annotations

import argparse
import heapq
import random
import resource
import statistics
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from standby.clock import SYSTEM_CLOCK
from standby.model.job import ReplicationJob
from standby.model.machine import Checkpoint, Machine
from standby.model.report import DiskReport, MachineReport, SessionReport
from standby.model.session import Reason, SessionState
from standby.server.config import load_config
from standby.server.daemon import Daemon
from standby.server.journey import Journey, JourneyBook, Sender
from standby.server.resources import Capacities, Resources, TaskRequest, Ticket
from standby.server.store import ServerLease, Store
from standby.units import MiB
from timing import ROOT, Claim, Report, arguments, run_bench

sys.path.append(str(ROOT / "tests"))
import databases

DISKS = 10
PROXIES = 24
SLOTS = 4
HOSTS = 8
TASK_S = 0.25
QUICK_S = 0.05
IDLE_S = 2.0
ALONE = "the allocator alone"
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
                heapq.heappush(self._running, (time.perf_counter() + QUICK_S, self._number, ticket))
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
    busy_percent: float = 0.0
    latencies_s: list[float] = field(default_factory=list)

    def p99_ms(self) -> float:
        """The latency that one dispatch of a hundred exceeds."""
        return sorted(self.latencies_s)[int(len(self.latencies_s) * 0.99)] * 1000


def capacities() -> Capacities:
    """What the movers can take."""
    return Capacities(proxies={f"px{number}": SLOTS for number in range(PROXIES)})


def request(job: int, session: str, disk: int) -> TaskRequest:
    """A disk: each job between two of the hosts, half of the proxies see a host."""
    return TaskRequest(
        f"job{job}",
        session,
        f"vm{job}",
        f"scsi:0:{disk}",
        source_host=f"host{job % HOSTS}",
        target_host="dr",
        repository="main",
        source_proxies=tuple(f"px{n}" for n in range(PROXIES) if n % 2 == job % 2),
        priority=job % 3,
        size_bytes=MiB,
    )


def requests(jobs: int) -> Iterator[TaskRequest]:
    """All disks."""
    for job in range(jobs):
        for disk in range(DISKS):
            yield request(job, f"session{job}", disk)


# --- the allocator alone ---------------------------------------------------------------------


def run_alone(jobs: int) -> Figures:
    """Have all disks done."""
    resources = Resources()
    movers = Movers()
    figures = Figures()
    granted: list[Ticket] = []
    for number in range(PROXIES):
        resources.proxy_paused(f"px{number}", "the bench has not begun")
    resources.configure(capacities())
    for wanted in requests(jobs):
        resources.request(wanted, granted.append)
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


# --- the server ------------------------------------------------------------------------------


_CONFIG = """\
[standby]
installation = "bench"
[hosts.dr]
kind = "folder"
path = "replicas"
[repositories.main]
path = "repository"
"""


def configuration(jobs: int) -> str:
    """The standby.toml of all jobs."""
    hosts = [f'[hosts.host{n}]\nkind = "folder"\npath = "host{n}"\n' for n in range(HOSTS)]
    tables = [
        f'[jobs.job{n}]\nsource = "host{n % HOSTS}"\ntarget = "dr"\nmachines = ["*"]\n'
        for n in range(jobs)
    ]
    return _CONFIG + "".join([*hosts, *tables])


class Server:
    """What the daemon needs of a backup server. Its sessions' disks are sent by nobody."""

    def __init__(self, folder: Path, place: Path | str) -> None:
        self.config = load_config(folder)
        self.store = self._guarded = Store(place)
        self.clock = SYSTEM_CLOCK
        self.replicas: Any = SimpleNamespace(newest_age_s=lambda job, machine: None)
        self.resources = Resources()
        for number in range(PROXIES):
            self.resources.proxy_paused(f"px{number}", "the bench has not begun")
        self.resources.configure(capacities())
        self.figures = Figures()
        self._lengths = random.Random(3)
        self._lock = threading.Lock()
        self._freed: dict[str, deque[float]] = defaultdict(deque)

    def machines(self, job: ReplicationJob) -> list[Machine]:
        """One VM each."""
        return [Machine(f"id-{job.name}", job.name, job.name)]

    def lead(self, lease: ServerLease | None) -> None:
        """As BackupServer does."""
        self._guarded = self.store if lease is None else self.store.guarded(lease)

    def abandon(self) -> None:
        """Nothing is connected."""

    def stop_session(self, session: str) -> bool:
        """None is stopped here."""
        return False

    def stop_machine(self, session: str, machine: str) -> bool:
        """None is stopped here."""
        return False

    def start(self, job: str, *, session: str = "", **_: object) -> SessionReport:
        """A session, with what is recorded of it."""
        now = self.clock.now().isoformat()
        report = SessionReport(session, job, now)
        self._guarded.begin_session(report)
        (machine,) = self.machines(self.config.job(job))
        disks = [DiskReport(f"disk{n}", f"scsi:0:{n}", "full") for n in range(DISKS)]
        self._transfer(job, session, machine, disks)
        report.machines = [MachineReport(machine.name, machine.id, outcome="done", disks=disks)]
        self._guarded.save_session(report)
        report.outcome, report.ended_at = "done", self.clock.now().isoformat()
        self._guarded.save_session(report)
        return report

    def _transfer(self, job: str, session: str, machine: Machine, disks: list[DiskReport]) -> None:
        context: Any = SimpleNamespace(
            store=self._guarded, job=self.config.job(job), clock=self.clock
        )
        book = JourneyBook(context, machine.id)
        at = self.clock.now().isoformat()
        checkpoint = Checkpoint(session, machine.id, "clone", at, "crash")
        book.begin(
            Journey(session, "dr", "dr:x", "x", session, 1, session, checkpoint, {}, disks, [])
        )
        number = int(job.removeprefix("job"))

        def send(disk: int) -> None:
            asked_at = time.perf_counter()
            with self.resources.taken(request(number, session, disk)) as grant:
                book.sending(f"scsi:0:{disk}", Sender(f"{session} {disk}", grant.source_proxy))
                self._begun(grant.source_proxy, asked_at)
                time.sleep(self._lengths.uniform(0.5, 1.5) * TASK_S)  # the mover's work
                with self._lock:
                    self._freed[grant.source_proxy].append(time.perf_counter())

        with ThreadPoolExecutor(DISKS) as pool:
            list(pool.map(send, range(DISKS)))
        book.sent()
        book.drop()

    def _begun(self, proxy: str, asked_at: float) -> None:
        """The mover would be told now."""
        now = time.perf_counter()
        with self._lock:
            freed = self._freed[proxy]
            could_at = max(asked_at, freed.popleft() if freed else 0.0, self.opened_at)
            self.figures.latencies_s.append(now - could_at)

    opened_at = 0.0

    def open(self) -> None:
        """The proxies take tasks from now on."""
        self.opened_at = time.perf_counter()
        for number in range(PROXIES):
            self.resources.proxy_up(f"px{number}")


def run_server(folder: Path, place: Path | str, jobs: int) -> Figures:
    """Have all disks of all jobs done."""
    folder.mkdir()
    (folder / "standby.toml").write_text(configuration(jobs))
    server = Server(folder, place)
    for number in range(jobs):
        assert server.store.queue.enqueue(f"job{number}", Reason.MANUAL)
    left = threading.Semaphore(0)
    daemon = Daemon(server, publish=lambda event, payload: left.release())
    thread = threading.Thread(target=daemon.run)
    thread.start()
    while server.resources.waiting < min(jobs, 16) * DISKS:
        time.sleep(0.01)
    time.sleep(0.5)
    begun, used = time.perf_counter(), time.process_time()
    time.sleep(IDLE_S)
    figures = server.figures
    figures.idle_percent = 100 * (time.process_time() - used) / (time.perf_counter() - begun)
    used = time.process_time()
    server.open()
    for _ in range(jobs):
        left.acquire()
    taken_s = time.perf_counter() - server.opened_at
    figures.per_s = jobs * DISKS / taken_s
    figures.busy_percent = 100 * (time.process_time() - used) / taken_s
    while server.store.queue.open_sessions():
        time.sleep(0.01)
    daemon.stop()
    thread.join()
    ended = server.store.queue.sessions({SessionState.DONE})
    assert len(ended) == jobs, len(ended)
    assert (server.resources.waiting, server.resources.granted) == (0, jobs * DISKS)
    server.store.close()
    return figures


def bench(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """All three, in turns."""
    jobs = 50 if options.small else 1000
    found: dict[str, list[Figures]] = {}
    with databases.running_cluster(is_durable=True) as cluster:
        for turn in range(options.turns):
            found.setdefault(ALONE, []).append(run_alone(jobs))
            places: dict[str, Path | str] = {
                "SQLite": folder / f"{turn}.sqlite",
                "PostgreSQL": cluster.new_database(),
            }
            for name, place in places.items():
                here = folder / f"{turn}-{name}"
                found.setdefault(name, []).append(run_server(here, place, jobs))
    for name, runs in found.items():
        goals = (None, None) if name == ALONE else (GOAL_PER_S, GOAL_P99_MS)
        rates = [item.per_s for item in runs]
        waits = [item.p99_ms() for item in runs]
        report.claims += [
            Claim(
                f"{name}, dispatches per second",
                statistics.median(rates),
                goals[0],
                is_at_most=False,
                spread=(min(rates), max(rates)),
            ),
            Claim(
                f"{name}, dispatch latency p99, ms",
                statistics.median(waits),
                goals[1],
                spread=(min(waits), max(waits)),
            ),
        ]
        if name != ALONE:
            busy = [item.busy_percent for item in runs]
            text = f"{name}, processor meanwhile, % of a core"
            report.claims.append(
                Claim(text, statistics.median(busy), spread=(min(busy), max(busy)))
            )
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
    sys.exit(run_bench("dispatch", arguments(__doc__, turns=3), bench))
