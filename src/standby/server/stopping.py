"""Ending a session from another process: `standby job stop` writes a request into the state
database, and the session's own process looks for it. That works wherever the two run, on every
system, and a request that nobody reads any more harms nothing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from standby.clock import Clock
from standby.errors import JobError, StandbyError
from standby.model.job import ReplicationJob
from standby.model.report import SessionReport
from standby.server.store import Store

POLL_S = 0.5
"""How often a session looks whether it is to end: one indexed read of the state database."""


class StopWatcher:
    """While entered, calls `on_stop` once from a thread of its own when the session is asked to
    end."""

    def __init__(self, store: Store, session: str, on_stop: Callable[[], None]) -> None:
        self._store = store
        self._session = session
        self._on_stop = on_stop
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, name="stop watcher", daemon=True)

    def _look(self) -> None:
        while not self._end.wait(POLL_S):
            with contextlib.suppress(StandbyError):  # a database that is busy is asked again
                if self._store.is_asked_to_stop(self._session):
                    self._on_stop()
                    return

    def __enter__(self) -> StopWatcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def stop_sessions(
    store: Store,
    job: ReplicationJob,
    is_running: Callable[[], bool],
    clock: Clock,
    timeout_s: float,
) -> list[SessionReport]:
    """Ask every session of the job that runs to end, and wait until it has: their reports, none
    when no session runs. `is_running` says whether any process runs one; a session that begins
    meanwhile is asked too. Raises JobError when one still runs after `timeout_s`."""
    asked: list[str] = []
    deadline = clock.monotonic() + timeout_s
    while is_running():
        for report in store.unfinished_sessions():
            if report.job == job.name and report.id not in asked:
                store.ask_to_stop(report.id)
                asked.append(report.id)
        if clock.monotonic() > deadline:
            raise JobError(
                job.name,
                f"session {', '.join(asked) or 'of another process'} was asked to stop and still "
                f"runs after {timeout_s:.0f} s",
                "It ends with the step it is at; see `standby job sessions`",
            )
        clock.sleep(POLL_S)
    return [store.session(session) for session in asked]
