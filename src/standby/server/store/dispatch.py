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
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from standby.clock import Clock, new_uuid
from standby.errors import IllegalStep, UnknownName
from standby.model.session import (
    RUN_BY_A_SERVER,
    SESSION_ENDS,
    TASK_ENDS,
    SessionRequest,
    SessionRun,
    SessionState,
    TaskRun,
    TaskState,
    next_session_states,
    next_task_states,
    session_states_before,
)
from standby.server.store import statements, tables
from standby.server.store.database import Database
from standby.server.store.lease import ServerLease
from standby.server.store.runs import encoded, request_of, session_of, task_of

_RUNS = tables.session_runs.c
_TASKS = tables.task_runs.c
_BATCH = 500
"""Ids in one statement: SQLite takes 32766 parameters, older ones 999."""


@dataclass(frozen=True, slots=True)
class TaskMove:
    """A step of one task for `Dispatch.move_tasks`. `next_attempt_at` goes with WAITING."""

    task: str
    to: TaskState
    detail: str = ""
    next_attempt_at: str = ""


class Dispatch:
    """The active server's hands on sessions and tasks. Every method raises ServerFenced when
    another server has taken over, and changes nothing then. Thread-safe."""

    def __init__(self, database: Database, lease: ServerLease, clock: Clock) -> None:
        self._database = database
        self._lease = lease
        self._clock = clock
        self._claiming = threading.Lock()  # so that two threads do not want the same job's session

    def _now(self) -> str:
        return self._clock.now().isoformat()

    def _owner(self) -> dict[str, Any]:
        return {"server": self._lease.server, "generation": self._lease.generation}

    def _me(self) -> dict[str, Any]:
        return {"my_server": self._lease.server, "my_generation": self._lease.generation}

    def _is_ours(self, columns: Any) -> sa.ColumnElement[bool]:
        ours: sa.ColumnElement[bool] = sa.and_(
            columns.server == self._lease.server, columns.generation == self._lease.generation
        )
        return ours

    # --- sessions ----------------------------------------------------------------------------

    def claim_sessions(
        self,
        limit: int = 1,
        *,
        jobs: Collection[str] | None = None,
        sessions: Collection[str] | None = None,
    ) -> list[SessionRun]:
        """Take up to `limit` queued sessions (of `jobs`, among `sessions`): by priority, then as
        queued; each job's earliest only, and none of a job of which one runs. They are RUNNING
        and this server's."""
        queued = tables.session_runs.alias("queued")
        other = tables.session_runs.alias("other")
        query = (
            sa.select(queued.c.id)
            .where(
                queued.c.state == SessionState.QUEUED,
                ~sa.exists().where(
                    other.c.job == queued.c.job, other.c.state.in_(sorted(RUN_BY_A_SERVER))
                ),
                ~sa.exists().where(
                    other.c.job == queued.c.job,
                    other.c.state == SessionState.QUEUED,
                    sa.tuple_(other.c.queued_at, other.c.id)
                    < sa.tuple_(queued.c.queued_at, queued.c.id),
                ),
            )
            .order_by(queued.c.priority.desc(), queued.c.queued_at, queued.c.id)
            .limit(limit)
            .with_for_update(of=queued, skip_locked=True)
        )
        if jobs is not None:
            query = query.where(queued.c.job.in_(sorted(jobs)))
        if sessions is not None:
            query = query.where(queued.c.id.in_(sorted(sessions)))
        now = self._now()
        with self._claiming, self._database.writing(is_durable=False) as connection:
            self._lease.guard(connection)
            wanted = list(connection.execute(query).scalars())
            started = sa.case((_RUNS.started_at == "", now), else_=_RUNS.started_at)
            rows = connection.execute(
                tables.session_runs.update()
                .where(_RUNS.id.in_(wanted))
                .values(
                    state=SessionState.RUNNING, started_at=started, changed_at=now, **self._owner()
                )
                .returning(tables.session_runs)
            ).all()
        found = {row.id: session_of(row) for row in rows}
        return [found[name] for name in wanted]

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
        now = self._now()
        values: dict[str, Any] = {"state": to, "changed_at": now, "detail": detail}
        if to in SESSION_ENDS:
            values["ended_at"] = now
        elif to is SessionState.QUEUED:
            values |= {"ended_at": "", "server": "", "generation": 0}
        is_durable = to in SESSION_ENDS
        with self._database.writing(is_durable=is_durable, wakes=True) as connection:
            self._lease.guard(connection)
            row = connection.execute(
                tables.session_runs.update()
                .where(
                    _RUNS.id == session,
                    _RUNS.state.in_([state for state in legal if to in next_session_states(state)]),
                    sa.or_(_RUNS.state.not_in(sorted(RUN_BY_A_SERVER)), self._is_ours(_RUNS)),
                )
                .values(values)
                .returning(tables.session_runs)
            ).first()
            if row is None:
                raise self._refused_session(connection, session, to)
        return session_of(row)

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

    # --- tasks -------------------------------------------------------------------------------

    def add_tasks(self, session: str, machines: Sequence[tuple[str, str]]) -> list[TaskRun]:
        """Queue a task for each (VM's name, VM's id) that the session has none for yet; all its
        tasks. Repeating it, after a restart, adds nothing."""
        now = self._now()
        with self._database.writing(is_durable=False, wakes=True) as connection:
            self._lease.guard(connection)
            tasks = self._tasks_of(connection, session)
            known = {task.machine_id for task in tasks}
            new = [
                TaskRun(str(new_uuid()), session, position, name, machine_id, TaskState.QUEUED)
                for position, (name, machine_id) in enumerate(
                    (item for item in machines if item[1] not in known), len(tasks)
                )
            ]
            if new:
                rows = [
                    {column.name: getattr(task, column.name) for column in _TASKS}
                    | {"transfers": "{}", "changed_at": now}
                    for task in new
                ]
                connection.execute(tables.task_runs.insert(), rows)
        return [*tasks, *(replace(task, changed_at=now) for task in new)]

    def _tasks_of(self, connection: sa.Connection, session: str) -> list[TaskRun]:
        query = tables.task_runs.select().where(_TASKS.session == session)
        return [task_of(row) for row in connection.execute(query.order_by(_TASKS.position))]

    def claim_tasks(
        self,
        limit: int = 1,
        *,
        sessions: Collection[str] | None = None,
        tasks: Collection[str] | None = None,
    ) -> list[TaskRun]:
        """Take up to `limit` tasks of running sessions that are queued, or whose next attempt is
        due (of `sessions`, among `tasks`): by the session's priority and age, then by position.
        They are RUNNING, this server's, and their attempt is counted. What another one takes at
        the same instant is passed over."""
        now = self._now()
        values = {"now": now, "sessions": sorted(sessions or ()), "tasks": sorted(tasks or ())}
        next_session = statements.session_to_serve(sessions is not None, tasks is not None)
        next_tasks = statements.tasks_to_take(tasks is not None)
        owner = self._me()
        wanted: list[str] = []
        served: list[str] = []
        with self._database.writing(is_durable=False) as connection:
            self._lease.guard(connection)
            while len(wanted) < limit:
                session = connection.execute(next_session, {**values, "served": served}).scalar()
                if session is None:
                    break
                served.append(session)
                room = {"session": session, "count": limit - len(wanted)}
                wanted += connection.execute(next_tasks, {**values, **room}).scalars()
            found: dict[str, TaskRun] = {}
            for start in range(0, len(wanted), _BATCH):
                batch = {"tasks": wanted[start : start + _BATCH], "now": now, **owner}
                rows = connection.execute(statements.TAKE_TASKS, batch)
                found.update((row.id, task_of(row)) for row in rows)
        return [found[name] for name in wanted]

    def move_task(
        self, task: str, to: TaskState, *, detail: str = "", next_attempt_at: str = ""
    ) -> TaskRun:
        """Move the task on; IllegalStep where its state or owner forbids it. It becomes RUNNING by
        `claim_tasks` only."""
        return self.move_tasks([TaskMove(task, to, detail, next_attempt_at)])[0]

    def move_tasks(self, moves: Iterable[TaskMove]) -> list[TaskRun]:
        """Move several tasks on in one transaction: all, or none and IllegalStep for the first
        that may not."""
        moves = list(moves)
        with self._database.writing(is_durable=False, wakes=True) as connection:
            self._lease.guard(connection)
            now = self._now()
            together: dict[tuple[TaskState, str, str], list[TaskMove]] = {}
            for move in moves:
                key = (move.to, move.detail, move.next_attempt_at)
                together.setdefault(key, []).append(move)
            found: dict[str, TaskRun] = {}
            for alike in together.values():
                found |= self._moved(connection, alike, now)
        return [found[move.task] for move in moves]

    def _moved(
        self, connection: sa.Connection, moves: Sequence[TaskMove], now: str
    ) -> dict[str, TaskRun]:
        """The tasks by id, after moves that differ in the task only."""
        one = moves[0]
        assert one.to is not TaskState.RUNNING
        values = {
            "now": now,
            "new_detail": one.detail,
            "new_attempt_at": one.next_attempt_at,
            "new_end": now if one.to in TASK_ENDS else "",
            **self._me(),
        }
        found: dict[str, TaskRun] = {}
        for start in range(0, len(moves), _BATCH):
            batch = {"tasks": [move.task for move in moves[start : start + _BATCH]], **values}
            rows = connection.execute(statements.tasks_moved(one.to), batch)
            found.update((row.id, task_of(row)) for row in rows)
        for move in moves:
            if move.task not in found:
                raise self._refused_task(connection, move)
        return found

    def _refused_task(self, connection: sa.Connection, move: TaskMove) -> IllegalStep | UnknownName:
        row = connection.execute(tables.task_runs.select().where(_TASKS.id == move.task)).first()
        if row is None:
            return UnknownName("task", move.task)
        state = TaskState(row.state)
        is_foreign = state is TaskState.RUNNING and (row.server, row.generation) != (
            self._lease.server,
            self._lease.generation,
        )
        where = f"{state} by {row.server} of generation {row.generation}" if is_foreign else state
        return IllegalStep("task", move.task, where, move.to, next_task_states(state))

    def record_transfers(
        self, task: str, source_mover: str, target_mover: str, transfers: Mapping[str, str]
    ) -> None:
        """Record, before they begin, under which ids which movers run the task's transfers
        ({disk's place: id}): what a restarted server joins again. IllegalStep unless the task is
        running and this server's."""
        with self._database.writing(is_durable=False) as connection:
            self._lease.guard(connection)
            done = connection.execute(
                tables.task_runs.update()
                .where(_TASKS.id == task, _TASKS.state == TaskState.RUNNING, self._is_ours(_TASKS))
                .values(
                    source_mover=source_mover,
                    target_mover=target_mover,
                    transfers=encoded(dict(transfers)),
                    changed_at=self._now(),
                )
            )
            if done.rowcount == 0:
                raise self._refused_task(connection, TaskMove(task, TaskState.RUNNING))

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
        with self._database.writing() as connection:
            self._lease.guard(connection)
            connection.execute(
                tables.requests.update()
                .where(columns.id == request, columns.handled_at == "")
                .values(handled_at=self._now(), handled_by=self._lease.server, result=result)
            )
            row = connection.execute(tables.requests.select().where(columns.id == request)).first()
            if row is None:
                raise UnknownName("request", str(request))
            return request_of(row)

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
            found = list(connection.execute(old.limit(_BATCH)).scalars())
            for table, column in (
                (tables.requests, tables.requests.c.session),
                (tables.task_runs, _TASKS.session),
                (tables.session_runs, _RUNS.id),
            ):
                connection.execute(table.delete().where(column.in_(found)))
        return len(found)
