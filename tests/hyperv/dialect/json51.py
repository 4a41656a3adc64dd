"""ConvertTo-Json and ConvertFrom-Json of Windows PowerShell 5.1 (JavaScriptSerializer beneath)."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from hyperv.dialect.conversion import (
    INT32_HIGH,
    INT32_LOW,
    NOTHING,
    DialectError,
    Whole,
    to_text,
)
from hyperv.dialect.values import Hashtable, Int64, PSEnum, PSObject
from hyperv.dialect.world import PSError

_SHORT = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPED = "<>'&\u0085\u2028\u2029"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def quoted(text: str) -> str:
    """A text in JSON: < > ' & are escaped too, what is not ASCII is not."""
    out = []
    for one in text:
        if one in _SHORT:
            out.append(_SHORT[one])
        elif one < " " or one in _ESCAPED:
            out.append(f"\\u{ord(one):04x}")
        else:
            out.append(one)
    return f'"{"".join(out)}"'


def write(value: Any, depth: int) -> str:
    """`ConvertTo-Json -Compress -Depth depth -InputObject value`."""
    return _write(value, depth, 0)


def _write(value: Any, depth: int, level: int) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return quoted(value)
        case PSEnum():
            return str(value.value)
        case int():
            return str(int(value))
        case float():
            return _double(value)
        case Decimal():
            return format(value, "f")
        case uuid.UUID():
            return quoted(str(value))
        case datetime():
            aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
            return f'"\\/Date({(aware - _EPOCH) // timedelta(milliseconds=1)})\\/"'
    if value is NOTHING:
        return "{}"  # as 5.1 does: issue 9231 of PowerShell's
    if level > depth:
        return quoted(to_text(value))
    if isinstance(value, Whole) and level:
        inner = ",".join(_write(each, depth, level + 2) for each in value)
        return f'{{"value":[{inner}],"Count":{len(value)}}}'
    if isinstance(value, list | bytes):
        return f"[{','.join(_write(each, depth, level + 1) for each in value)}]"
    if isinstance(value, Hashtable):
        for key in value:
            if not isinstance(key, str):
                raise PSError(
                    "The type 'System.Collections.Hashtable' is not supported for serialization "
                    "or deserialization of a dictionary. Keys must be strings.",
                    "InvalidOperation",
                    "NonStringKeyInDictionary",
                    exception_type="System.InvalidOperationException",
                    is_terminating=True,
                    command_type="Microsoft.PowerShell.Commands.ConvertToJsonCommand",
                )
    elif not isinstance(value, PSObject) or not value.is_custom:
        raise DialectError(f"ConvertTo-Json of {to_text(value)}: choose its properties first")
    pairs = value if isinstance(value, Hashtable) else value.properties
    inner = (f"{quoted(key)}:{_write(each, depth, level + 1)}" for key, each in pairs.items())
    return f"{{{','.join(inner)}}}"


def _double(value: float) -> str:
    """The shortest text that is read as the same number ("r")."""
    text = repr(value)
    if text in ("inf", "-inf", "nan"):
        raise DialectError("ConvertTo-Json of what is no number")
    mantissa, e, exponent = text.removesuffix(".0").partition("e")
    sign = exponent[:1] if exponent[:1] in "+-" else "+"
    return (
        f"{mantissa.removesuffix('.0')}E{sign}{exponent.lstrip('+-').zfill(2)}" if e else mantissa
    )


def _refuse(why: str) -> PSError:
    return PSError(
        why,
        "NotSpecified",
        "System.ArgumentException",
        exception_type="System.ArgumentException",
        is_terminating=True,
        command_type="Microsoft.PowerShell.Commands.ConvertFromJsonCommand",
    )


def _whole(text: str) -> Any:
    value = int(text)
    if INT32_LOW <= value <= INT32_HIGH:
        return value
    if Int64.low <= value <= Int64.high:
        return Int64(value)
    return Decimal(value) if abs(value) < Decimal(2**96) else float(value)


def _real(text: str) -> Any:
    return float(text) if "e" in text.lower() else Decimal(text)


def _object(pairs: list[tuple[str, Any]]) -> PSObject:
    made = PSObject()
    for key, value in pairs:
        if not key:
            raise _refuse(
                "The provided JSON includes a property whose name is an empty string, this is "
                "only supported using the -AsHashTable switch."
            )
        if key in made.properties:
            raise _refuse(
                "Cannot convert the JSON string because a dictionary that was converted from the "
                f"string contains the duplicated keys '{next(iter(made.properties))}' and '{key}'."
            )
        made.properties[key] = value
    return made


def _dated(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("/Date(") and value.endswith(")/"):
        return _EPOCH + timedelta(milliseconds=int(value[6:-2]))
    if isinstance(value, list):
        return [_dated(each) for each in value]
    if isinstance(value, PSObject):
        for key, each in list(value.properties.items()):
            value.properties[key] = _dated(each)
    return value


def read(text: str) -> Any:
    """`ConvertFrom-Json -InputObject text`; an array comes as one object."""
    try:
        value = json.loads(
            text,
            parse_int=_whole,
            parse_float=_real,
            parse_constant=_no_constant,
            object_pairs_hook=_object,
        )
    except json.JSONDecodeError as error:
        raise _refuse(f"Invalid JSON primitive: {text[error.pos : error.pos + 20]}.") from None
    value = _dated(value)
    return Whole(value) if isinstance(value, list) else value


def _no_constant(text: str) -> Any:
    raise _refuse(f"Invalid JSON primitive: {text}.")
