"""The self-test's language part: small scripts on the host's own PowerShell, and what they print.

language.toml holds, for everything that our scripts use of the language, a script and the lines
that Windows PowerShell 5.1 is documented to print. The tests' interpreter prints these lines; a
host that prints others shows where it, and then our tests, are wrong.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from standby.clock import new_token
from standby.host.hyperv.door import Door

AT_ONCE = 80
"""Scripts in one process; each in a scope of its own."""


@dataclass(frozen=True, slots=True)
class Snippet:
    """A script, the lines it prints, and the page that says so."""

    script: str
    lines: tuple[str, ...]
    documented: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A snippet that printed other lines on a host."""

    snippet: Snippet
    printed: tuple[str, ...]


@cache
def snippets() -> tuple[Snippet, ...]:
    """All of them."""
    text = files(__package__).joinpath("language.toml").read_text(encoding="utf-8")
    return tuple(
        Snippet(entry["script"], tuple(entry["lines"]), entry.get("documented", ""))
        for entry in tomllib.loads(text)["snippet"]
    )


def differences(door: Door, asked: Sequence[Snippet] | None = None) -> Iterator[Difference]:
    """Run the snippets on the host, all where `asked` is None. They share processes, each in a
    scope of its own; one that prints something else there, or ends its process, is asked again in
    a process of its own, which alone counts."""
    wanted = list(snippets() if asked is None else asked)
    while wanted:
        some = wanted[:AT_ONCE]
        printed = _together(door, some)
        for snippet, lines in zip(some, printed, strict=False):
            if lines != snippet.lines:
                yield from _alone(door, snippet)
        if len(printed) < len(some):
            yield from _alone(door, some[len(printed)])
        wanted = wanted[min(len(printed) + 1, len(some)) :]


def _alone(door: Door, snippet: Snippet) -> Iterator[Difference]:
    lines = _lines(door.printed(snippet.script))
    if lines != snippet.lines:
        yield Difference(snippet, lines)


def _together(door: Door, some: Sequence[Snippet]) -> list[tuple[str, ...]]:
    """What each printed, up to the first that ended the process."""
    mark = new_token()
    text = door.printed(
        "".join(
            f"& {{\n{snippet.script}\n}}\n'<{mark} {number}>'\n"
            for number, snippet in enumerate(some)
        )
    )
    found: list[tuple[str, ...]] = []
    for number in range(len(some)):
        before, sentinel, text = text.partition(f"<{mark} {number}>\r\n")
        if not sentinel:
            break
        found.append(_lines(before))
    return found


def _lines(text: str) -> tuple[str, ...]:
    return tuple(text.removesuffix("\r\n").split("\r\n")) if text else ()
