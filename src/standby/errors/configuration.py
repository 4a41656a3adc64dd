"""Exit code 10: what the user wrote, and names that do not exist."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import ClassVar

from standby.errors.base import StandbyError


@dataclass(eq=False)
class ConfigurationError(StandbyError):
    """standby.toml, a vm.toml or an argument says something that cannot be."""

    exit_code: ClassVar[int] = 10
    where: str
    problem: str
    hint: str = ""

    def message(self) -> str:
        return f"{self.where}: {self.problem}" + (f". {self.hint}" if self.hint else "")


@dataclass(eq=False)
class UnknownName(StandbyError):
    """A job, host, replica, point or machine of that name does not exist."""

    exit_code: ClassVar[int] = 10
    kind: str
    name: str
    known: tuple[str, ...] = ()

    def message(self) -> str:
        known = ", ".join(self.known) if self.known else "none"
        close = difflib.get_close_matches(self.name, self.known, n=3, cutoff=0.6)
        meant = f". Did you mean {' or '.join(close)}?" if close else ""
        return f"no {self.kind} named {self.name!r}; known: {known}{meant}"
