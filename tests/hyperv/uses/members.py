"""Members of values: properties and methods, of CIM instances, of .NET types, of the script's own
records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hyperv.dialect import syntax as s
from hyperv.dialect.syntax import Node
from hyperv.uses.kinds import (
    NOTHING,
    Instance,
    Kind,
    Kinds,
    Null,
    Object,
    Plain,
    Record,
    Request,
    Result,
    Schema,
    Type,
    plain,
)

if TYPE_CHECKING:
    from hyperv.uses.walker import Walker

_TYPE_NAMES = {"datetime": "DateTime", "string": "String", "timespan": "TimeSpan", "guid": "Guid"}
_COUNTS = frozenset({"count", "length"})


class Members:
    """The members of one walker's values."""

    def __init__(self, walker: Walker) -> None:
        self._w = walker

    def member(self, node: Node, type_name: str, name: str) -> Kinds:
        """A member of a .NET type, or of one of the engine's: those stand in assumed.toml alone."""
        full = f"{type_name}.{name}"
        known = self._w.catalog.supposed("member", full)
        self._w.use(node, "member", full, known)
        return self.given(known.fact["type"]) if known else NOTHING

    def given(self, text: str, origin: str = "") -> Kinds:
        """What assumed.toml says that something gives: a CIM type, `class X`, `hashtable`, or the
        short name of an object's type."""
        name = text.removesuffix("[]")
        if name.startswith("class "):
            return frozenset({Instance(name.removeprefix("class "))})
        if name in ("any", "boolean", "string", "datetime", "guid") or name.rstrip(
            "0123456789"
        ) in (
            "uint",
            "sint",
            "real",
        ):
            return plain(name, None, origin)
        if name == "nothing":
            return NOTHING
        if name == "request":
            return frozenset({Request()})
        return frozenset({Object(name)})

    def property_(self, node: Node, value: Kind, name: str) -> Kinds:
        """What `value.name` may be."""
        match value:
            case Null():
                return NOTHING
            case Request():
                return frozenset({value})
            case Type():
                return self.member(node, value.name, name)
            case Record() if value.key(name):
                return value.fields[value.key(name)]
            case Instance() | Result():
                if name.lower() in _COUNTS and not self._w.commands.has(value, name):
                    return self.member(node, "Array", "Count")
                return self._w.commands.read(node, value, name)
            case Schema():
                found = self.member(node, "CimClass", name)
                return frozenset(
                    Object(v.type, value.class_name) if isinstance(v, Object) else v for v in found
                )
            case Object():
                if value.of and name.lower() == "name":
                    self.member(node, value.type, name)
                    return plain("string", None, f"names of {value.of}")
                line = self._w.catalog.line("property", f"{value.type}.{name}")
                if (
                    line is not None
                    or self._w.catalog.line("member", f"{value.type}.{name}") is None
                ):
                    if name.lower() in _COUNTS and line is None:
                        return self.member(node, "Array", "Count")
                    return self._w.commands.read(node, value, name)
                return self.member(node, value.type, name)
        if name.lower() in _COUNTS:
            return self.member(node, "Array", "Count")
        if isinstance(value, Record):
            if value.star:
                return value.star
            if name.lower() in ("keys", "values"):
                return self.member(node, "Hashtable", name)
            self._w.find(node, f"what is made at {value.place} has no {name}")
            return NOTHING
        if isinstance(value, Plain) and value.type in _TYPE_NAMES:
            return self.member(node, _TYPE_NAMES[value.type], name)
        self._w.find(node, f"it is not clear what {name} is a property of")
        return NOTHING

    def invoked(self, node: s.Invoke, values: Kinds, given: list[Kinds]) -> Kinds:
        """What `value.Name(…)` may be."""
        found = NOTHING
        for value in values:
            match value:
                case Null():
                    continue
                case Type() | Object():
                    name = value.name if isinstance(value, Type) else value.type
                    found |= self.member(node, name, node.name)
                case Record():
                    found |= self.member(node, "Hashtable", node.name)
                    if node.name.lower() == "add" and len(given) == 2:
                        self._w.put(value, *given)
                case Plain() if value.type in _TYPE_NAMES:
                    found |= self.member(node, _TYPE_NAMES[value.type], node.name)
                case Plain() if value.type.rstrip("0123456789") in ("uint", "sint", "number"):
                    found |= self.member(node, "Int", node.name)
                case _:
                    self._w.find(node, f"it is not clear what {node.name}() is a method of")
        return found
