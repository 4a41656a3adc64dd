"""The commands of the language: each takes objects as they come and emits its own."""

from __future__ import annotations

from datetime import timedelta
from functools import cmp_to_key
from typing import Any, Protocol

from hyperv.dialect import json51, members, operators
from hyperv.dialect.conversion import (
    NOTHING,
    DialectError,
    Whole,
    custom_object,
    to_bool,
    to_number,
    to_text,
)
from hyperv.dialect.scopes import Scope
from hyperv.dialect.signals import Enough, Out
from hyperv.dialect.values import Hashtable, PSObject, ScriptBlock
from hyperv.dialect.world import PSError, Session


class Host(Protocol):
    """The process, as the commands here need it."""

    session: Session
    strict: int

    def invoke(self, block: ScriptBlock, scope: Scope, out: Out, item: Any) -> None: ...
    def warn(self, text: str, action: str) -> None: ...
    def action(self, scope: Scope, preference: str = ...) -> str: ...


class Stage:
    """One command of a pipeline: started where it is the first, else given objects; then ended."""

    def start(self) -> None:
        """Stand first in the pipeline."""

    def process(self, value: Any) -> None:
        """Take one object."""

    def end(self) -> None:
        """All objects have come."""


class _Core(Stage):
    parameters: frozenset[str] = frozenset()
    positional: tuple[str, ...] = ()

    def __init__(
        self,
        host: Any,
        named: Hashtable,
        positional: list[Any],
        scope: Scope,
        out: Out,
        is_first: bool,
    ) -> None:
        self.host: Host = host
        self.named = Hashtable(named.items())
        for name, value in zip(self.positional, positional, strict=False):
            self.named[name] = value
        self.scope, self.out, self.is_first = scope, out, is_first

    def start(self) -> None:
        """-InputObject where there is one; else nothing came."""
        if "InputObject" in self.named:
            self.process(self.named["InputObject"])

    def block(self, name: str) -> ScriptBlock:
        """A parameter that is a block."""
        block = self.named.get(name)
        if not isinstance(block, ScriptBlock):
            raise DialectError(f"-{name} is no block")
        return block

    def names(self, name: str) -> list[str]:
        """A parameter that is a list of plain names."""
        given = self.named[name]
        names = given if isinstance(given, list) else [given]
        for each in names:
            if not isinstance(each, str) or "*" in each or "?" in each:
                raise DialectError(f"-{name} {to_text(each)}")
        return names


class _ForEach(_Core):
    parameters = frozenset({"process"})
    positional = ("Process",)

    def process(self, value: Any) -> None:
        def emit(each: Any) -> None:
            self.out(each)

        self.host.invoke(self.block("Process"), self.scope, emit, value)


class _Where(_Core):
    parameters = frozenset({"filterscript"})
    positional = ("FilterScript",)

    def process(self, value: Any) -> None:
        found: list[Any] = []
        self.host.invoke(self.block("FilterScript"), self.scope, found.append, value)
        if to_bool(found if len(found) != 1 else found[0]):
            self.out(value)


class _Select(_Core):
    parameters = frozenset({"property", "expandproperty", "first", "last"})

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._left = int(self.named.get("First", -1))
        self._last: list[Any] = []

    def process(self, value: Any) -> None:
        if self._left == 0:
            raise Enough(self)
        if "Last" in self.named:
            self._last.append(value)
            return
        self._emit(value)
        self._left -= 1
        if self._left == 0:
            raise Enough(self)

    def _emit(self, value: Any) -> None:
        if "ExpandProperty" in self.named:
            name = self.named["ExpandProperty"]
            found = members.get(value, name, strict=True)
            for each in found if isinstance(found, list) else [found]:
                self.out(each)
        elif "Property" not in self.named:
            self.out(value)
        else:
            if value is not None and not isinstance(value, PSObject):
                raise DialectError("Select-Object -Property of what is no object")
            made = {}
            for name in self.names("Property"):
                found = members.get(value, name, strict=False)
                made[name] = None if found is NOTHING else found
            self.out(custom_object(made))

    def end(self) -> None:
        count = int(self.named.get("Last", 0))
        for value in self._last[-count:] if count else ():
            self._emit(value)


