"""Exit code 12: hosts, their VMs and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from standby.errors.base import Retry, StandbyError


@dataclass(eq=False)
class HostError(StandbyError):
    """A source or target host cannot do what was asked."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 12
    host: str
    problem: str
    hint: str = ""

    def message(self) -> str:
        return f"host {self.host}: {self.problem}" + (f". {self.hint}" if self.hint else "")


@dataclass(eq=False)
class MachineRunning(StandbyError):
    """A VM that must be off is running, or its disks are held open."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 12
    host: str
    machine: str
    reason: str
    hint: str = ""

    def message(self) -> str:
        return (
            f"VM {self.machine} on host {self.host} is running ({self.reason}); "
            f"{self.hint or 'shut it down, then try again'}"
        )


@dataclass(eq=False)
class SourceChanged(StandbyError):
    """A source disk changed while it was being read under a checkpoint."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 12
    machine: str
    path: str
    what: str

    def message(self) -> str:
        return (
            f"VM {self.machine}: {self.path} changed under the checkpoint ({self.what}); no "
            "restore point was made. Keep the VM off during the session, then start the job again"
        )


@dataclass(eq=False)
class CheckpointLimit(StandbyError):
    """A checkpoint reached its limit of age or growth and was released."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 12
    machine: str
    limit: str

    def message(self) -> str:
        return (
            f"VM {self.machine}: the checkpoint reached its limit ({self.limit}) and was released; "
            "the transfer is kept and the next session goes on from it"
        )
