"""The operators: arithmetic with .NET's widths, comparisons without case, arrays as filters."""

from __future__ import annotations

import operator as python
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from hyperv.dialect.conversion import (
    INT32_HIGH,
    INT32_LOW,
    NOTHING,
    DialectError,
    cast,
    is_number,
    is_of,
    to_bool,
    to_number,
    to_text,
    type_name,
)
from hyperv.dialect.syntax import TypeName
from hyperv.dialect.values import (
    Byte,
    Hashtable,
    Int16,
    Int64,
    PSEnum,
    SizedInt,
    UInt16,
    UInt32,
    UInt64,
)
from hyperv.dialect.world import PSError

_BINARY = """+ - * / % -eq -ne -lt -le -gt -ge -like -notlike -contains -notcontains -in -notin
-join -is -isnot -band -bor -bxor -and -or"""
BINARY = frozenset(_BINARY.split())
UNARY = frozenset({"-not", "!", "-", ",", "-join", "-bnot"})
ASSIGNMENTS = frozenset({"=", "+=", "-="})

_RANKS = {Byte: 0, Int16: 0, UInt16: 0, int: 0, UInt32: 1, Int64: 2, UInt64: 3}


def _error(text: str, error_id: str, category: str = "InvalidOperation") -> PSError:
    return PSError(text, category, error_id, is_terminating=True)


def _no_operator(left: Any, right: Any, name: str) -> PSError:
    return _error(
        f"Method invocation failed because [{type_name(left)}] does not contain a method named "
        f"'{name}'.",
        "MethodNotFound",
    )


def _width(left: int, right: int) -> type[int] | None:
    """The type that both are taken to; None where it is Decimal."""
    rank = max(_RANKS[type(left)], _RANKS[type(right)])
    if rank == 0:
        return int
    signed = [each for each in (left, right) if not isinstance(each, UInt32 | UInt64 | UInt16)]
    is_negative = any(each < 0 for each in signed)
    if rank == 1:
        return Int64 if is_negative else UInt32
    if rank == 2:
        return Int64
    return None if is_negative else UInt64


def _fit(value: int, kind: type[int] | None) -> Any:
    if kind is None:
        return Decimal(value)
    low, high = (kind.low, kind.high) if issubclass(kind, SizedInt) else (INT32_LOW, INT32_HIGH)
    return kind(value) if low <= value <= high else float(value)


def arithmetic(sign: str, left: Any, right: Any) -> Any:
    """Two numbers; the result is of the wider type, or Double where that does not hold it."""
    left, right = to_number(left), to_number(right)
    if sign in "/%" and right == 0 and not isinstance(left, float) and not isinstance(right, float):
        raise _error("Attempted to divide by zero.", "RuntimeException", "NotSpecified")
    if isinstance(left, float) or isinstance(right, float):
        left, right = float(left), float(right)
        if sign in "/%" and right == 0:
            raise DialectError("a Double divided by zero")
        if sign == "%":
            return left - right * int(left / right)
        return _PLAIN[sign](left, right)
    if isinstance(left, Decimal) or isinstance(right, Decimal):
        left, right = Decimal(left), Decimal(right)
        return left % right if sign == "%" else _PLAIN[sign](left, right)
    kind = _width(left, right)
    a, b = int(left), int(right)
    if sign == "/":
        return _fit(a // b, kind) if a % b == 0 else a / b
    if sign == "%":
        return _fit(abs(a) % abs(b) * (-1 if a < 0 else 1), kind)
    return _fit(_PLAIN[sign](a, b), kind)


_PLAIN: dict[str, Callable[[Any, Any], Any]] = {
    "+": python.add,
    "-": python.sub,
    "*": python.mul,
    "/": python.truediv,
}


def _items(value: Any) -> list[Any]:
    if isinstance(value, list | bytes):
        return [Byte(each) for each in value] if isinstance(value, bytes) else list(value)
    return [value]


def add(left: Any, right: Any) -> Any:
    """`+`: what stands left says what it is."""
    if left is None:
        return right
    if isinstance(left, list | bytes):
        return [*_items(left), *_items(right)]
    if isinstance(left, str):
        return left + to_text(right)
    if isinstance(left, Hashtable):
        if not isinstance(right, Hashtable):
            raise _error(
                "A hash table can only be added to another hash table.",
                "AddHashTableToNonHashTable",
            )
        for key in right:
            if key in left:
                raise PSError(
                    f"Item has already been added. Key in dictionary: '{to_text(key)}'  "
                    f"Key being added: '{to_text(key)}'",
                    "NotSpecified",
                    "System.ArgumentException",
                    exception_type="System.ArgumentException",
                    is_terminating=True,
                )
        return Hashtable([*left.items(), *right.items()], is_ordered=left.is_ordered)
    if isinstance(left, datetime | timedelta) and isinstance(right, timedelta):
        return left + right
    if is_number(left):
        return arithmetic("+", left, right)
    raise _no_operator(left, right, "op_Addition")


def subtract(left: Any, right: Any) -> Any:
    """`-`."""
    if isinstance(left, datetime) and isinstance(right, datetime):
        return _aware(left) - _aware(right)
    if isinstance(left, datetime | timedelta) and isinstance(right, timedelta):
        return left - right
    if isinstance(left, list | bytes | Hashtable):
        raise _no_operator(left, right, "op_Subtraction")
    return arithmetic("-", left, right)


def multiply(left: Any, right: Any) -> Any:
    """`*`: a text or an array is repeated."""
    if isinstance(left, str | list):
        return left * int(to_number(right))
    return arithmetic("*", left, right)


def _aware(when: datetime) -> datetime:
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)


