"""The statements of every dispatch, built once: building one costs more than running it.

Parameters that stand beside columns of the same name begin with `my_` (who asks) or `new_`.
"""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from standby.model.session import SessionState, TaskState, task_states_before
from standby.server.store import tables
from standby.server.store.runs import encoded

_RUNS = tables.session_runs.c
_TASK_RUNS = tables.task_runs
_TASKS = tables.task_runs.c


class _Texts(sa.types.TypeDecorator[list[str]]):
    """A list of texts as one parameter: an array, or JSON where there are none."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        is_sqlite = dialect.name == "sqlite"
        return dialect.type_descriptor(sa.Text() if is_sqlite else sa.ARRAY(sa.Text))

    def process_bind_param(self, value: list[str] | None, dialect: sa.Dialect) -> Any:
        return encoded(value) if dialect.name == "sqlite" else value


class one_of(FunctionElement[Any]):
    """The column is one of the texts of the parameter `name`. Unlike IN with as many parameters
    as there are texts, it is one statement for all numbers of them, whose plan is kept.

    It is of no type: a Boolean of SQLite's would become `… = 1`, which no index answers."""

    inherit_cache = True
    type = sa.types.NullType()

    def __init__(self, column: sa.Column[Any], name: str) -> None:
        super().__init__(column, sa.bindparam(name, type_=_Texts()))


@compiles(one_of)
def _compiled_one_of(element: one_of, compiler: Any, **options: Any) -> str:
    column, texts = (compiler.process(item, **options) for item in element.clauses)
    if compiler.dialect.name == "sqlite":
        return f"{column} IN (SELECT value FROM json_each({texts}))"
    return f"{column} = ANY({texts})"


def is_mine(columns: Any) -> sa.ColumnElement[bool]:
    """The row belongs to server `my_server` in generation `my_generation`."""
    mine: sa.ColumnElement[bool] = sa.and_(
        columns.server == sa.bindparam("my_server"),
        columns.generation == sa.bindparam("my_generation"),
    )
    return mine


GUARD = (
    sa.select(tables.lease.c.generation)
    .where(is_mine(tables.lease.c))
    .with_for_update(read=True, key_share=True)
)
"""One row while the lease is mine. The lock is one that a renewal does not wait for."""

COUNT_CHANGE = tables.changes.update().values(counter=tables.changes.c.counter + 1)


def _may_begin() -> tuple[Any, ...]:
    """A task may begin at `now`."""
    is_due = sa.and_(
        _TASKS.state == TaskState.WAITING, _TASKS.next_attempt_at <= sa.bindparam("now")
    )
    return (
        # The very words of the partial index: then it is used, whatever the parameters.
        sa.text("task_runs.state IN ('queued', 'waiting', 'running')"),
        sa.or_(_TASKS.state == TaskState.QUEUED, is_due),
    )


@functools.cache
def session_to_serve(is_by_session: bool) -> sa.Select[Any]:
    """The id of the running session (of `sessions`, not of `served`) that comes first of those
    with a task that may begin. Together with `TASKS_OF_SESSION` it costs the same
    however many tasks wait, as one sorted join of both tables does not."""
    tasks = sa.exists().where(_TASKS.session == _RUNS.id, *_may_begin())
    query = (
        sa.select(_RUNS.id)
        .where(
            _RUNS.state == SessionState.RUNNING,
            _RUNS.id.not_in(sa.bindparam("served", expanding=True)),
            tasks,
        )
        .order_by(_RUNS.priority.desc(), _RUNS.queued_at, _RUNS.id)
        .limit(1)
    )
    if is_by_session:
        query = query.where(_RUNS.id.in_(sa.bindparam("sessions", expanding=True)))
    return query


TASKS_OF_SESSION = (
    sa.select(_TASKS.id)
    .where(_TASKS.session == sa.bindparam("session"), *_may_begin())
    .order_by(_TASKS.position)
    .limit(sa.bindparam("count", type_=sa.Integer))
    .with_for_update(skip_locked=True)
)
"""Ids of at most `count` tasks of `session` that may begin, locked; those that another one holds
are passed over."""


# Where ids are given, the primary key is the way to them. A planner without statistics takes the
# partial index, which holds every open task, or all running sessions: 9 ms instead of 0.3 among
# 10,000 tasks. So conditions are written such that no other index answers them.
_STATE = sa.func.coalesce(_TASKS.state, "")


def _of_its_session(column: sa.Column[Any]) -> sa.ScalarSelect[Any]:
    """That column of the task's session."""
    return (
        sa.select(column).where(_RUNS.id == _TASKS.session).correlate(_TASK_RUNS).scalar_subquery()
    )


def _named_tasks() -> sa.Select[Any]:
    """Ids of those of `tasks` that may begin, locked; what another one holds is passed over."""
    is_due = sa.and_(_STATE == TaskState.WAITING, _TASKS.next_attempt_at <= sa.bindparam("now"))
    return (
        sa.select(_TASKS.id)
        .where(
            one_of(_TASKS.id, "tasks"),
            sa.or_(_STATE == TaskState.QUEUED, is_due),
            _of_its_session(_RUNS.state) == SessionState.RUNNING,
        )
        .with_for_update(skip_locked=True)
    )


@functools.cache
def named_tasks(is_by_session: bool) -> sa.Select[Any]:
    """Ids of at most `count` of `tasks` (of `sessions`) that may begin, in the order of their
    sessions, locked: one statement however many sessions they are of."""
    query = (
        _named_tasks()
        .order_by(
            _of_its_session(_RUNS.priority).desc(),
            _of_its_session(_RUNS.queued_at),
            _TASKS.session,
            _TASKS.position,
        )
        .limit(sa.bindparam("count", type_=sa.Integer))
    )
    if is_by_session:
        query = query.where(_TASKS.session.in_(sa.bindparam("sessions", expanding=True)))
    return query


_TAKE = (
    tables.task_runs.update()
    .values(
        state=TaskState.RUNNING,
        attempt=_TASKS.attempt + 1,
        next_attempt_at="",
        started_at=sa.bindparam("now"),
        ended_at="",
        changed_at=sa.bindparam("now"),
        server=sa.bindparam("my_server"),
        generation=sa.bindparam("my_generation"),
    )
    .returning(tables.task_runs)
)

TAKE_TASKS = _TAKE.where(one_of(_TASKS.id, "tasks"))
"""`tasks`, which are locked, begin."""


@functools.cache
def tasks_moved(to: TaskState) -> Any:
    """Those of `tasks` of which that is legal, and that are nobody else's, to state `to`."""
    return (
        tables.task_runs.update()
        .where(
            one_of(_TASKS.id, "tasks"),
            _STATE.in_(task_states_before(to)),
            sa.or_(_STATE != TaskState.RUNNING, is_mine(_TASKS)),
        )
        .values(
            state=to,
            changed_at=sa.bindparam("now"),
            detail=sa.bindparam("new_detail"),
            next_attempt_at=sa.bindparam("new_attempt_at"),
            ended_at=sa.bindparam("new_end"),
        )
        .returning(tables.task_runs)
    )
