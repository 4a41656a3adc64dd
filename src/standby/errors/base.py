"""The root of the error tree, and what a caller may hope for when it tries again."""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from typing import Any, ClassVar


class Retry(enum.Enum):
    """What a caller may hope for when it tries the same again."""

    NEVER = "never"
    LATER = "later"
    RECONNECT = "reconnect"


@dataclass(eq=False)
class StandbyError(Exception):
    """Root of the tree; raised only through its children."""

    retry: ClassVar[Retry] = Retry.NEVER
    exit_code: ClassVar[int] = 1

    def message(self) -> str:
        """The sentence a user reads."""
        return ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self))

    def __str__(self) -> str:
        return self.message()

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), tuple(getattr(self, f.name) for f in fields(self)))
