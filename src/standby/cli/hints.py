"""Commands that messages name, completed so that they can be typed as they stand: with the
`--config`, `--server` or `--target` that this command was given."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from contextvars import ContextVar

_TAKES: dict[str, tuple[str, ...]] = {
    "replica": ("--target", "--server", "--config"),
    "job": ("--server", "--config"),
    "infrastructure": ("--server", "--config"),
    "check": ("--config",),
    "host": ("--config",),
    "token": ("--config",),
    "support": ("--config",),
}
"""What says where a command works, by its first word; the first that is given is all it needs."""

_GIVEN: ContextVar[dict[str, str]] = ContextVar("given", default={})  # noqa: B039 (never changed)
_COMMAND = re.compile(r"`standby (?P<word>[a-z]+)(?P<rest>[^`]*)`")


def remember(arguments: Sequence[str]) -> None:
    """What this command was given, by its command line."""
    given: dict[str, str] = {}
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name not in ("--config", "--server", "--target"):
            continue
        if equals:
            given[name] = value
        elif place + 1 < len(arguments):
            given[name] = arguments[place + 1]
    _GIVEN.set(given)


def completed(command: str) -> str:
    """The command, a text that begins with "standby", with the option it needs."""
    words = command.split()
    given = _GIVEN.get()
    if len(words) < 2 or any(word.startswith(tuple(_TAKES["replica"])) for word in words):
        return command
    for option in _TAKES.get(words[1], ()):
        if option in given:
            return f"{command} {option} {shlex.quote(given[option])}"
    return command


def with_options(text: str) -> str:
    """A message whose commands, in backquotes, are completed."""
    return _COMMAND.sub(lambda found: f"`{completed(found[0][1:-1])}`", text)
