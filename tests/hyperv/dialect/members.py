"""Properties, indexes and methods of values."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from hyperv.dialect.conversion import (
    NOTHING,
    DialectError,
    full_name,
    to_number,
    to_text,
    type_name,
)
from hyperv.dialect.errors import of_method
from hyperv.dialect.operators import equal
from hyperv.dialect.syntax import TypeName
from hyperv.dialect.values import Byte, Hashtable, Int64, PSObject, SizedInt
from hyperv.dialect.world import PSError

MISSING = object()


def _no_property(name: str) -> PSError:
    return PSError(
        f"The property '{name}' cannot be found on this object. Verify that the property exists.",
        "NotSpecified",
        "PropertyNotFoundStrict",
        exception_type="System.Management.Automation.PropertyNotFoundException",
        is_terminating=True,
    )


_TICKS_START = datetime(1, 1, 1, tzinfo=UTC)
_PROPERTIES: dict[type, dict[str, Callable[[Any], Any]]] = {
    str: {"length": len},
    bytes: {"length": len, "count": len},
    list: {"length": len, "count": len},
    Hashtable: {"count": len, "keys": list, "values": lambda value: list(value.values())},
    datetime: {
        "year": lambda value: value.year,
        "ticks": lambda value: Int64(
            (value.replace(tzinfo=UTC) - _TICKS_START) // timedelta(microseconds=1) * 10
        ),
    },
    timedelta: {
        "totalseconds": lambda value: value.total_seconds(),
        "totalmilliseconds": lambda value: value.total_seconds() * 1000,
    },
    TypeName: {
        "fullname": lambda value: full_name(value.name),
        "name": lambda value: full_name(value.name).rpartition(".")[2],
    },
}


def _own(value: Any, name: str) -> Any:
    """A property of the object itself, MISSING where it has none of that name."""
    if isinstance(value, PSObject):
        try:
            return value.get(name)
        except KeyError:
            return MISSING
    if isinstance(value, Hashtable) and name in value:
        return value[name]
    for kind, found in _PROPERTIES.items():
        if isinstance(value, kind) and name.lower() in found:
            return found[name.lower()](value)
    return MISSING


def get(value: Any, name: str, *, strict: bool) -> Any:
    """`value.name`; of an array without such a property, that of its elements."""
    value = None if value is NOTHING else value
    found = MISSING if value is None else _own(value, name)
    if found is MISSING and isinstance(value, list):
        each = [_own(one, name) for one in value if one is not None]
        there = [one for one in each if one is not MISSING]
        if there:
            if strict and len(there) < len(each):
                raise DialectError(f"elements with and without the property {name!r}")
            flat = [one for got in there for one in (got if isinstance(got, list) else [got])]
            return flat[0] if len(flat) == 1 else flat
    if found is not MISSING:
        return found
    if strict:
        raise _no_property(name)
    if name.lower() in ("count", "length"):
        custom = isinstance(value, PSObject) and value.is_custom
        return 0 if value is None else None if custom else 1
    return None


def put(target: Any, name: str, value: Any) -> None:
    """`target.name = value`."""
    if isinstance(target, Hashtable):
        target[name] = value
        return
    if isinstance(target, PSObject):
        try:
            target.set(name, value)
            return
        except KeyError:
            pass
        except PermissionError:
            raise PSError(
                f'"{name}" is a ReadOnly property.',
                "NotSpecified",
                "ExceptionWhenSetting",
                exception_type="System.Management.Automation.SetValueInvocationException",
                is_terminating=True,
            ) from None
    raise PSError(
        f"The property '{name}' cannot be found on this object. Verify that the property exists "
        "and can be set.",
        "InvalidOperation",
        "PropertyNotFound" if target is not None else "PropertyAssignmentException",
        is_terminating=True,
    )


def index(target: Any, at: Any, *, strict_bounds: bool) -> Any:
    """`target[at]`."""
    if target is None or target is NOTHING:
        raise PSError(
            "Cannot index into a null array.",
            "InvalidOperation",
            "NullArray",
            is_terminating=True,
        )
    if isinstance(target, Hashtable):
        if target.is_ordered and not isinstance(at, str):
            raise DialectError("an index of [ordered]")
        return target.get(at)
    if isinstance(target, str) or not isinstance(target, list | bytes):
        raise DialectError(f"an index of {type_name(target)}")
    if isinstance(at, list):
        raise DialectError("several indexes at once")
    where = int(to_number(at))
    if -len(target) <= where < len(target):
        return Byte(target[where]) if isinstance(target, bytes) else target[where]
    if strict_bounds:
        raise PSError(
            "Index was outside the bounds of the array.",
            "OperationStopped",
            "System.IndexOutOfRangeException",
            exception_type="System.IndexOutOfRangeException",
            is_terminating=True,
        )
    return None


def put_index(target: Any, at: Any, value: Any) -> None:
    """`target[at] = value`."""
    if isinstance(target, Hashtable):
        if at is None:
            raise PSError(
                "Index operation failed; the array index evaluated to null.",
                "InvalidOperation",
                "NullArrayIndex",
                is_terminating=True,
            )
        target[at] = value
    elif isinstance(target, list):
        where = int(to_number(at))
        if not -len(target) <= where < len(target):
            raise PSError(
                "Index was outside the bounds of the array.",
                "OperationStopped",
                "System.IndexOutOfRangeException",
                exception_type="System.IndexOutOfRangeException",
                is_terminating=True,
            )
        target[where] = value
    else:
        raise DialectError(f"an assignment to an index of {type_name(target)}")


# --- methods ------------------------------------------------------------------------------------


def _argument(kind: str, message: str) -> PSError:
    return PSError(message, exception_type=f"System.{kind}", is_terminating=True)


def _substring(text: str, start: int, length: int | None = None) -> str:
    end = len(text) if length is None else start + length
    if not 0 <= start <= end <= len(text):
        raise _argument("ArgumentOutOfRangeException", "startIndex cannot be larger than length")
    return text[start:end]


_FORMATS = {
    "o": lambda when: (
        when.strftime("%Y-%m-%dT%H:%M:%S.%f0") + ("Z" if when.tzinfo is not None else "")
    ),
    "yyyy-MM-ddTHH:mm:ssZ": lambda when: when.strftime("%Y-%m-%dT%H:%M:%SZ"),
    "yyyyMMddHHmmss": lambda when: when.strftime("%Y%m%d%H%M%S"),
}


def _formatted(value: Any, form: str) -> str:
    if isinstance(value, datetime) and form in _FORMATS:
        return _FORMATS[form](value)
    if isinstance(value, int) and form.lower() == "x":
        return format(value % (1 << 32) if not isinstance(value, SizedInt) else value, form)
    if isinstance(value, uuid.UUID) and form.upper() in ("D", "B", "N"):
        return {"D": str(value), "B": f"{{{value}}}", "N": value.hex}[form.upper()]
    raise DialectError(f"ToString({form!r}) of {type_name(value)}")


def _ascii(run: Callable[[str, str], Any]) -> Callable[[str, Any], Any]:
    def checked(text: str, other: Any) -> Any:
        if not isinstance(other, str):
            raise DialectError("a text's method on what is no text")
        return run(text, other)

    return checked


def _add_key(table: Hashtable, key: Any, value: Any) -> Any:
    if key in table:
        raise _argument(
            "ArgumentException",
            f"Item has already been added. Key in dictionary: '{to_text(key)}'  "
            f"Key being added: '{to_text(key)}'",
        )
    table[key] = value
    return NOTHING


def _remove_key(table: Hashtable, key: Any) -> Any:
    table.pop(key, None)
    return NOTHING


_METHODS: dict[type, dict[str, Callable[..., Any]]] = {
    str: {
        "trim": lambda text: text.strip(),
        "trimend": lambda text, chars=None: text.rstrip(chars),
        "trimstart": lambda text, chars=None: text.lstrip(chars),
        "tolower": str.lower,
        "toupper": str.upper,
        "startswith": _ascii(str.startswith),
        "endswith": _ascii(str.endswith),
        "contains": _ascii(lambda text, other: other in text),
        "indexof": _ascii(str.find),
        "lastindexof": _ascii(str.rfind),
        "replace": lambda text, old, new: text.replace(old, new),
        "substring": _substring,
    },
    Hashtable: {
        "containskey": lambda table, key: key in table,
        "add": _add_key,
        "remove": _remove_key,
    },
    list: {"contains": lambda values, value: any(_same(each, value) for each in values)},
    datetime: {
        "addseconds": lambda when, count: when + timedelta(seconds=float(to_number(count))),
        "addmilliseconds": lambda when, count: (
            when + timedelta(milliseconds=float(to_number(count)))
        ),
        "adddays": lambda when, count: when + timedelta(days=float(to_number(count))),
        "touniversaltime": lambda when: when.replace(tzinfo=UTC),
    },
}


def _same(one: Any, other: Any) -> bool:
    """.NET's Equals: of one type, and a text's case counts."""
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return type(one) is type(other) and equal(one, other)


def call(value: Any, name: str, arguments: list[Any]) -> Any:
    """`value.name(arguments)`."""
    if value is None or value is NOTHING:
        raise PSError(
            "You cannot call a method on a null-valued expression.",
            "InvalidOperation",
            "InvokeMethodOnNull",
            is_terminating=True,
        )
    method = _method(value, name.lower())
    if method is None:
        raise PSError(
            f"Method invocation failed because [{type_name(value)}] does not contain a method "
            f"named '{name}'.",
            "InvalidOperation",
            "MethodNotFound",
            is_terminating=True,
        )
    return invoke(method, name, arguments)


def invoke(method: Callable[..., Any], name: str, arguments: list[Any]) -> Any:
    """A .NET method, with its errors as 5.1 wraps them; what returns nothing gives NOTHING."""
    plain = [None if each is NOTHING else each for each in arguments]
    try:
        return method(*plain)
    except PSError as error:
        raise of_method(name, len(plain), error) from None
    except TypeError as error:
        raise DialectError(f"the method {name} with {len(plain)} arguments: {error}") from error


def _method(value: Any, name: str) -> Callable[..., Any] | None:
    if isinstance(value, PSObject) and name in value.methods:
        return value.methods[name]
    for kind, found in _METHODS.items():
        if isinstance(value, kind) and name in found:
            method = found[name]
            return lambda *arguments: method(value, *arguments)
    if name == "tostring":
        return lambda *form: _formatted(value, *form) if form else to_text(value)
    if name == "gettype":
        return lambda: TypeName(0, type_name(value))
    return None


METHODS = frozenset(name for found in _METHODS.values() for name in found) | {"tostring", "gettype"}
"""The methods of the language's own values, in lower case."""
