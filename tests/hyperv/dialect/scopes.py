"""Variables and functions: every call sees those of its caller, and makes its own."""

from __future__ import annotations

from typing import Any

from hyperv.dialect.conversion import NOTHING, DialectError, cast
from hyperv.dialect.syntax import Function, Var
from hyperv.dialect.world import PSError

CONSTANTS = {"true": True, "false": False, "null": None}


class Scope:
    """One level; an assignment stays in it, a look goes on to those who called."""

    def __init__(self, parent: Scope | None) -> None:
        self.parent = parent
        self.top: Scope = parent.top if parent is not None else self
        self.values: dict[str, Any] = {}
        self.types: dict[str, str] = {}
        self.functions: dict[str, Function] = {}

    def find(self, name: str) -> Scope | None:
        """The nearest scope that has the variable."""
        scope: Scope | None = self
        while scope is not None and name not in scope.values:
            scope = scope.parent
        return scope

    def look(self, name: str) -> Any:
        """A variable's value, None where there is none."""
        scope = self.find(name)
        return None if scope is None else scope.values[name]

    def function(self, name: str) -> Function | None:
        """The nearest function of that name."""
        scope: Scope | None = self
        while scope is not None:
            if name.lower() in scope.functions:
                return scope.functions[name.lower()]
            scope = scope.parent
        return None

    def set(self, name: str, value: Any) -> None:
        """Assign here, through the type that the variable was given here."""
        if name in CONSTANTS and name != "null":
            raise PSError(
                f"Cannot overwrite variable {name} because it is read-only or constant.",
                "WriteError",
                "VariableNotWritable",
                is_terminating=True,
            )
        if name == "null":
            return
        if name in self.types:
            value = cast(self.types[name], value)
        self.values[name] = value


def place(scope: Scope, variable: Var) -> Scope:
    """The scope that a variable's prefix names."""
    if not variable.scope:
        return scope
    if variable.scope in ("script", "global"):
        return scope.top
    raise DialectError(f"the scope ${variable.scope}:")


def read(scope: Scope, variable: Var, host_name: str, *, strict: bool) -> Any:
    """`$name`."""
    name = variable.name.lower()
    if variable.scope == "env":
        if name != "computername":
            raise DialectError(f"$env:{variable.name}")
        return host_name.upper()
    if name in CONSTANTS:
        return CONSTANTS[name]
    name = "_" if name == "psitem" else name
    found = place(scope, variable).find(name)
    if found is not None:
        return found.values[name]
    if strict and name not in ("_", "args"):
        raise PSError(
            f"The variable '${variable.name}' cannot be retrieved because it has not been set.",
            "InvalidOperation",
            "VariableIsUndefined",
            is_terminating=True,
        )
    return NOTHING if name != "_" else None