class _Sort(_Core):
    parameters = frozenset({"property", "descending"})

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._values: list[Any] = []

    def process(self, value: Any) -> None:
        self._values.append(value)

    def end(self) -> None:
        def keys(value: Any) -> list[Any]:
            if "Property" not in self.named:
                return [value]
            return [members.get(value, each, strict=False) for each in self.names("Property")]

        def order(one: Any, other: Any) -> int:
            for a, b in zip(keys(one), keys(other), strict=True):
                found = _compared(a, b)
                if found:
                    return found
            return 0

        is_back = to_bool(self.named.get("Descending"))
        for value in sorted(self._values, key=cmp_to_key(order), reverse=is_back):
            self.out(value)


def _compared(one: Any, other: Any) -> int:
    if one is None or other is None:
        return (one is not None) - (other is not None)
    if isinstance(one, str) and isinstance(other, str):
        a, b = one.lower(), other.lower()
        return (a > b) - (a < b)
    return int(operators.binary("-gt", one, other)) - int(operators.binary("-lt", one, other))


class _Null(_Core):
    parameters = frozenset({"inputobject"})


class _Output(_Core):
    parameters = frozenset({"inputobject"})

    def process(self, value: Any) -> None:
        is_list = self.is_first and isinstance(value, list)
        for each in value if is_list else [value]:
            self.out(each)


class _ToJson(_Core):
    parameters = frozenset({"inputobject", "depth", "compress"})

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._values: list[Any] = []

    def process(self, value: Any) -> None:
        self._values.append(value)

    def end(self) -> None:
        if not to_bool(self.named.get("Compress")):
            raise DialectError("ConvertTo-Json without -Compress")
        depth = int(to_number(self.named.get("Depth", 2)))
        value = self._values[0] if len(self._values) == 1 else self._values
        if value is None:
            return  # issue 15590 of PowerShell's
        self.out(json51.write(list(value) if isinstance(value, Whole) else value, depth))


class _FromJson(_Core):
    parameters = frozenset({"inputobject"})

    def process(self, value: Any) -> None:
        self.out(json51.read(to_text(value)))


class _Sleep(_Core):
    parameters = frozenset({"seconds", "milliseconds"})

    def start(self) -> None:
        duration = float(to_number(self.named.get("Seconds", 0)))
        duration += float(to_number(self.named.get("Milliseconds", 0))) / 1000
        self.host.session.clock.sleep(duration)


class _Date(_Core):
    def start(self) -> None:
        # A host of the model stands in UTC; the kind of the value is Local.
        self.out(self.host.session.clock.now().replace(tzinfo=None) + timedelta(0))


class _Strict(_Core):
    parameters = frozenset({"version"})

    def start(self) -> None:
        version = to_text(self.named["Version"]).lower()
        if version not in ("1.0", "2", "2.0", "3.0", "latest"):
            raise DialectError(f"Set-StrictMode -Version {version}")
        self.host.strict = 3 if version == "latest" else int(version[0])


class _Warning(_Core):
    parameters = frozenset({"message"})

    def start(self) -> None:
        action = self.host.action(self.scope, "warningpreference")
        self.host.warn(f"WARNING: {to_text(self.named['Message'])}", action)


CORE: dict[str, type[_Core]] = {
    "foreach-object": _ForEach,
    "where-object": _Where,
    "select-object": _Select,
    "sort-object": _Sort,
    "out-null": _Null,
    "write-output": _Output,
    "convertto-json": _ToJson,
    "convertfrom-json": _FromJson,
    "start-sleep": _Sleep,
    "get-date": _Date,
    "set-strictmode": _Strict,
    "write-warning": _Warning,
}
"""The commands of the core, by their name in lower case."""


def check(name: str, named: Hashtable, positional: list[Any]) -> None:
    """Whether the dialect has these parameters."""
    found = CORE[name.lower()]
    for each in named:
        if each.lower() not in found.parameters:
            raise PSError(
                f"A parameter cannot be found that matches parameter name '{each}'.",
                "InvalidArgument",
                "NamedParameterNotFound",
                exception_type="System.Management.Automation.ParameterBindingException",
                is_terminating=True,
            )
    if len(positional) > len(found.positional):
        raise DialectError(f"{name} with a nameless argument")
