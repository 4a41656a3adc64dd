"""The statements of every dispatch, built once: building one costs more than running it.

Parameters that stand beside columns of the same name begin with `my_` (who asks) or `new_`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from standby.model.session import SessionState, TaskState, task_states_before
from standby.server.store import tables

_RUNS = tables.session_runs.c
_TASKS = tables.task_runs.c


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


@functools.cache
def named_tasks(is_by_session: bool) -> sa.Select[Any]:
    """Ids of at most `count` of `tasks` (of `sessions`) that may begin, in the order of their
    sessions, locked: one statement where the caller says which, however many sessions they are
    of."""
    query = (
        sa.select(_TASKS.id)
        .join(tables.session_runs, _RUNS.id == _TASKS.session)
        .where(
            _TASKS.id.in_(sa.bindparam("tasks", expanding=True)),
            _RUNS.state == SessionState.RUNNING,
            *_may_begin(),
        )
        .order_by(_RUNS.priority.desc(), _RUNS.queued_at, _RUNS.id, _TASKS.position)
        .limit(sa.bindparam("count", type_=sa.Integer))
        .with_for_update(skip_locked=True, of=tables.task_runs)
    )
    if is_by_session:
        query = query.where(_RUNS.id.in_(sa.bindparam("sessions", expanding=True)))
    return query


def padded(ids: Sequence[str]) -> list[str]:
    """The same ids, the last one repeated up to a power of two: so few texts of a statement that
    a database keeps each one's plan."""
    room = 1 << max(0, len(ids) - 1).bit_length()
    return [*ids, *itertools.repeat(ids[-1], room - len(ids))] if ids else []


TAKE_TASKS = (
    tables.task_runs.update()
    .where(_TASKS.id.in_(sa.bindparam("tasks", expanding=True)))
    .values(
        state=TaskState.RUNNING,
        attempt=_TASKS.attempt + 1,
        next_attempt_at="",
        started_at=sa.bindparam("now"),
        ended_at="",
        changed_at=sa.bindparam("now"),
        transfers="{}",
        server=sa.bindparam("my_server"),
        generation=sa.bindparam("my_generation"),
    )
    .returning(tables.task_runs)
)


@functools.cache
def tasks_moved(to: TaskState) -> Any:
    """Those of `tasks` of which that is legal, and that are nobody else's, to state `to`."""
    return (
        tables.task_runs.update()
        .where(
            _TASKS.id.in_(sa.bindparam("tasks", expanding=True)),
            _TASKS.state.in_(task_states_before(to)),
            sa.or_(_TASKS.state != TaskState.RUNNING, is_mine(_TASKS)),
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
