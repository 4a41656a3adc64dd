"""Exit code 15: movers, and backup servers reached by their API; a fault in a mover is 1, a bug."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from standby.errors.base import Retry, StandbyError
from standby.errors.replicas import Fenced


@dataclass(eq=False)
class MoverFenced(Fenced):
    """A newer backup server of the installation drives the mover `replica` names (RULES 18)."""

    exit_code: ClassVar[int] = 15

    def message(self) -> str:
        return (
            f"mover {self.replica}: backup server of generation {self.generation} is fenced: "
            f"one of generation {self.current} has taken over. Where none has, for the state "
            f"database was lost: standby server run --least-generation {self.current + 1}"
        )


@dataclass(eq=False)
class MoverDied(StandbyError):
    """A mover process ended while it had work; `exit_status` says how. Of its classes: a mover
    that could not be asked, for whatever other reason."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 15
    mover: str
    exit_status: str

    def message(self) -> str:
        return f"mover {self.mover} died ({self.exit_status}); the next session resumes its work"


@dataclass(eq=False)
class MoverAway(MoverDied):
    """A mover service could not be asked; whether it is at work is not known, and its tasks may
    be."""

    def message(self) -> str:
        return (
            f"mover {self.mover} cannot be reached: {self.exit_status}; "
            "`standby infrastructure check` tries every part"
        )


@dataclass(eq=False)
class MoverLeft(MoverDied):
    """The session, or the server, that asked a mover has done with it; the mover may be well."""

    def message(self) -> str:
        return f"mover {self.mover} is not asked any more: {self.exit_status}"


@dataclass(eq=False)
class MoverFault(StandbyError):
    """A mover met an error of no class in this tree (a bug): its text, for the report."""

    exit_code: ClassVar[int] = 1
    mover: str
    text: str

    def message(self) -> str:
        return f"mover {self.mover}: {self.text}"


@dataclass(eq=False)
class RequestRefused(StandbyError):
    """A backup server's API refused the request itself; `status` is its HTTP status."""

    exit_code: ClassVar[int] = 15
    server: str
    status: int
    problem: str
    hint: str = ""

    def message(self) -> str:
        tail = f". {self.hint}" if self.hint else ""
        return f"backup server {self.server}: {self.problem} (HTTP {self.status}){tail}"
