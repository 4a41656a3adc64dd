"""Rows of sessions and tasks as values, and back."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import sqlalchemy as sa

from standby.model.session import (
    Reason,
    RequestKind,
    SessionRequest,
    SessionRun,
    SessionState,
    TaskRun,
    TaskState,
)
from standby.server.store.tables import ApiToken, task_runs

_FIELDS = [field.name for field in dataclasses.fields(TaskRun)]
assert [column.name for column in task_runs.c] == _FIELDS
_STATE = _FIELDS.index("state")


def encoded(value: object) -> str:
    """As JSON text."""
    return msgspec.json.encode(value).decode()


def session_of(row: sa.Row[Any]) -> SessionRun:
    """A row of `session_runs`."""
    values = dict(row._mapping)
    values["state"] = SessionState(row.state)
    values["reason"] = Reason(row.reason)
    values["machines"] = tuple(msgspec.json.decode(row.machines))
    values["options"] = msgspec.json.decode(row.options)
    return SessionRun(**values)


def task_of(row: sa.Row[Any]) -> TaskRun:
    """A row of `task_runs`, by position: by name it cost a third of a dispatch."""
    values = list(row)
    values[_STATE] = TaskState(values[_STATE])
    return TaskRun(*values)


def request_of(row: sa.Row[Any]) -> SessionRequest:
    """A row of `session_requests`."""
    return SessionRequest(**dict(row._mapping) | {"kind": RequestKind(row.kind)})


def token_of(row: sa.Row[Any]) -> ApiToken:
    """A row of `api_tokens`."""
    return ApiToken(**row._mapping)
