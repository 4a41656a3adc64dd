"""The statements of every dispatch and look, built once: building one costs more than running it.

Parameters that stand beside columns of the same name begin with `my_` (who asks) or `new_`.
"""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from standby.model.session import (
    RUN_BY_A_SERVER,
    SESSION_ENDS,
    SessionState,
    TaskState,
    next_session_states,
    task_states_before,
)
from standby.server.store import tables
from standby.server.store.runs import encoded

_RUNS = tables.session_runs.c
_TASK_RUNS = tables.task_runs
_TASKS = tables.task_runs.c
_REQUESTS = tables.requests.c
_MY_SESSION: sa.BindParameter[str] = sa.bindparam("my_session")
_COUNT = sa.bindparam("count", type_=sa.Integer)
_STATES: sa.BindParameter[Any] = sa.bindparam("states", expanding=True)
_IS_OPEN = sa.text("task_runs.state IN ('queued', 'waiting', 'running')")
"""The very words of the partial index: then it is used, whatever the parameters."""


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


# --- looking ---------------------------------------------------------------------------------

SESSION = tables.session_runs.select().where(_RUNS.id == _MY_SESSION)
JOBS_WITH = sa.select(_RUNS.job).where(_RUNS.state.in_(_STATES)).distinct()
TASKS_OF = tables.task_runs.select().where(_TASKS.session == _MY_SESSION).order_by(_TASKS.position)


@functools.cache
def sessions(is_by_state: bool, is_by_job: bool) -> sa.Select[Any]:
    """At most `count` sessions (in `states`, of `my_job`), as they are to run."""
    query = tables.session_runs.select().limit(_COUNT)
    if is_by_state:
        query = query.where(_RUNS.state.in_(_STATES))
    if is_by_job:
        query = query.where(_RUNS.job == sa.bindparam("my_job"))
    return query.order_by(_RUNS.priority.desc(), _RUNS.queued_at, _RUNS.id)


@functools.cache
def tasks(is_by_session: bool, is_by_state: bool) -> sa.Select[Any]:
    """At most `count` tasks (of `my_session`, in `states`), by session and position."""
    query = tables.task_runs.select().limit(_COUNT)
    if is_by_session:
        query = query.where(_TASKS.session == _MY_SESSION)
    if is_by_state:
        query = query.where(_TASKS.state.in_(_STATES))
    return query.order_by(_TASKS.session, _TASKS.position)


@functools.cache
def requests(is_by_session: bool, is_open: bool) -> sa.Select[Any]:
    """What was asked (of `my_session`, and not handled yet), oldest first."""
    query = tables.requests.select().order_by(_REQUESTS.id)
    if is_by_session:
        query = query.where(_REQUESTS.session == _MY_SESSION)
    if is_open:
        query = query.where(_REQUESTS.handled_at == "")
    return query


def _waiting(*columns: Any) -> sa.Select[Any]:
    """Of the waiting tasks of running sessions."""
    return (
        sa.select(*columns)
        .join(tables.session_runs, _RUNS.id == _TASKS.session)
        .where(_RUNS.state == SessionState.RUNNING, _IS_OPEN, _TASKS.state == TaskState.WAITING)
    )


DUE_RETRIES = (
    _waiting(tables.task_runs)
    .where(_TASKS.next_attempt_at <= sa.bindparam("now"))
    .order_by(_TASKS.next_attempt_at, _TASKS.id)
)
NEXT_RETRY = _waiting(sa.func.min(_TASKS.next_attempt_at))


# --- transfers under way ---------------------------------------------------------------------

_JOURNEYS = [column.name for column in tables.journeys.c]
_NEW_JOURNEYS = """
    ON CONFLICT (job, machine_id) DO UPDATE SET
        intent = excluded.intent, journey = excluded.journey, changed_at = excluded.changed_at
    """
_JOURNEYS_OF_SQLITE = ", ".join(f"json_extract(value, '$.{name}')" for name in _JOURNEYS)
_JOURNEYS_OF_POSTGRESQL = ", ".join(f"{name} text" for name in _JOURNEYS)
_INSERT_JOURNEYS = f"INSERT INTO journeys ({', '.join(_JOURNEYS)}) SELECT"
_ROWS = sa.bindparam("rows", type_=sa.Text)
# As one text of JSON: a list of texts costs the driver a millisecond of escaping.
SAVE_JOURNEYS = {
    "sqlite": sa.text(
        f"{_INSERT_JOURNEYS} {_JOURNEYS_OF_SQLITE} FROM json_each(:rows) WHERE true {_NEW_JOURNEYS}"
    ).bindparams(_ROWS),
    "postgresql": sa.text(
        f"{_INSERT_JOURNEYS} * FROM json_to_recordset(CAST(:rows AS json))"
        f" AS given({_JOURNEYS_OF_POSTGRESQL}) {_NEW_JOURNEYS}"
    ).bindparams(_ROWS),
}
"""The journeys of a list of objects, by the database's dialect."""

