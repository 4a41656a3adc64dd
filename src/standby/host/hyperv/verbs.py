"""A verb: one script on a Hyper-V host, what it answers, and whether it may be asked twice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Verb(Generic[Value]):
    """One script.

    `value` is what each of its steps answers, as msgspec converts it: a Struct, or a plain type.
    `is_repeatable` says that running it a second time, after its first answer was lost, does no
    harm and answers the same; the door repeats nothing else by itself. `deadline_s` is for the
    whole call, from the wait for a free shell to the answer. `text` is the script, '' for the file
    scripts/<name>.ps1 of this package.
    """

    name: str
    value: type[Value]
    is_repeatable: bool = False
    deadline_s: float = 120.0
    text: str = ""

    def script(self) -> str:
        """The script's text."""
        return self.text or script_text(self.name)


@cache
def script_text(name: str) -> str:
    """The text of scripts/<name>.ps1."""
    return files(__package__).joinpath("scripts", f"{name}.ps1").read_text(encoding="utf-8")