def equal(left: Any, right: Any) -> bool:
    """-eq of two values that are no arrays: the right one is taken to the left one's type."""
    left = None if left is NOTHING else left
    right = None if right is NOTHING else right
    if left is None or right is None:
        return left is right
    if isinstance(left, bool):
        return left == to_bool(right)
    if isinstance(left, str):
        return left.lower() == to_text(right).lower()
    if isinstance(left, PSEnum):
        if isinstance(right, PSEnum):
            return (left.type, left.value) == (right.type, right.value)
        if isinstance(right, str):
            return left.name.lower() == right.strip().lower()
        return is_number(right) and left.value == right
    if is_number(left) or isinstance(left, uuid.UUID | datetime):
        try:
            return bool(_alike(left, right, python.eq))
        except PSError:
            return False
    return left is right


def _alike(left: Any, right: Any, compare: Callable[[Any, Any], bool]) -> bool:
    if isinstance(left, datetime):
        return compare(_aware(left), _aware(cast("datetime", right)))
    if isinstance(left, uuid.UUID):
        return compare(left, cast("guid", right))
    other = to_number(right)
    if isinstance(left, Decimal) and isinstance(other, float):
        other = Decimal(other)
    return compare(left, other)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def run(left: Any, right: Any) -> bool:
        if left is None or right is None or left is NOTHING or right is NOTHING:
            raise DialectError("an order with $null")
        if isinstance(left, timedelta) and isinstance(right, timedelta):
            return compare(left, right)
        if is_number(left) or isinstance(left, datetime):
            return _alike(left, right, compare)
        if isinstance(left, PSEnum):
            return _alike(left.value, right, compare)
        raise DialectError(f"an order of {type_name(left)}, which depends on the host's culture")

    return run


def like(text: str, pattern: str) -> bool:
    """-like: `*` and `?`; `[` and the backtick are not in the dialect."""
    if "[" in pattern or "`" in pattern:
        raise DialectError(f"the pattern {pattern!r}")
    text, pattern = text.lower(), pattern.lower()
    reached = {0}
    for sign in pattern:
        if sign == "*":
            reached = set(range(min(reached), len(text) + 1)) if reached else reached
        else:
            reached = {
                at + 1 for at in reached if at < len(text) and (sign == "?" or text[at] == sign)
            }
    return len(text) in reached


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "-eq": equal,
    "-ne": lambda left, right: not equal(left, right),
    "-lt": _ordered(python.lt),
    "-le": _ordered(python.le),
    "-gt": _ordered(python.gt),
    "-ge": _ordered(python.ge),
    "-like": lambda left, right: like(to_text(left), to_text(right)),
    "-notlike": lambda left, right: not like(to_text(left), to_text(right)),
}


def _contains(values: Any, value: Any) -> bool:
    return any(equal(each, value) for each in _items(values))


def _bits(sign: str, left: Any, right: Any) -> Any:
    a, b = to_number(left), to_number(right)
    if isinstance(a, PSEnum | float | Decimal) or isinstance(b, float | Decimal):
        raise DialectError(f"{sign} of what is no integer")
    kind = _width(a, b)
    if kind is None:
        raise DialectError(f"{sign} of a negative number and a UInt64")
    run = {"-band": python.and_, "-bor": python.or_, "-bxor": python.xor}[sign]
    return _fit(run(int(a), int(b)), kind)


def binary(sign: str, left: Any, right: Any) -> Any:
    """Any operator of two values but -and and -or, which do not always look at the second."""
    if sign in _COMPARISONS:
        if isinstance(left, list | bytes):
            compare = _COMPARISONS[sign]
            return [each for each in _items(left) if compare(each, right)]
        if isinstance(right, list) and sign in ("-eq", "-ne") and not isinstance(left, str):
            raise DialectError(f"{sign} with an array on the right")
        return _COMPARISONS[sign](left, right)
    left = None if left is NOTHING else left
    right = None if right is NOTHING else right
    match sign:
        case "+":
            return add(left, right)
        case "-":
            return subtract(left, right)
        case "*":
            return multiply(left, right)
        case "/" | "%":
            return arithmetic(sign, left, right)
        case "-contains" | "-notcontains":
            return _contains(left, right) == (sign == "-contains")
        case "-in" | "-notin":
            return _contains(right, left) == (sign == "-in")
        case "-join":
            return to_text(right).join(to_text(each) for each in _items(left))
        case "-is" | "-isnot":
            if not isinstance(right, TypeName):
                raise DialectError(f"{sign} without a type")
            return is_of(left, right.name) == (sign == "-is")
        case "-band" | "-bor" | "-bxor":
            return _bits(sign, left, right)
    raise DialectError(f"the operator {sign}")


def unary(sign: str, value: Any) -> Any:
    """Any operator of one value."""
    match sign:
        case "-not" | "!":
            return not to_bool(value)
        case "-":
            return subtract(0, None if value is NOTHING else value)
        case ",":
            return [None if value is NOTHING else value]
        case "-join":
            return "".join(to_text(each) for each in _items(value))
        case "-bnot":
            whole = to_number(value)
            if type(whole) is not int:
                raise DialectError("-bnot of what is no Int32")
            return ~whole
    raise DialectError(f"the operator {sign}")
