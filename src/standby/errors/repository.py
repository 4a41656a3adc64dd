"""Exit code 14: the backup repository."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from standby.errors.base import Retry, StandbyError


@dataclass(eq=False)
class RepositoryError(StandbyError):
    """The metadata store is damaged or cannot be used; it can always be rebuilt."""

    exit_code: ClassVar[int] = 14
    path: str
    problem: str

    def message(self) -> str:
        return f"repository {self.path}: {self.problem}"


@dataclass(eq=False)
class RepositoryBusy(RepositoryError):
    """Another process has been writing to the repository for too long."""

    retry: ClassVar[Retry] = Retry.LATER
