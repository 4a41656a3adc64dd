"""The part of `dispatch` that is about tasks: what its first lines say holds here."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from standby.clock import Clock, new_uuid
from standby.errors import IllegalStep, UnknownName
from standby.model.session import TASK_ENDS, TaskRun, TaskState, next_task_states
from standby.server.store import statements, tables
from standby.server.store.database import Database
from standby.server.store.lease import ServerLease
from standby.server.store.runs import task_of

_TASKS = tables.task_runs.c
BATCH = 512
"""Ids in one statement: SQLite takes 32766 parameters, older ones 999."""


@dataclass(frozen=True, slots=True)
class TaskMove:
    """A step of one task for `Dispatch.move_tasks`. `next_attempt_at` goes with WAITING."""

    task: str
    to: TaskState
    detail: str = ""
    next_attempt_at: str = ""


def _batches(ids: Sequence[str]) -> Iterator[list[str]]:
    """The ids in lists for one statement each."""
    for start in range(0, len(ids), BATCH):
        yield list(ids[start : start + BATCH])


class TaskDispatch:
    """The active server's hands on tasks. Every method raises ServerFenced when another server has
    taken over, and changes nothing then. Thread-safe."""

    def __init__(self, database: Database, lease: ServerLease, clock: Clock) -> None:
        self._database = database
        self._lease = lease
        self._line = lease.line
        self._clock = clock

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

    # --- tasks -------------------------------------------------------------------------------

    def add_tasks(self, session: str, machines: Sequence[tuple[str, str]]) -> list[TaskRun]:
        """Queue a task for each (VM's name, VM's id) that the session has none for yet; all its
        tasks. Repeating it, after a restart, adds nothing."""
        now = self._now()

        def add(connection: sa.Connection) -> list[TaskRun]:
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
                    | {"changed_at": now}
                    for task in new
                ]
                connection.execute(tables.task_runs.insert(), rows)
            return [*tasks, *(replace(task, changed_at=now) for task in new)]

        return self._line.write(add, is_durable=False)

    def _tasks_of(self, connection: sa.Connection, session: str) -> list[TaskRun]:
        rows = connection.execute(statements.TASKS_OF, {"my_session": session})
        return [task_of(row) for row in rows]

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

        def claim(connection: sa.Connection) -> list[TaskRun]:
            if tasks is None:
                wanted = self._next_tasks(connection, limit, sessions, now)
            else:
                wanted = self._of_these(connection, limit, sessions, tasks, now)
            return self._taken(connection, wanted, now)

        return self._line.write(claim, is_durable=False)

    def _next_tasks(
        self,
        connection: sa.Connection,
        limit: int,
        sessions: Collection[str] | None,
        now: str,
    ) -> list[str]:
        """Ids of the tasks that come first, session by session."""
        values = {"now": now, "sessions": sorted(sessions or ())}
        next_session = statements.session_to_serve(sessions is not None)
        wanted: list[str] = []
        served: list[str] = []
        while len(wanted) < limit:
            session = connection.execute(next_session, {**values, "served": served}).scalar()
            if session is None:
                break
            served.append(session)
            room = {"now": now, "session": session, "count": limit - len(wanted)}
            wanted += connection.execute(statements.TASKS_OF_SESSION, room).scalars()
        return wanted

    def _of_these(
        self,
        connection: sa.Connection,
        limit: int,
        sessions: Collection[str] | None,
        tasks: Collection[str],
        now: str,
    ) -> list[str]:
        """Ids of those of `tasks` that may begin."""
        values = {"now": now, "sessions": sorted(sessions or ())}
        query = statements.named_tasks(sessions is not None)
        wanted: list[str] = []
        for batch in _batches(sorted(tasks)):
            room = {"tasks": batch, "count": limit - len(wanted)}
            wanted += connection.execute(query, {**values, **room}).scalars()
        return wanted

    def _taken(self, connection: sa.Connection, wanted: list[str], now: str) -> list[TaskRun]:
        """The tasks of those ids, which are locked, RUNNING and this server's."""
        found: dict[str, TaskRun] = {}
        for batch in _batches(wanted):
            values = {"tasks": batch, "now": now, **self._me()}
            rows = connection.execute(statements.TAKE_TASKS, values)
            found.update((row.id, task_of(row)) for row in rows)
        return [found[name] for name in wanted]

    def move_tasks(self, moves: Iterable[TaskMove]) -> list[TaskRun]:
        """Move tasks on in one transaction: all, or none and IllegalStep for the first whose state
        or owner forbids it. One becomes RUNNING by `claim_tasks` only."""
        moves = list(moves)
        return self._line.write_all(self._move_all, moves, is_durable=False, wakes=bool(moves))

    def _move_all(
        self, connection: sa.Connection, asked: Sequence[list[TaskMove]]
    ) -> list[list[TaskRun]]:
        """What becomes of each list's tasks."""
        count = sum(map(len, asked))
        if len(asked) > 1 and len({move.task for moves in asked for move in moves}) < count:
            return [self._move_all(connection, [moves])[0] for moves in asked]  # one after another
        now = self._now()
        together: dict[tuple[TaskState, str, str], list[TaskMove]] = {}
        for move in itertools.chain.from_iterable(asked):
            key = (move.to, move.detail, move.next_attempt_at)
            together.setdefault(key, []).append(move)
        found: dict[str, TaskRun] = {}
        for alike in together.values():
            found |= self._moved(connection, alike, now)
        return [[found[move.task] for move in moves] for moves in asked]

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
        for batch in _batches([move.task for move in moves]):
            rows = connection.execute(statements.tasks_moved(one.to), {"tasks": batch, **values})
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
