"""Exit code 15: links between machines, and the certificates and tickets they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from standby.errors.base import Retry, StandbyError


@dataclass(eq=False)
class LinkError(StandbyError):
    """A link broke, or its peer said something that is not the protocol."""

    retry: ClassVar[Retry] = Retry.RECONNECT
    exit_code: ClassVar[int] = 15
    peer: str
    problem: str

    def message(self) -> str:
        return f"link to {self.peer}: {self.problem}"


@dataclass(eq=False)
class ProtocolError(LinkError):
    """A frame or message is malformed: a bug, damage or an attack, never a passing fault."""

    retry: ClassVar[Retry] = Retry.NEVER


@dataclass(eq=False)
class VersionMismatch(ProtocolError):
    """The peer speaks another version of the protocol."""

    theirs: int = 0
    ours: int = 0

    def message(self) -> str:
        return (
            f"link to {self.peer}: it speaks protocol version {self.theirs}, this side version "
            f"{self.ours}; bring both machines to the same release"
        )


@dataclass(eq=False)
class LinkTimeout(LinkError):
    """A deadline of a link passed: a handshake, a first frame, the rest of a frame, silence."""


@dataclass(eq=False)
class CertificateRefused(LinkError):
    """This side does not accept the certificate that the peer showed."""

    retry: ClassVar[Retry] = Retry.NEVER
    hint: str = ""

    def message(self) -> str:
        tail = f". {self.hint}" if self.hint else ""
        return f"link to {self.peer}: certificate refused: {self.problem}{tail}"


@dataclass(eq=False)
class RefusedByPeer(LinkError):
    """The peer closed the connection and said why; `reason` is the class of its error."""

    retry: ClassVar[Retry] = Retry.NEVER
    reason: str = ""

    def message(self) -> str:
        return f"link to {self.peer}: it refused the connection: {self.problem}"


@dataclass(eq=False)
class PeerBusy(LinkError):
    """The peer has no room for another connection now."""

    retry: ClassVar[Retry] = Retry.LATER


@dataclass(eq=False)
class CertificateError(StandbyError):
    """An identity's or the authority's own files are missing, damaged or do not fit together."""

    exit_code: ClassVar[int] = 15
    path: str
    problem: str
    hint: str = ""

    def message(self) -> str:
        return f"{self.path}: {self.problem}" + (f". {self.hint}" if self.hint else "")


@dataclass(eq=False)
class EnrolmentRefused(StandbyError):
    """A token, or what came with it, buys no certificate."""

    exit_code: ClassVar[int] = 15
    problem: str
    hint: str = ""

    def message(self) -> str:
        return f"enrolment refused: {self.problem}" + (f". {self.hint}" if self.hint else "")


@dataclass(eq=False)
class TicketRefused(StandbyError):
    """A data connection and the task it is for do not have the same valid ticket (RULES 19)."""

    exit_code: ClassVar[int] = 15
    peer: str
    task: str
    reason: str

    def message(self) -> str:
        return f"link to {self.peer}: its ticket for task {self.task!r} is refused: {self.reason}"
