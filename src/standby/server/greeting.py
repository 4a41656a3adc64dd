"""The first words on a new control link to a service mover, before anything else travels on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from standby.errors import ProtocolError, error_from_wire
from standby.wire.link import Link
from standby.wire.messages import Call, Failed, Reply

GREETING_S = 15.0
"""The longest silence of a mover that is greeted."""

Greet = Callable[[Callable[..., Any], Link], None]
"""Called as greet(ask, link) on each new link; `ask(verb, **arguments)` waits for the answer."""


def greeted(
    link: Link,
    name: str,
    greet: Greet,
    crews: Callable[[], tuple[list[str], list[str]]],
    silence_s: float,
) -> list[str]:
    """Have mover `name` greeted and told which of `crews`, (at work, ended), to keep and to end;
    those that it ended. From then on the link may be silent for `silence_s`. What fails closes
    it."""
    number = 0

    def ask(verb: str, /, **arguments: Any) -> Any:
        nonlocal number
        number += 1
        link.send(Call(number, verb, arguments))
        return _answer(link, name, number, verb)

    limits = link.limits
    try:
        link.limits = replace(limits, idle_s=GREETING_S)
        greet(ask, link)
        kept, ended = crews()
        for crew in ended:
            ask("end_session", session=crew)
        for crew in kept:
            ask("keep_session", session=crew)
        link.limits = replace(limits, idle_s=silence_s)
    except BaseException:
        link.close()
        raise
    return ended


def _answer(link: Link, name: str, number: int, verb: str) -> Any:
    """Of a link that nobody else uses yet."""
    while True:
        message, _ = link.receive()
        if not isinstance(message, Reply | Failed):
            raise ProtocolError(name, f"answered {verb} with {type(message).__name__}")
        if isinstance(message, Failed) and message.id in (0, number):
            raise error_from_wire(message.error)
        if isinstance(message, Reply) and message.id == number:
            return message.result
