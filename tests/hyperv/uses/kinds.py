"""What a value of a script may be, as far as its text tells.

A value is a set of these: an array is the set of what its elements may be, a variable the set of
all that is ever assigned to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hyperv.dialect import syntax


@dataclass(frozen=True, slots=True)
class Plain:
    """A number, a text, a time, a truth: `type` by CIM's names (`number` where arithmetic made it,
    `any` where nothing tells), `const` where the text writes it down, `origin` the property, return
    code or parameter that it was read from, `is_array` that this is an array of them."""

    type: str
    const: Any = None
    origin: str = ""
    is_array: bool = False


@dataclass(frozen=True, slots=True)
class Null:
    """`$null`."""


@dataclass(frozen=True, slots=True)
class Request:
    """Any part of the request: Python made it of JSON."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A CIM instance."""

    class_name: str


@dataclass(frozen=True, slots=True)
class Schema:
    """What Get-CimClass gives."""

    class_name: str


@dataclass(frozen=True, slots=True)
class Result:
    """What Invoke-CimMethod gives."""

    class_name: str
    method: str


@dataclass(frozen=True, slots=True)
class Object:
    """An object of a .NET type; `of` is the CIM class that it describes, '' for none."""

    type: str
    of: str = ""


@dataclass(frozen=True, slots=True)
class Type:
    """`[name]` itself."""

    name: str


@dataclass(eq=False, slots=True)
class Record:
    """What one `@{…}`, [pscustomobject] or Select-Object makes. `star` are the values under keys
    that are not written down. One object for each place of the text."""

    place: str
    fields: dict[str, frozenset[Kind]] = field(default_factory=dict)
    star: frozenset[Kind] = frozenset()
    guards: dict[str, frozenset[str]] = field(default_factory=dict)
    """By key: what the conditions around every place that sets it mention."""

    def key(self, name: str) -> str:
        """The key as it was written, '' where there is none of that name."""
        return next((key for key in self.fields if key.lower() == name.lower()), "")

    def add(self, name: str, values: frozenset[Kind]) -> None:
        """One more value under a key."""
        key = self.key(name) or name
        self.fields[key] = self.fields.get(key, frozenset()) | values

    def size(self) -> int:
        """Grows with everything that is added."""
        return len(self.star) + sum(1 + len(values) for values in self.fields.values())


@dataclass(eq=False, slots=True)
class Code:
    """A block of a script, with the file that it stands in."""

    block: syntax.Block
    file: str


Kind = Plain | Null | Request | Instance | Schema | Result | Object | Type | Record | Code
Kinds = frozenset[Kind]
NOTHING: Kinds = frozenset()


def plain(type: str, const: Any = None, origin: str = "") -> Kinds:
    """A set of one plain value."""
    return frozenset({Plain(type, const, origin)})


def single(values: Kinds) -> Kinds:
    """The elements of arrays, as a loop, a pipeline or an index gives them."""
    return frozenset(
        replace(v, is_array=False) if isinstance(v, Plain) and v.is_array else v for v in values
    )


def constants(values: Kinds) -> list[Any]:
    """The constants among the values, in order."""
    found = [v.const for v in values if isinstance(v, Plain) and v.const is not None]
    return sorted(found, key=str)
