"""What one value is as another: text, truth, numbers and casts, as in PowerShell 5.1."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from hyperv.dialect.syntax import TypeName
from hyperv.dialect.values import (
    CUSTOM_OBJECT,
    Byte,
    Hashtable,
    Int16,
    Int64,
    PSEnum,
    PSObject,
    ScriptBlock,
    SizedInt,
    UInt16,
    UInt32,
    UInt64,
)
from hyperv.dialect.world import PSError

INT32_LOW, INT32_HIGH = -(2**31), 2**31 - 1


class DialectError(Exception):
    """A script left the dialect while it ran: no `catch` of the script sees it."""


class _Nothing:
    def __repr__(self) -> str:
        return "NOTHING"


NOTHING = _Nothing()
"""What a command without output gives (AutomationNull): $null, but no object in a pipeline."""


class Whole(list[Any]):
    """An array that came down a pipeline as one object: ConvertTo-Json of 5.1 may wrap it."""


_PYTHON_TYPES: list[tuple[type, str]] = [
    (bool, "System.Boolean"),
    (SizedInt, ""),
    (int, "System.Int32"),
    (float, "System.Double"),
    (Decimal, "System.Decimal"),
    (str, "System.String"),
    (bytes, "System.Byte[]"),
    (list, "System.Object[]"),
    (datetime, "System.DateTime"),
    (timedelta, "System.TimeSpan"),
    (uuid.UUID, "System.Guid"),
    (ScriptBlock, "System.Management.Automation.ScriptBlock"),
    (TypeName, "System.RuntimeType"),
]

SHORT_NAMES = {
    "string": "System.String",
    "bool": "System.Boolean",
    "byte": "System.Byte",
    "int16": "System.Int16",
    "uint16": "System.UInt16",
    "int": "System.Int32",
    "int32": "System.Int32",
    "uint32": "System.UInt32",
    "long": "System.Int64",
    "int64": "System.Int64",
    "uint64": "System.UInt64",
    "double": "System.Double",
    "decimal": "System.Decimal",
    "guid": "System.Guid",
    "datetime": "System.DateTime",
    "timespan": "System.TimeSpan",
    "array": "System.Array",
    "hashtable": "System.Collections.Hashtable",
    "pscustomobject": CUSTOM_OBJECT,
    "ordered": "System.Collections.Specialized.OrderedDictionary",
    "scriptblock": "System.Management.Automation.ScriptBlock",
    "switch": "System.Management.Automation.SwitchParameter",
    "object": "System.Object",
    "void": "System.Void",
}
_INTEGERS = {t.ps_type: t for t in (Byte, Int16, UInt16, UInt32, Int64, UInt64)}


def full_name(name: str) -> str:
    """A type's name with its namespace, as its FullName says."""
    short = SHORT_NAMES.get(name.lower())
    if short:
        return short
    return name if name.lower().startswith(("system.", "microsoft.")) else f"System.{name}"


def type_name(value: Any) -> str:
    """The full name of a value's .NET type."""
    if isinstance(value, SizedInt | PSObject | PSEnum):
        return value.ps_type
    if isinstance(value, Hashtable):
        return SHORT_NAMES["ordered" if value.is_ordered else "hashtable"]
    for python, name in _PYTHON_TYPES:
        if isinstance(value, python):
            return name
    raise DialectError(f"a value of no type of the dialect: {value!r}")


def is_of(value: Any, name: str) -> bool:
    """The operator -is."""
    if value is None or value is NOTHING:
        return False
    wanted = full_name(name).lower()
    if wanted == "system.object":
        return True
    if wanted == "system.array":
        return isinstance(value, list | bytes)
    if isinstance(value, PSObject):
        return any(wanted == each.lower() for each in value.type_names)
    return type_name(value).lower() == wanted


def number_text(value: float) -> str:
    """A Double as .NET Framework writes it: 15 digits."""
    if value != value or value in (float("inf"), float("-inf")):
        return "NaN" if value != value else "∞" if value > 0 else "-∞"
    text = f"{value:.15G}"
    mantissa, e, exponent = text.partition("E")
    if not e:
        return text
    return f"{mantissa}E{exponent[0]}{exponent[1:].lstrip('0').zfill(2)}"


def to_text(value: Any) -> str:
    """What "$value" is."""
    match value:
        case None | _Nothing():
            return ""
        case str():
            return value
        case bool():
            return "True" if value else "False"
        case int():
            return str(int(value))
        case float():
            return number_text(value)
        case Decimal():
            return format(value, "f")
        case datetime():
            return value.strftime("%m/%d/%Y %H:%M:%S")
        case timedelta():
            return _span_text(value)
        case uuid.UUID():
            return str(value)
        case list() | bytes():
            return " ".join(to_text(each) for each in value)
        case PSEnum():
            return value.name
        case ScriptBlock():
            return value.text
        case TypeName():
            return full_name(value.name)
        case PSObject():
            if value.text is not None:
                return value.text
            if not value.is_custom:
                return value.ps_type
            pairs = (f"{k}={to_text(v)}" for k, v in value.properties.items())
            return f"@{{{'; '.join(pairs)}}}"
    return type_name(value)


