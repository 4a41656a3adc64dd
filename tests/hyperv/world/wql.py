"""WQL as far as scripts use it: SELECT … FROM class [WHERE condition]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hyperv.world.schema import CimClass

Condition = Callable[[Mapping[str, Any]], bool]

_OPERATORS = ("<>", "!=", "<=", ">=", "=", "<", ">")


class QueryError(Exception):
    """What WMI calls an invalid query."""


@dataclass(frozen=True)
class Query:
    """A parsed SELECT; `properties` None means `*`."""

    class_name: str
    properties: list[str] | None
    where: str


def parse_query(text: str) -> Query:
    """The parts of a SELECT."""
    words = text.split()
    lowered = [word.lower() for word in words]
    if not words or lowered[0] != "select" or "from" not in lowered:
        raise QueryError(text)
    at = lowered.index("from")
    if at + 1 >= len(words) or at < 2:
        raise QueryError(text)
    names = [name for name in "".join(words[1:at]).split(",") if name]
    rest = text.split(words[at + 1], 1)[1].strip()
    if rest and not rest.lower().startswith("where "):
        raise QueryError(text)
    return Query(words[at + 1], None if names == ["*"] else names, rest[6:].strip())


def condition(text: str, kind: CimClass) -> Condition:
    """The condition of a WHERE, or of -Filter; a property that the class has not is an error."""
    if not text:
        return lambda values: True
    parser = _Parser(_tokens(text), kind, text)
    result = parser.either()
    if parser.rest:
        raise QueryError(text)
    return result


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str


def _tokens(text: str) -> list[_Token]:
    result = []
    index = 0
    while index < len(text):
        char = text[index]
        if char.isspace():
            index += 1
        elif char in "'\"":
            taken, index = _quoted(text, index)
            result.append(_Token("string", taken))
        elif char in "()":
            result.append(_Token(char, char))
            index += 1
        elif operator := next((o for o in _OPERATORS if text.startswith(o, index)), ""):
            result.append(_Token("operator", operator))
            index += len(operator)
        else:
            stop = index
            while stop < len(text) and (text[stop].isalnum() or text[stop] in "_.-"):
                stop += 1
            if stop == index:
                raise QueryError(text)
            result.append(_Token("word", text[index:stop]))
            index = stop
    return result


def _quoted(text: str, start: int) -> tuple[str, int]:
    """A string literal: a backslash takes the next character as it is, so that each one of a path
    is written twice."""
    taken = []
    index = start + 1
    while index < len(text):
        if text[index] == "\\" and index + 1 < len(text):
            taken.append(text[index + 1])
            index += 2
        elif text[index] == text[start]:
            return "".join(taken), index + 1
        else:
            taken.append(text[index])
            index += 1
    raise QueryError(text)


class _Parser:
    def __init__(self, tokens: list[_Token], kind: CimClass, text: str) -> None:
        self.rest = tokens
        self._kind = kind
        self._text = text

    def _is_word(self, word: str) -> bool:
        return bool(self.rest and self.rest[0].kind == "word" and self.rest[0].text.lower() == word)

    def _next(self, kind: str) -> str:
        if not self.rest or self.rest[0].kind != kind:
            raise QueryError(self._text)
        return self.rest.pop(0).text

    def either(self) -> Condition:
        parts = [self._both()]
        while self._is_word("or"):
            self.rest.pop(0)
            parts.append(self._both())
        return lambda values: any(part(values) for part in parts)

    def _both(self) -> Condition:
        parts = [self._one()]
        while self._is_word("and"):
            self.rest.pop(0)
            parts.append(self._one())
        return lambda values: all(part(values) for part in parts)

    def _one(self) -> Condition:
        if self._is_word("not"):
            self.rest.pop(0)
            inner = self._one()
            return lambda values: not inner(values)
        if self.rest and self.rest[0].kind == "(":
            self.rest.pop(0)
            inner = self.either()
            self._next(")")
            return inner
        name = self._kind.property_named(self._next("word"))
        if name is None:
            raise QueryError(self._text)
        type_name = self._kind.properties[name]
        if self._is_word("like"):
            self.rest.pop(0)
            pattern = self._next("string").lower()
            return lambda values: _like(str(values.get(name) or "").lower(), pattern)
        if self._is_word("is"):
            return self._null(name)
        operator = self._next("operator")
        if not self.rest or self.rest[0].kind not in ("string", "word"):
            raise QueryError(self._text)
        wanted = self._literal(type_name, self.rest.pop(0))
        return lambda values: _compared(values.get(name), operator, wanted)

    def _null(self, name: str) -> Condition:
        self.rest.pop(0)
        is_not = self._is_word("not")
        if is_not:
            self.rest.pop(0)
        if not self._is_word("null"):
            raise QueryError(self._text)
        self.rest.pop(0)
        return lambda values: (values.get(name) is None) is not is_not

    def _literal(self, type_name: str, token: _Token) -> Any:
        """What the property is compared with; arrays cannot be."""
        if type_name == "string":
            if token.kind != "string":
                raise QueryError(self._text)
            return token.text.lower()
        if type_name == "boolean" and token.text.lower() in ("true", "false"):
            return token.text.lower() == "true"
        if type_name.endswith(("[]", "REF")):
            raise QueryError(self._text)
        try:
            return int(token.text)
        except ValueError:
            raise QueryError(self._text) from None


def _compared(value: Any, operator: str, wanted: Any) -> bool:
    if value is None:
        return False
    if isinstance(value, str):
        value = value.lower()
    return {
        "=": value == wanted,
        "<>": value != wanted,
        "!=": value != wanted,
        "<": value < wanted,
        ">": value > wanted,
        "<=": value <= wanted,
        ">=": value >= wanted,
    }[operator]


def _like(text: str, pattern: str) -> bool:
    """`%` any text, `_` any character."""
    if not pattern:
        return not text
    if pattern[0] == "%":
        return any(_like(text[at:], pattern[1:]) for at in range(len(text) + 1))
    return bool(text) and pattern[0] in (text[0], "_") and _like(text[1:], pattern[1:])
