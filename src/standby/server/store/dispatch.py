"""What only the active server does to sessions and tasks: take, move on, adopt, give back.

Each call is one transaction that first looks whether the lease is still this server's, and each
step is a compare-and-set: a row that is not in a state from which the step is legal
(`model.session`), or that belongs to another generation, is not changed.

These transactions are not on stable storage at once: a power cut may lose the last of them, never
their order. What that costs is a repetition, not a wrong replica: a task that was taken is queued
again and taken again, one that was done is taken again and finds nothing changed (RULES 6); that
two attempts never write the same replica is the replica's own lock and generation (RULES 3). What
must not be lost is durable and comes later or before in the same log: queued sessions, requests,
the lease's generation, checkpoint intents (RULES 10), reports.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from standby.clock import Clock
from standby.errors import IllegalStep, UnknownName
from standby.model.session import (
    RUN_BY_A_SERVER,
    SESSION_ENDS,
    SessionRequest,
    SessionRun,
    SessionState,
    TaskRun,
    TaskState,
    next_session_states,
    session_states_before,
)
from standby.server.store import statements, tables
from standby.server.store.database import Database
from standby.server.store.dispatch_tasks import BATCH, TaskDispatch, TaskMove
from standby.server.store.lease import ServerLease
from standby.server.store.runs import request_of, session_of

__all__ = ["Dispatch", "TaskMove"]

_RUNS = tables.session_runs.c
_TASKS = tables.task_runs.c


class Dispatch(TaskDispatch):
    """The active server's hands on sessions and tasks. Every method raises ServerFenced when
    another server has taken over, and changes nothing then. Thread-safe."""

    def __init__(self, database: Database, lease: ServerLease, clock: Clock) -> None:
        super().__init__(database, lease, clock)
        self._claiming = threading.Lock()  # so that two threads do not want the same job's session

    # --- sessions ----------------------------------------------------------------------------

    def claim_sessions(
        self,
        limit: int = 1,
        *,
        jobs: Collection[str] | None = None,
        sessions: Collection[str] | None = None,
        without: Collection[str] = (),
    ) -> list[SessionRun]:
        """Take up to `limit` queued sessions (of `jobs`, among `sessions`, of no job in `without`):
        by priority, then as queued; each job's earliest only, and none of a job of which one runs.
        They are RUNNING and this server's."""
        query = statements.sessions_to_take(jobs is not None, sessions is not None)
        values: dict[str, Any] = {"count": limit, "without": sorted(without)}
        if jobs is not None:
            values["jobs"] = sorted(jobs)
        if sessions is not None:
            values["sessions"] = sorted(sessions)
        taking = {"now": self._now(), **self._me()}

        def take(connection: sa.Connection) -> list[SessionRun]:
            wanted = list(connection.execute(query, values).scalars())
            if not wanted:
                return []
            rows = connection.execute(statements.TAKE_SESSIONS, {**taking, "sessions": wanted})
            found = {row.id: session_of(row) for row in rows}
            return [found[name] for name in wanted]

        with self._claiming:
            return self._line.write(take, is_durable=False)

    def move_session(
        self,
        session: str,
        to: SessionState,
        *,
        detail: str = "",
        expect: SessionState | None = None,
    ) -> SessionRun:
        """Move the session on; IllegalStep where its state (or that it is not `expect`) forbids
        it, UnknownName where it is not there. Queued again, it belongs to nobody and has no end.
        It becomes RUNNING by `claim_sessions` only."""
        assert to is not SessionState.RUNNING
        legal = session_states_before(to) if expect is None else (expect,)
        values = {"my_session": session, "now": self._now(), "new_detail": detail, **self._me()}
        statement = statements.session_moved(to, tuple(sorted(legal)))

        def move(connection: sa.Connection) -> SessionRun:
            row = connection.execute(statement, values).first()
            if row is None:
                raise self._refused_session(connection, session, to)
            return session_of(row)

        return self._line.write(move, is_durable=to in SESSION_ENDS, wakes=True)

    def tell_session(self, session: str, detail: str) -> None:
        """What the session is at; nothing where it does not run here. Wakes nobody: it is for those
        who look."""
        values = {"my_session": session, "new_detail": detail, **self._me()}

        def tell(connection: sa.Connection) -> None:
            connection.execute(statements.TELL_SESSION, values)

        self._line.write(tell, is_durable=False)

    def _refused_session(
        self, connection: sa.Connection, session: str, to: SessionState
    ) -> IllegalStep | UnknownName:
        row = connection.execute(tables.session_runs.select().where(_RUNS.id == session)).first()
        if row is None:
            return UnknownName("session", session)
        state = SessionState(row.state)
        is_foreign = state in RUN_BY_A_SERVER and (row.server, row.generation) != (
            self._lease.server,
            self._lease.generation,
        )
        where = f"{state} by {row.server} of generation {row.generation}" if is_foreign else state
        return IllegalStep("session", session, where, to, next_session_states(state))

    # --- after another server, or this one's last life ---------------------------------------

    def adopt(self) -> list[tuple[SessionRun, list[TaskRun]]]:
        """Make all running and stopping sessions of other generations this server's, with their
        running tasks: each with all its tasks. Whether a task is joined again (its transfers still
        run) or given back (QUEUED) is the caller's to find out."""
        now = self._now()
        with self._database.writing(wakes=True) as connection:
            self._lease.guard(connection)
            rows = connection.execute(
                tables.session_runs.update()
                .where(
                    _RUNS.state.in_(sorted(RUN_BY_A_SERVER)),
                    sa.not_(self._is_ours(_RUNS)),
                )
                .values(changed_at=now, **self._owner())
                .returning(tables.session_runs)
            ).all()
            found = sorted((session_of(row) for row in rows), key=lambda run: run.id)
            connection.execute(
                tables.task_runs.update()
                .where(_TASKS.state == TaskState.RUNNING, sa.not_(self._is_ours(_TASKS)))
                .values(changed_at=now, **self._owner())
            )
            return [(run, self._tasks_of(connection, run.id)) for run in found]

    # --- requests ----------------------------------------------------------------------------

    def handled(self, request: int, result: str) -> SessionRequest:
        """Record what became of a request; a second answer changes nothing."""
        columns = tables.requests.c
        answer = {"handled_at": self._now(), "handled_by": self._lease.server, "result": result}

        def write(connection: sa.Connection) -> SessionRequest:
            connection.execute(
                tables.requests.update()
                .where(columns.id == request, columns.handled_at == "")
                .values(answer)
            )
            row = connection.execute(tables.requests.select().where(columns.id == request)).first()
            if row is None:
                raise UnknownName("request", str(request))
            return request_of(row)

        return self._line.write(write)

    # --- tidying -----------------------------------------------------------------------------

    def forget_sessions(self, before: datetime, keep: int = 100) -> int:
        """Delete ended sessions that ended before that time, with their tasks and requests, but
        none of each job's newest `keep`; how many. Reports stay."""
        newest = sa.func.row_number().over(
            partition_by=_RUNS.job, order_by=(_RUNS.queued_at.desc(), _RUNS.id.desc())
        )
        ranked = sa.select(_RUNS.id, _RUNS.ended_at, newest.label("rank")).subquery()
        old = sa.select(ranked.c.id).where(
            ranked.c.ended_at != "",
            ranked.c.ended_at < before.isoformat(),
            ranked.c.rank > keep,
        )
        with self._database.writing(is_durable=False) as connection:
            self._lease.guard(connection)
            found = list(connection.execute(old.limit(BATCH)).scalars())
            for table, column in (
                (tables.requests, tables.requests.c.session),
                (tables.task_runs, _TASKS.session),
                (tables.session_runs, _RUNS.id),
            ):
                connection.execute(table.delete().where(column.in_(found)))
        return len(found)
