"""Exit code 16: jobs, their sessions and disk tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from standby.errors.base import Retry, StandbyError


@dataclass(eq=False)
class JobError(StandbyError):
    """A job cannot run as asked."""

    exit_code: ClassVar[int] = 16
    job: str
    problem: str
    hint: str = ""

    def message(self) -> str:
        return f"job {self.job}: {self.problem}" + (f". {self.hint}" if self.hint else "")


@dataclass(eq=False)
class JobBusy(JobError):
    """A session of the job is running already."""

    retry: ClassVar[Retry] = Retry.LATER


@dataclass(eq=False)
class IllegalRequest(StandbyError):
    """A session is in a state in which it cannot be asked for that; `legal` is what it can be
    asked for."""

    exit_code: ClassVar[int] = 16
    session: str
    state: str
    request: str
    legal: tuple[str, ...]

    def message(self) -> str:
        return (
            f"session {self.session}: cannot be asked to {self.request} while it is {self.state}; "
            f"possible now: {', '.join(self.legal) or 'nothing'}"
        )


@dataclass(eq=False)
class IllegalStep(StandbyError):
    """A session or task is in a state from which the step is not legal."""

    exit_code: ClassVar[int] = 16
    kind: str
    name: str
    state: str
    wanted: str
    legal: tuple[str, ...]

    def message(self) -> str:
        return (
            f"{self.kind} {self.name}: cannot become {self.wanted} while it is {self.state}; "
            f"possible now: {', '.join(self.legal) or 'nothing'}"
        )


@dataclass(eq=False)
class NoProxy(StandbyError):
    """No proxy can take a disk, and there is none to wait for."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 16
    machine: str
    place: str
    side: str
    reasons: tuple[str, ...] = ()

    def message(self) -> str:
        why = "; ".join(self.reasons) or "none is configured that could"
        disk = f"disk {self.place} of " if self.place else ""
        whose = f"{disk}VM {self.machine}: " if self.machine else ""
        what = ("it" if self.place else "its disks") if self.machine else "disks of the job"
        return (
            f"{whose}no {self.side} proxy can take {what} ({why}). "
            f"Start one of them, or add one under [proxies] that sees the {self.side} host's "
            "storage"
        )


@dataclass(eq=False)
class ResourcesBusy(StandbyError):
    """A disk task did not get its slots in time."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 16
    job: str
    machine: str
    place: str
    timeout_s: float

    def message(self) -> str:
        return (
            f"job {self.job}: disk {self.place} of VM {self.machine} got no free task slot within "
            f"{self.timeout_s:g} s; raise max_tasks of the server, host, repository or proxies, or "
            "start it when less runs"
        )


@dataclass(eq=False)
class WorkStopped(StandbyError):
    """Somebody asked for an end of what reads for long and changes no replica."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 130
    what: str

    def message(self) -> str:
        return f"{self.what} was stopped; what it did stays"


@dataclass(eq=False)
class SessionStopped(StandbyError):
    """Somebody asked the session to end: Ctrl-C, or `standby job stop`."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 130
    job: str
    machine: str

    def message(self) -> str:
        who = f"VM {self.machine}: " if self.machine else ""
        return (
            f"{who}the session of job {self.job} was stopped; no restore point was "
            "made, what was transferred is kept and the next session goes on from it"
        )
