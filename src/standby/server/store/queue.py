"""The sessions that are to run, run, or ran, as anybody may see and ask for them.

Whoever wants a session queues it (`enqueue`); whoever wants it to end, wait or go on again leaves
a request (`ask`). Neither needs the lease: the command line, the API of a server that is not
active, and the scheduler do the same. Only the active server moves sessions on (`Dispatch`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from standby.clock import Clock, new_token
from standby.errors import UnknownName
from standby.model.session import (
    SESSION_ENDS,
    Reason,
    RequestKind,
    SessionRequest,
    SessionRun,
    SessionState,
    TaskRun,
    TaskState,
)
from standby.server.store import statements, tables
from standby.server.store.database import Database, insert
from standby.server.store.lease import ServerLease
from standby.server.store.runs import encoded, request_of, session_of, task_of

_RUNS = tables.session_runs.c
_TASKS = tables.task_runs.c
_REQUESTS = tables.requests.c


def new_session_id(clock: Clock) -> str:
    """An id that sorts by time."""
    return f"{clock.now():%Y%m%dT%H%M%SZ}-{new_token(4)}"


OPEN = frozenset(SessionState) - SESSION_ENDS
"""Sessions without an end."""


class SessionQueue:
    """Sessions and tasks as they stand. Thread-safe."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    # --- asking for something ----------------------------------------------------------------

    def enqueue(
        self,
        job: str,
        reason: Reason,
        *,
        slot: str = "",
        priority: int = 0,
        machines: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
        asked_by: str = "",
        after: str = "",
        lease: ServerLease | None = None,
    ) -> SessionRun | None:
        """Queue a session of the job, durably, and wake the active server. None when the job has
        one for that slot already, in whatever state: a slot is queued once, whoever asks. `lease`:
        only if that server is still the active one, ServerFenced otherwise."""
        now = self._clock.now().isoformat()
        run = SessionRun(
            new_session_id(self._clock),
            job,
            SessionState.QUEUED,
            reason,
            slot,
            priority,
            tuple(machines),
            dict(options or {}),
            asked_by,
            after,
            queued_at=now,
            changed_at=now,
        )
        values = {column.name: getattr(run, column.name) for column in _RUNS}
        values |= {"machines": encoded(run.machines), "options": encoded(run.options)}
        with self._database.writing(wakes=True) as connection:
            if lease is not None:
                lease.guard(connection)
            statement = insert(connection, tables.session_runs).values(values)
            if slot:
                statement = statement.on_conflict_do_nothing(
                    index_elements=["job", "slot"], index_where=tables.HAS_SLOT
                )
            if connection.execute(statement.returning(_RUNS.id)).first() is None:
                return None
        return run

    def ask(self, session: str, kind: RequestKind, *, machine: str = "", by: str) -> SessionRequest:
        """Leave a request for the active server: for the session, or for one VM of it. A second
        one of the same kind that is still open is the first one. UnknownName for a session or VM
        that is not there."""
        now = self._clock.now().isoformat()
        with self._database.writing(wakes=True) as connection:
            self._check(connection, session, machine)
            same = tables.requests.select().where(
                _REQUESTS.session == session,
                _REQUESTS.machine == machine,
                _REQUESTS.kind == kind,
                _REQUESTS.handled_at == "",
            )
            found = connection.execute(same).first()
            if found is None:
                found = connection.execute(
                    tables.requests.insert()
                    .values(
                        session=session,
                        machine=machine,
                        kind=kind,
                        asked_by=by,
                        asked_at=now,
                        handled_by="",
                        result="",
                    )
                    .returning(tables.requests)
                ).one()
            return request_of(found)

    def _check(self, connection: sa.Connection, session: str, machine: str) -> None:
        if connection.execute(sa.select(_RUNS.id).where(_RUNS.id == session)).first() is None:
            newest = sa.select(_RUNS.id).order_by(_RUNS.queued_at.desc()).limit(5)
            raise UnknownName("session", session, tuple(connection.execute(newest).scalars()))
        if machine:
            names = sa.select(_TASKS.machine).where(_TASKS.session == session)
            known = tuple(connection.execute(names.order_by(_TASKS.position)).scalars())
            if known and machine not in known:
                raise UnknownName(f"VM in session {session}", machine, known)

    def requests(
        self, session: str | None = None, *, open_only: bool = False
    ) -> list[SessionRequest]:
        """What was asked (of one session), oldest first; the trail of who asked what."""
        query = statements.requests(session is not None, open_only)
        with self._database.asking() as connection:
            rows = connection.execute(query, {"my_session": session} if session is not None else {})
            return [request_of(row) for row in rows]

    # --- looking -----------------------------------------------------------------------------

    def session(self, session: str) -> SessionRun:
        """The session of that id, or UnknownName."""
        with self._database.reading() as connection:
            row = connection.execute(statements.SESSION, {"my_session": session}).first()
            if row is None:
                self._check(connection, session, "")
                raise UnknownName("session", session)
            return session_of(row)

    def sessions(
        self,
        states: Collection[SessionState] | None = None,
        *,
        job: str | None = None,
        limit: int = 1000,
    ) -> list[SessionRun]:
        """Sessions (in one of `states`, of one job) in the order in which they are to run: by
        priority, then as queued."""
        query = statements.sessions(states is not None, job is not None)
        values: dict[str, Any] = {"count": limit}
        if states is not None:
            values["states"] = sorted(states)
        if job is not None:
            values["my_job"] = job
        with self._database.asking() as connection:
            return [session_of(row) for row in connection.execute(query, values)]

    def open_sessions(self, job: str | None = None) -> list[SessionRun]:
        """Sessions without an end (of one job): queued, running, stopping, paused."""
        return self.sessions(OPEN, job=job)

    def jobs_with(self, states: Collection[SessionState]) -> set[str]:
        """The jobs that have a session in one of `states`: where thousands wait, that costs little
        beside reading them."""
        with self._database.asking() as connection:
            found = connection.execute(statements.JOBS_WITH, {"states": sorted(states)})
            return set(found.scalars())

    def last_sessions(self, job: str, limit: int = 1) -> list[SessionRun]:
        """The job's sessions, newest first."""
        query = tables.session_runs.select().where(_RUNS.job == job)
        query = query.order_by(_RUNS.queued_at.desc(), _RUNS.id.desc()).limit(limit)
        with self._database.reading() as connection:
            return [session_of(row) for row in connection.execute(query)]

    def last_slots(self) -> dict[str, str]:
        """Per job, the latest slot that was ever queued: slots after it were missed. Slots must be
        ISO 8601 texts in UTC of one form, so that they sort."""
        query = sa.select(_RUNS.job, sa.func.max(_RUNS.slot)).where(_RUNS.slot != "")
        with self._database.reading() as connection:
            rows = connection.execute(query.group_by(_RUNS.job)).all()
        return {str(job): str(slot) for job, slot in rows}

    def tasks(
        self,
        session: str | None = None,
        states: Collection[TaskState] | None = None,
        *,
        limit: int = 100_000,
    ) -> list[TaskRun]:
        """Tasks (of one session, in one of `states`), by session and position."""
        query = statements.tasks(session is not None, states is not None)
        values: dict[str, Any] = {"count": limit}
        if session is not None:
            values["my_session"] = session
        if states is not None:
            values["states"] = sorted(states)
        with self._database.asking() as connection:
            return [task_of(row) for row in connection.execute(query, values)]

    def task(self, task: str) -> TaskRun:
        """The task of that id, or UnknownName."""
        with self._database.reading() as connection:
            row = connection.execute(tables.task_runs.select().where(_TASKS.id == task)).first()
        if row is None:
            raise UnknownName("task", task)
        return task_of(row)

    def counts(self, session: str) -> dict[TaskState, int]:
        """How many tasks of the session are in each state; states of none are left out."""
        query = sa.select(_TASKS.state, sa.func.count()).where(_TASKS.session == session)
        with self._database.reading() as connection:
            rows = connection.execute(query.group_by(_TASKS.state)).all()
        return {TaskState(state): count for state, count in rows}

    def due_retries(self, now: datetime) -> list[TaskRun]:
        """Waiting tasks of running sessions whose next attempt is due, the longest due first."""
        with self._database.asking() as connection:
            rows = connection.execute(statements.DUE_RETRIES, {"now": now.isoformat()})
            return [task_of(row) for row in rows]

    def next_retry_at(self) -> str:
        """When the next waiting task of a running session is due, '' when none waits."""
        with self._database.asking() as connection:
            return str(connection.execute(statements.NEXT_RETRY).scalar() or "")