def _span_text(value: timedelta) -> str:
    micro = abs(value) // timedelta(microseconds=1)
    seconds, rest = divmod(micro, 10**6)
    days, seconds = divmod(seconds, 86400)
    text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    text = (f"{days}." if days else "") + text + (f".{rest:06}0" if rest else "")
    return f"-{text}" if value < timedelta(0) else text


def to_bool(value: Any) -> bool:
    """Whether a condition holds: an array of one is what its element is."""
    match value:
        case None | _Nothing():
            return False
        case bool() | str() | int() | float() | Decimal():
            return bool(value)
        case PSEnum():
            return value.value != 0
        case list() | bytes():
            if len(value) == 1:
                only = value[0]
                return bool(only) if isinstance(only, list | bytes) else to_bool(only)
            return bool(value)
    return True


def is_number(value: Any) -> bool:
    """Whether a value counts in arithmetic (a Boolean does not)."""
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _refused(value: Any, to: str, why: str = "") -> PSError:
    shown = to_text(value)
    return PSError(
        f'Cannot convert value "{shown}" to type "{to}".' + (f' Error: "{why}"' if why else ""),
        "InvalidArgument",
        "InvalidCastFromStringToInteger" if isinstance(value, str) else "InvalidCastIConvertible",
        exception_type="System.Management.Automation.RuntimeException",
        is_terminating=True,
    )


def to_number(value: Any) -> int | float | Decimal:
    """An operand of arithmetic as a number."""
    if isinstance(value, bool):
        return int(value)
    if is_number(value):
        return value
    if value is None or value is NOTHING:
        return 0
    if isinstance(value, PSEnum):
        return value.value
    if isinstance(value, str):
        return _parse(value)
    raise _refused(value, "System.Int32")


def _parse(text: str) -> int | float:
    stripped = text.strip()
    if not stripped:
        return 0
    try:
        if stripped.lstrip("+-").isdecimal() and stripped.isascii():
            whole = int(stripped)
            if INT32_LOW <= whole <= INT32_HIGH:
                return whole
            return Int64(whole) if Int64.low <= whole <= Int64.high else float(whole)
        return float(stripped)
    except ValueError:
        raise _refused(text, "System.Int32", "Input string was not in a correct format.") from None


def _to_integer(value: Any, to: str) -> int:
    kind = _INTEGERS.get(to)
    low, high = (kind.low, kind.high) if kind else (INT32_LOW, INT32_HIGH)
    if isinstance(value, list | bytes | Hashtable | PSObject | uuid.UUID | datetime | timedelta):
        raise _refused(value, to)
    number = to_number(value)
    if isinstance(number, float):
        if number != number or abs(number) == float("inf"):
            raise _refused(value, to)
        number = Decimal(number)
    whole = int(Decimal(number).to_integral_value(ROUND_HALF_EVEN))
    if not low <= whole <= high:
        short = to.removeprefix("System.")
        article = "an" if short[0] in "IU" and not short.startswith("UI") else "a"
        why = f"Value was either too large or too small for {article} {short}."
        raise _refused(value, to, why)
    return kind(whole) if kind else whole


def _to_guid(value: Any) -> uuid.UUID:
    if isinstance(value, uuid.UUID):
        return value
    try:
        return uuid.UUID(to_text(value).strip("{}"))
    except ValueError:
        raise _refused(value, "System.Guid") from None


def _to_datetime(value: Any) -> datetime:
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str):
        raise _refused(value, "System.DateTime")
    try:
        when = datetime.fromisoformat(value)
    except ValueError:
        raise _refused(value, "System.DateTime") from None
    if when.tzinfo is not None:
        # .NET gives local time; hosts of the model run in UTC.
        when = when.astimezone(UTC)
    return when


def custom_object(pairs: Any) -> PSObject:
    """`[pscustomobject]@{…}`."""
    return PSObject(properties={to_text(key): value for key, value in pairs.items()})


def _to_custom(value: Any) -> Any:
    return custom_object(value) if isinstance(value, Hashtable) else value


def _to_hashtable(value: Any) -> Any:
    if value is None or isinstance(value, Hashtable):
        return value
    raise _refused(value, SHORT_NAMES["hashtable"])


def _to_array(value: Any) -> Any:
    if value is None or isinstance(value, list):
        return value
    return list(value) if isinstance(value, bytes) else [value]


def _to_span(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    raise _refused(value, "System.TimeSpan")


_CASTS: dict[str, Callable[[Any], Any]] = {
    "string": to_text,
    "bool": to_bool,
    "switch": to_bool,
    "double": lambda value: float(to_number(value)),
    "guid": _to_guid,
    "datetime": _to_datetime,
    "timespan": _to_span,
    "array": _to_array,
    "hashtable": _to_hashtable,
    "pscustomobject": _to_custom,
    "object": lambda value: value,
}

CASTS = frozenset(
    {*_CASTS, "byte", "int16", "uint16", "int", "int32", "uint32", "long", "int64", "uint64"}
    | {"void", "ordered"}
)
"""The types that a script casts to; `[ordered]` stands before a literal only."""


def cast(name: str, value: Any) -> Any:
    """`[name]value`."""
    plain = name.lower().removeprefix("system.")
    if value is NOTHING:
        value = None
    if plain in _CASTS:
        return _CASTS[plain](value)
    full = SHORT_NAMES.get(plain, "")
    if full in _INTEGERS or full == "System.Int32":
        return _to_integer(value, full)
    raise DialectError(f"a cast to [{name}]")
