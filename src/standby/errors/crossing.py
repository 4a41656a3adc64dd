"""Errors across a process border: the class name and its fields."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from standby.errors.base import StandbyError
from standby.errors.movers import MoverFault


def _tree(root: type[StandbyError]) -> dict[str, type[StandbyError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


def error_to_wire(error: BaseException, mover: str = "") -> dict[str, Any]:
    """`error` as {"error": class name, field: value …}; a foreign error becomes a MoverFault."""
    if not isinstance(error, StandbyError):
        error = MoverFault(mover, f"{type(error).__name__}: {error}")
    return {"error": type(error).__name__} | {f.name: getattr(error, f.name) for f in fields(error)}


def error_from_wire(data: dict[str, Any]) -> StandbyError:
    """The error that `error_to_wire` wrote; an unknown class becomes a MoverFault."""
    values = dict(data)
    name = str(values.pop("error", ""))
    kind = _tree(StandbyError).get(name)
    if kind is None:
        return MoverFault("?", f"{name}: {values}")
    known = {f.name for f in fields(kind)}
    arguments = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
        if key in known
    }
    try:
        return kind(**arguments)
    except TypeError:
        return MoverFault("?", f"{name}: {values}")
