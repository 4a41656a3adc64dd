"""Exit code 16: the backup server's database, and its lease."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from standby.errors.base import Retry, StandbyError


@dataclass(eq=False)
class StateDatabaseError(StandbyError):
    """The backup server's database cannot be used."""

    exit_code: ClassVar[int] = 16
    database: str
    problem: str
    hint: str = ""

    def message(self) -> str:
        return f"state database {self.database}: {self.problem}" + (
            f". {self.hint}" if self.hint else ""
        )


@dataclass(eq=False)
class StateDatabaseUnreachable(StateDatabaseError):
    """The state database does not answer now: it restarts, or the network is down."""

    retry: ClassVar[Retry] = Retry.LATER


@dataclass(eq=False)
class ServerFenced(StandbyError):
    """Another backup server holds the lease: this one may change nothing any more."""

    exit_code: ClassVar[int] = 16
    server: str
    generation: int
    current: int
    holder: str

    def message(self) -> str:
        return (
            f"backup server {self.server} of generation {self.generation} is fenced: the current "
            f"generation is {self.current}, held by {self.holder or 'nobody'}. It goes on as a "
            "standby server when it is started again"
        )


@dataclass(eq=False)
class OperationLost(StandbyError):
    """How an operation of the API ended is not known any more."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 16
    kind: str
    name: str
    problem: str

    def message(self) -> str:
        return f"{self.kind} of {self.name}: {self.problem}. Ask for it again"


@dataclass(eq=False)
class OperationCancelled(StandbyError):
    """An operation of the API was ended by who asked for that."""

    exit_code: ClassVar[int] = 16
    kind: str
    name: str

    def message(self) -> str:
        return f"{self.kind} of {self.name} was cancelled; nothing was changed"


@dataclass(eq=False)
class IllegalOperation(StandbyError):
    """An operation of the API cannot be cancelled, or not any more."""

    exit_code: ClassVar[int] = 16
    operation: str
    kind: str

    def message(self) -> str:
        return (
            f"operation {self.operation} ({self.kind}) cannot be cancelled now: it ends by itself"
        )
