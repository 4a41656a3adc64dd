"""Figure 6: how fast the state database hands out tasks.

    python bench/dispatch_store.py [--small] [--json] [--in FOLDER]

Dispatches per second: a task is taken (its row becomes running, its attempt is counted, the
server's lease is checked) and moved to its end (the same check), each change in its transaction.
One at a time by one thread, by four threads, and taken and ended by sixteen. 2,000 tasks wait in
20 sessions. On the SQLite file in FOLDER, and on a private PostgreSQL with syncs on, on the disk
of temporary files.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from standby.model.session import Reason, TaskState
from standby.server.store import Dispatch, Store, TaskMove
from timing import ROOT, Claim, Report, arguments, run_bench

sys.path.append(str(ROOT / "tests"))
import databases

SESSIONS = 20
GOAL_PER_S = 200.0


def fill(store: Store, dispatch: Dispatch, tasks: int) -> None:
    """Running sessions with queued tasks."""
    for number in range(SESSIONS):
        assert store.queue.enqueue(f"job{number}", Reason.MANUAL)
    for run in dispatch.claim_sessions(SESSIONS):
        names = [(f"vm{number}", f"{run.id}-{number}") for number in range(tasks // SESSIONS)]
        dispatch.add_tasks(run.id, names)


def one_by_one(dispatch: Dispatch) -> None:
    """Take one, end it."""
    while taken := dispatch.claim_tasks(1):
        dispatch.move_tasks([TaskMove(taken[0].id, TaskState.DONE)])


def by_threads(dispatch: Dispatch) -> None:
    """The same by four threads."""
    threads = [threading.Thread(target=one_by_one, args=(dispatch,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def by_sixteen(dispatch: Dispatch) -> None:
    """Take up to sixteen, end them together."""
    while taken := dispatch.claim_tasks(16):
        dispatch.move_tasks([TaskMove(task.id, TaskState.DONE) for task in taken])


WAYS: dict[str, Callable[[Dispatch], None]] = {
    "one at a time": one_by_one,
    "four threads": by_threads,
    "sixteen together": by_sixteen,
}


def rate(place: Path | str, way: Callable[[Dispatch], None], tasks: int) -> float:
    """Dispatches per second; every task is checked to have run once."""
    with Store(place) as store:
        lease = store.lease("bench", duration_s=3600)
        assert lease.acquire()
        dispatch = store.dispatch(lease)
        fill(store, dispatch, tasks)
        begun = time.perf_counter()
        way(dispatch)
        seconds = time.perf_counter() - begun
        found = store.queue.tasks()
        assert len(found) == tasks
        assert all((task.state, task.attempt) == (TaskState.DONE, 1) for task in found)
    return tasks / seconds


def bench(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """Both databases, every way, in turns."""
    tasks = 200 if options.small else 2000
    rates: dict[tuple[str, str], list[float]] = {}
    with databases.running_cluster(is_durable=True) as cluster:
        for turn in range(options.turns):
            for number, (name, way) in enumerate(WAYS.items()):
                places: dict[str, Path | str] = {
                    "SQLite": folder / f"{turn}-{number}.sqlite",
                    "PostgreSQL": cluster.new_database(),
                }
                for kind, place in places.items():
                    rates.setdefault((kind, name), []).append(rate(place, way, tasks))
    for (kind, name), found in rates.items():
        report.claims.append(
            Claim(
                f"{kind}, {name}, dispatches per second",
                statistics.median(found),
                GOAL_PER_S,
                is_at_most=False,
                spread=(min(found), max(found)),
            )
        )


if __name__ == "__main__":
    sys.exit(run_bench("dispatch from the state database", arguments(__doc__, turns=3), bench))
