"""Reading TOML files that people write: every key known, every type checked, errors with a hint.

`standby.toml`, `standby-target.toml` and `vm.toml` go through here. A `Table` is taken apart key
by key; `done` refuses what nobody asked for and names the nearest known key.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from standby.errors import ConfigurationError
from standby.units import parse_size

_DURATION = re.compile(
    r"(?:(\d+)d(?:ays?)?)?(?:(\d+)h(?:ours?)?)?(?:(\d+)m(?:in(?:utes?)?)?)?"
    r"(?:(\d+)s(?:ec(?:onds?)?)?)?"
)
_UNITS_S = (86400, 3600, 60, 1)


def parse_duration(text: str) -> int:
    """Seconds meant by '12h', '30m', '30 min', '90s', '1d12h', '7 days'; ValueError naming the text
    if none."""
    match = _DURATION.fullmatch(text.strip().lower().replace(" ", ""))
    if match is None or not any(match.groups()):
        raise ValueError(f"{text!r} is not a duration; write for example 30m, 12h or 7d")
    return sum(int(count or 0) * unit for count, unit in zip(match.groups(), _UNITS_S, strict=True))


def format_duration(duration_s: int) -> str:
    """The shortest text that `parse_duration` reads as `duration_s`: '12h', '1d12h', '0s'."""
    text = ""
    rest = duration_s
    for letter, unit in zip("dhms", _UNITS_S, strict=True):
        count, rest = divmod(rest, unit)
        text += f"{count}{letter}" if count else ""
    return text or "0s"


def read_toml(path: Path, hint_missing: str = "") -> Table:
    """The whole file as a table; ConfigurationError when it is missing, unreadable or not TOML."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, for ever
            raise ConfigurationError(str(path), "is not a file", hint_missing)
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigurationError(str(path), "no such file", hint_missing) from None
    except OSError as exc:
        raise ConfigurationError(str(path), f"cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigurationError(str(path), f"is not UTF-8 text (byte {exc.start})") from exc
    try:
        return Table(str(path), "", tomllib.loads(text))
    except tomllib.TOMLDecodeError as exc:
        raise ConfigurationError(str(path), f"is not TOML: {exc}") from exc


class Table:
    """One table of a file, with its name for messages: 'standby.toml: [jobs.nightly] suffix'."""

    def __init__(self, file: str, name: str, values: Mapping[str, Any]) -> None:
        self.file = file
        self.name = name
        self._values = values
        self._known: list[str] = []

    def where(self, key: str = "") -> str:
        """File, table and key, for a message."""
        place = f"{self.file}:" + (f" [{self.name}]" if self.name else "")
        return (f"{place} {key}" if key else place).rstrip(":")

    def error(self, key: str, problem: str, hint: str = "") -> ConfigurationError:
        """An error about `key`, to be raised."""
        return ConfigurationError(self.where(key), problem, hint)

    def has(self, key: str) -> bool:
        """Whether the file has the key; it counts as known from now on."""
        if key not in self._known:
            self._known.append(key)
        return key in self._values

    def keys(self) -> list[str]:
        """Every key, in the file's order; all count as known. For tables of names."""
        self._known.extend(self._values)
        return list(self._values)

    def table(self, key: str) -> Table:
        """A sub-table; empty when the file has none."""
        values = self._values[key] if self.has(key) else {}
        if not isinstance(values, dict):
            raise self._mistyped(key, values, "a table")
        return Table(self.file, f"{self.name}.{key}" if self.name else key, values)

    def tables(self, key: str) -> list[Table]:
        """The tables written as [[key]], in order; none when the file has none."""
        values = self._values[key] if self.has(key) else []
        if not isinstance(values, list) or not all(isinstance(item, dict) for item in values):
            raise self._mistyped(key, values, f"tables, each headed [[{key}]]")
        name = f"{self.name}.{key}" if self.name else key
        return [Table(self.file, f"{name} {number}", item) for number, item in enumerate(values, 1)]

    def text(self, key: str, default: str | None = None, *, choices: tuple[str, ...] = ()) -> str:
        """A string; one of `choices` where given. Required when there is no default."""
        value = self._value(key, default, "a text in quotes")
        if not isinstance(value, str):
            raise self._mistyped(key, value, "a text in quotes")
        if choices and value not in choices:
            raise self.error(
                key,
                f"{value!r} is not known",
                nearest(value, choices) or f"one of {_list(choices)}",
            )
        return value

    def texts(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of strings."""
        value = self._value(key, default, "a list of texts")
        if isinstance(value, tuple):
            return value
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._mistyped(key, value, "a list of texts in quotes")
        return tuple(value)

    def text_or_texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; one string is a list of one."""
        value = self._value(key, None, "a text in quotes, or a list of them")
        return (value,) if isinstance(value, str) else self.texts(key)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """true or false."""
        value = self._value(key, default, "true or false")
        if not isinstance(value, bool):
            raise self._mistyped(key, value, "true or false")
        return value

    def integer(
        self, key: str, default: int | None = None, *, minimum: int = 0, maximum: int = 1 << 31
    ) -> int:
        """A whole number from `minimum` to `maximum`."""
        value = self._value(key, default, "a whole number")
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._mistyped(key, value, "a whole number")
        if not minimum <= value <= maximum:
            raise self.error(key, f"{value} is out of range", f"from {minimum} to {maximum}")
        return value

    def size(self, key: str, default: int | None = None, *, minimum: int = 0) -> int:
        """Bytes: a whole number, or a text such as "64 GiB"."""
        value = self._value(key, default, "a size")
        if isinstance(value, str):
            try:
                value = parse_size(value)
            except ValueError as exc:
                raise self.error(key, str(exc)) from None
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._mistyped(key, value, 'a size such as "64 GiB"')
        if value < minimum:
            raise self.error(key, f"{value} bytes are too few", f"at least {minimum}")
        return value

    def duration_s(self, key: str, default: int | None = None, *, minimum: int = 0) -> int:
        """Seconds, from a text such as "12h"; a bare number has no unit and is refused."""
        value = self._value(key, default, "a duration")
        if key not in self._values:
            return int(value)
        if not isinstance(value, str):
            raise self._mistyped(key, value, 'a duration such as "12h"')
        try:
            seconds = parse_duration(value)
        except ValueError as exc:
            raise self.error(key, str(exc)) from None
        if seconds < minimum:
            raise self.error(key, f"{value!r} is too short", f"at least {format_duration(minimum)}")
        return seconds

    def path(self, key: str, default: str | None = None) -> Path:
        """A path; a relative one counts from the file's folder, '~' is the user's home."""
        text = self.text(key, default)
        if not text:
            raise self.error(key, "is empty", "write the path of a folder or file")
        folder = Path(self.file).absolute().parent
        return Path(os.path.normpath(folder / Path(text).expanduser()))

    def secret(self, key: str, default: str | None = None) -> str:
        """A reference to a secret, env:NAME or file:PATH; the secret itself is refused."""
        text = self.text(key, default)
        if text and not re.fullmatch(r"env:[A-Za-z_][A-Za-z0-9_]*|file:.+", text):
            raise self.error(
                key,
                "a secret must not stand in this file",
                f'write a reference: {key} = "env:NAME" or "file:PATH"',
            )
        return text

    def done(self) -> None:
        """Refuse the first key that nobody asked for."""
        for key in self._values:
            if key not in self._known:
                hint = nearest(key, self._known) or f"known here: {_list(self._known)}"
                raise self.error(key, "unknown key", hint)

    def _value(self, key: str, default: Any, wanted: str) -> Any:
        if self.has(key):
            return self._values[key]
        if default is None:
            raise self.missing(key, f"it must be {wanted}")
        return default

    def missing(self, key: str, hint: str) -> ConfigurationError:
        """The error of a key that must be there: of the one that was probably meant to be it."""
        typo = self._typo_of(key)
        if typo:
            return self.error(typo, "unknown key", f"did you mean {key}?")
        return self.error(key, "is missing", hint)

    def _typo_of(self, key: str) -> str:
        """A key that was probably meant to be `key`, '' for none. Longer names that `key` is a word
        of (max_machines) are keys of their own, which may only not have been asked for yet."""
        others = [
            name for name in self._values if name not in self._known and key not in name.split("_")
        ]
        return next(iter(difflib.get_close_matches(key, others, 1, 0.7)), "")

    def _mistyped(self, key: str, value: Any, wanted: str) -> ConfigurationError:
        return self.error(key, f"is {_kind(value)}", f"it must be {wanted}")


def nearest(word: str, known: tuple[str, ...] | list[str]) -> str:
    """'did you mean …?' with the nearest of `known`; '' when none is near."""
    found = difflib.get_close_matches(word, known, 1, 0.6)
    return f"did you mean {found[0]}?" if found else ""


def _list(words: tuple[str, ...] | list[str]) -> str:
    return ", ".join(words) if words else "nothing"


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", str: "a text", list: "a list", dict: "a table", int: "a number"}
    if type(value) in (bool, int, float, str):
        return f"{kinds.get(type(value), 'a number')} ({value!r})"
    return kinds.get(type(value), f"a {type(value).__name__}")