SAVE_MY_JOURNEYS = sa.text(
    f"""
    WITH mine AS (
        SELECT generation FROM server_lease
        WHERE server = :my_server AND generation = :my_generation FOR KEY SHARE
    )
    {_INSERT_JOURNEYS} given.* FROM json_to_recordset(CAST(:rows AS json))
    AS given({_JOURNEYS_OF_POSTGRESQL}) WHERE EXISTS (SELECT 1 FROM mine) {_NEW_JOURNEYS}
    """
).bindparams(
    _ROWS,
    sa.bindparam("my_server", type_=sa.Text),
    sa.bindparam("my_generation", type_=sa.Integer),
)
"""The same with the look of GUARD, in PostgreSQL: one round trip instead of four. No row is written
where the lease is another's."""


# --- sessions --------------------------------------------------------------------------------


@functools.cache
def sessions_to_take(is_by_job: bool, is_by_session: bool) -> sa.Select[Any]:
    """Ids of at most `count` queued sessions (of `jobs`, among `sessions`) of no job in `without`,
    as they are to run: each job's earliest only, and none of a job of which one runs. Locked."""
    queued = tables.session_runs.alias("queued")
    other = tables.session_runs.alias("other")
    query = (
        sa.select(queued.c.id)
        .where(
            queued.c.state == SessionState.QUEUED,
            queued.c.job.not_in(sa.bindparam("without", expanding=True)),
            # The very words of the partial index, as above.
            ~sa.exists().where(
                other.c.job == queued.c.job, sa.text("other.state IN ('running', 'stopping')")
            ),
            ~sa.exists().where(
                other.c.job == queued.c.job,
                other.c.state == SessionState.QUEUED,
                sa.tuple_(other.c.queued_at, other.c.id)
                < sa.tuple_(queued.c.queued_at, queued.c.id),
            ),
        )
        .order_by(queued.c.priority.desc(), queued.c.queued_at, queued.c.id)
        .limit(_COUNT)
        .with_for_update(of=queued, skip_locked=True)
    )
    if is_by_job:
        query = query.where(queued.c.job.in_(sa.bindparam("jobs", expanding=True)))
    if is_by_session:
        query = query.where(queued.c.id.in_(sa.bindparam("sessions", expanding=True)))
    return query


_NOW = sa.bindparam("now", type_=sa.Text)
_BEGAN = sa.case((_RUNS.started_at == "", _NOW), else_=_RUNS.started_at)
TAKE_SESSIONS = (
    tables.session_runs.update()
    .where(_RUNS.id.in_(sa.bindparam("sessions", expanding=True)))
    .values(
        state=SessionState.RUNNING,
        started_at=_BEGAN,
        changed_at=sa.bindparam("now"),
        server=sa.bindparam("my_server"),
        generation=sa.bindparam("my_generation"),
    )
    .returning(tables.session_runs)
)
"""`sessions`, which are locked, begin."""


@functools.cache
def session_moved(to: SessionState, before: tuple[SessionState, ...]) -> Any:
    """`my_session`, where it is in a state of `before` and nobody else's, to state `to`."""
    values: dict[str, Any] = {
        "state": to,
        "changed_at": sa.bindparam("now"),
        "detail": sa.bindparam("new_detail"),
    }
    if to in SESSION_ENDS:
        values["ended_at"] = sa.bindparam("now")
    elif to is SessionState.QUEUED:
        values |= {"ended_at": "", "server": "", "generation": 0}
    return (
        tables.session_runs.update()
        .where(
            _RUNS.id == _MY_SESSION,
            _RUNS.state.in_([state for state in before if to in next_session_states(state)]),
            sa.or_(_RUNS.state.not_in(sorted(RUN_BY_A_SERVER)), is_mine(_RUNS)),
        )
        .values(values)
        .returning(tables.session_runs)
    )


TELL_SESSION = (
    tables.session_runs.update()
    .where(_RUNS.id == _MY_SESSION, _RUNS.state == SessionState.RUNNING, is_mine(_RUNS))
    .values(detail=sa.bindparam("new_detail"))
)


# --- tasks -----------------------------------------------------------------------------------


def _may_begin() -> tuple[Any, ...]:
    """A task may begin at `now`."""
    is_due = sa.and_(
        _TASKS.state == TaskState.WAITING, _TASKS.next_attempt_at <= sa.bindparam("now")
    )
    return (
        _IS_OPEN,
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
    .limit(_COUNT)
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
        .limit(_COUNT)
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
