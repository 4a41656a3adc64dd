"""PowerShell's values as Python values, shared by the interpreter and the model of hosts.

| PowerShell | Python |
|---|---|
| $null, Boolean, String, Double, Decimal | None, bool, str, float, decimal.Decimal |
| Int32 | int |
| Byte, Int16, UInt16, UInt32, Int64, UInt64 | the subclasses of int here |
| DateTime | datetime (aware: UTC; naive: kind unspecified) |
| TimeSpan, Guid | timedelta, uuid.UUID |
| Object[] (any array) | list |
| Byte[] | bytes |
| Hashtable, [ordered] | Hashtable |
| an enum's value | PSEnum |
| a CIM instance | CimInstance |
| any other object | PSObject |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self


class SizedInt(int):
    """An integer of one of .NET's widths; one out of its range raises OverflowError."""

    ps_type: ClassVar[str] = ""
    low: ClassVar[int] = 0
    high: ClassVar[int] = 0

    def __new__(cls, value: int = 0) -> Self:
        if not cls.low <= value <= cls.high:
            raise OverflowError(f"{int(value)} is no {cls.ps_type}")
        return super().__new__(cls, value)


class Byte(SizedInt):
    ps_type, low, high = "System.Byte", 0, 2**8 - 1


class Int16(SizedInt):
    ps_type, low, high = "System.Int16", -(2**15), 2**15 - 1


class UInt16(SizedInt):
    ps_type, low, high = "System.UInt16", 0, 2**16 - 1


class UInt32(SizedInt):
    ps_type, low, high = "System.UInt32", 0, 2**32 - 1


class Int64(SizedInt):
    ps_type, low, high = "System.Int64", -(2**63), 2**63 - 1


class UInt64(SizedInt):
    ps_type, low, high = "System.UInt64", 0, 2**64 - 1


class Properties(MutableMapping[str, Any]):
    """Names to values in the order they came in; a name's case does not count, but is kept."""

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        self._items: dict[Any, tuple[Any, Any]] = {}
        for key, value in items.items() if isinstance(items, Mapping) else items:
            self[key] = value

    @staticmethod
    def fold(key: Any) -> Any:
        """What two equal keys have in common."""
        return key.lower() if isinstance(key, str) else key

    def __getitem__(self, key: Any) -> Any:
        return self._items[self.fold(key)][1]

    def __setitem__(self, key: Any, value: Any) -> None:
        folded = self.fold(key)
        self._items[folded] = (self._items[folded][0] if folded in self._items else key, value)

    def __delitem__(self, key: Any) -> None:
        del self._items[self.fold(key)]

    def __contains__(self, key: object) -> bool:
        return self.fold(key) in self._items

    def __iter__(self) -> Iterator[Any]:
        return (key for key, _ in self._items.values())

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self.items())!r})"


class Hashtable(Properties):
    """`@{…}` and `[ordered]@{…}`; keys are any values, those that are text without their case."""

    def __init__(
        self,
        items: Mapping[Any, Any] | Iterable[tuple[Any, Any]] = (),
        *,
        is_ordered: bool = False,
    ) -> None:
        super().__init__(items)
        self.is_ordered = is_ordered

    @staticmethod
    def fold(key: Any) -> Any:
        """1 and '1' are different keys, and so are 1 and [uint64]1."""
        return key.lower() if isinstance(key, str) else (type(key), key)


CUSTOM_OBJECT = "System.Management.Automation.PSCustomObject"


class PSObject:
    """An object with named properties and methods; `text` is its ToString().

    The model of hosts may make subclasses whose `get` and `set` compute.  A method takes the
    call's arguments and returns its value.
    """

    def __init__(
        self,
        type_names: Iterable[str] = (CUSTOM_OBJECT, "System.Object"),
        properties: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
        methods: Mapping[str, Callable[..., Any]] | None = None,
        *,
        text: str | None = None,
        read_only: Iterable[str] = (),
    ) -> None:
        self.type_names = tuple(type_names)
        self.properties = Properties(properties)
        self.methods: Mapping[str, Callable[..., Any]] = Properties(methods or {})
        self.text = text
        self.read_only = frozenset(name.lower() for name in read_only)

    @property
    def ps_type(self) -> str:
        """The name of its .NET type."""
        return self.type_names[0].partition("#")[0]

    @property
    def is_custom(self) -> bool:
        """Whether a script made it: `[pscustomobject]@{…}`, Select-Object, ConvertFrom-Json."""
        return self.ps_type == CUSTOM_OBJECT

    def get(self, name: str) -> Any:
        """A property's value; KeyError where there is none of that name."""
        return self.properties[name]

    def set(self, name: str, value: Any) -> None:
        """Change a property; KeyError where there is none, PermissionError where it is read-only.

        No object of the dialect gets a property by assignment.
        """
        if name not in self.properties:
            raise KeyError(name)
        if name.lower() in self.read_only:
            raise PermissionError(name)
        self.properties[name] = value

    def __repr__(self) -> str:
        return f"<{self.ps_type} {dict(self.properties.items())!r}>"


class CimInstance(PSObject):
    """An instance of a CIM class; `key` is what makes two of them one object of the host."""

    def __init__(
        self,
        class_name: str,
        namespace: str,
        properties: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
        key: Any = None,
        *,
        text: str | None = None,
        read_only: Iterable[str] = (),
    ) -> None:
        of = "Microsoft.Management.Infrastructure.CimInstance"
        place = namespace.replace("\\", "/")
        super().__init__(
            (f"{of}#{place}/{class_name}", of, "System.Object"),
            properties,
            text=class_name if text is None else text,
            read_only=read_only,
        )
        self.class_name = class_name
        self.namespace = namespace
        self.key = key


@dataclass(frozen=True, slots=True)
class PSEnum:
    """One value of an enum; where several flags are set, `name` has them all: `Read, Delete`."""

    type: str
    name: str
    value: int

    @property
    def ps_type(self) -> str:
        """The name of its .NET type."""
        return self.type


class ScriptBlock:
    """Statements as a value; `scope` is the scope it was written in (None: a script of its own)."""

    def __init__(self, body: Any, scope: Any, text: str) -> None:
        self.body = body
        self.scope = scope
        self.text = text

    def __repr__(self) -> str:
        return f"{{{self.text}}}"
