"""The error tree. Every class carries typed fields, builds its message from them, and says
whether trying again can help and which exit code the command line ends with.

A message names what failed, on which object, with which values, and what to do next. An error
crosses a process border as `error_to_wire` / `error_from_wire` (class name and fields), so the
backup server sees the very error a mover raised.

Exit codes: 10 configuration and usage of names, 11 disk formats, 12 hosts, 13 replicas,
14 repository, 15 links, movers and certificates, 16 jobs and sessions.
"""

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


# --- 10: configuration -----------------------------------------------------------------------


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
        return f"no {self.kind} named {self.name!r}; known: {known}"


# --- 11: disk formats ------------------------------------------------------------------------


@dataclass(eq=False)
class DiskError(StandbyError):
    """Anything wrong with a virtual disk file."""

    exit_code: ClassVar[int] = 11


@dataclass(eq=False)
class DiskCorrupt(DiskError):
    """A check of the format failed: the file is damaged, hostile, or not of that format."""

    path: str
    check: str
    offset: int
    value: str
    hint: str = ""

    def message(self) -> str:
        tail = f". {self.hint}" if self.hint else ""
        return f"{self.path}: {self.check} (at offset {self.offset:#x}: {self.value}){tail}"


@dataclass(eq=False)
class DiskUnsupported(DiskError):
    """The file is sound but asks for something this release does not do."""

    path: str
    feature: str
    hint: str = ""

    def message(self) -> str:
        return f"{self.path}: {self.feature} is not supported" + (
            f". {self.hint}" if self.hint else ""
        )


@dataclass(eq=False)
class ParentRefused(DiskError):
    """A differencing disk's parent is missing, is another one, or may not be opened."""

    path: str
    parent: str
    reason: str

    def message(self) -> str:
        return f"{self.path}: parent {self.parent}: {self.reason}"


@dataclass(eq=False)
class DiskBusy(DiskError):
    """Another process has the file open in a way that excludes us."""

    retry: ClassVar[Retry] = Retry.LATER
    path: str
    reason: str

    def message(self) -> str:
        return f"{self.path}: in use: {self.reason}"


@dataclass(eq=False)
class DiskIO(DiskError):
    """The operating system refused or cut short a read or write."""

    retry: ClassVar[Retry] = Retry.LATER
    path: str
    operation: str
    offset: int
    length: int
    reason: str

    def message(self) -> str:
        if not self.length:
            return f"{self.path}: {self.operation} failed: {self.reason}"
        return (
            f"{self.path}: {self.operation} of {self.length} bytes at offset {self.offset:#x} "
            f"failed: {self.reason}"
        )


@dataclass(eq=False)
class DiskRange(DiskError):
    """A read or write outside the disk, or not on a sector border."""

    path: str
    offset: int
    length: int
    size: int

    def message(self) -> str:
        return (
            f"{self.path}: range {self.offset:#x}+{self.length} lies outside the disk of "
            f"{self.size} bytes or is not whole sectors"
        )


@dataclass(eq=False)
class DiskFull(DiskError):
    """The file system has no room for what has to be written."""

    retry: ClassVar[Retry] = Retry.LATER
    path: str
    needed: int
    available: int

    def message(self) -> str:
        return (
            f"{self.path}: no space left: {self.needed} bytes needed, {self.available} available. "
            "Free some space and repeat; what a restore point has received so far is kept"
        )


# --- 12: hosts -------------------------------------------------------------------------------


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


# --- 13: replicas ----------------------------------------------------------------------------


@dataclass(eq=False)
class ReplicaError(StandbyError):
    """Anything that concerns one replica."""

    exit_code: ClassVar[int] = 13
    replica: str


@dataclass(eq=False)
class ReplicaConflict(ReplicaError):
    """The replica's folder or disks belong to something else, or match ambiguously."""

    problem: str
    hint: str = ""

    def message(self) -> str:
        return f"replica {self.replica}: {self.problem}" + (f". {self.hint}" if self.hint else "")


@dataclass(eq=False)
class ReplicaMissing(ReplicaError):
    """The target holds less of the replica than is known to have been there."""

    path: str
    problem: str

    def message(self) -> str:
        return (
            f"replica {self.replica}: {self.path}: {self.problem}. Nothing was changed; bring the "
            "target's storage back, or start the job with --accept-loss to begin from what is there"
        )


@dataclass(eq=False)
class ReplicaBusy(ReplicaError):
    """Another process is the writer of the replica now."""

    retry: ClassVar[Retry] = Retry.LATER
    holder: str

    def message(self) -> str:
        return f"replica {self.replica}: another writer holds it ({self.holder}); try again later"


@dataclass(eq=False)
class Fenced(ReplicaError):
    """The writer's generation is no longer the current one: someone took over."""

    generation: int
    current: int

    def message(self) -> str:
        return (
            f"replica {self.replica}: writer of generation {self.generation} is fenced, the "
            f"current generation is {self.current} (a failover or another session took over)"
        )


@dataclass(eq=False)
class IllegalTransition(ReplicaError):
    """The replica's state forbids the action; `legal` are the commands that it allows."""

    state: str
    action: str
    legal: tuple[str, ...]

    def message(self) -> str:
        text = f"replica {self.replica}: cannot {self.action} while it is {self.state}; "
        if self.state == "permanent":
            return (
                f"{text}its VM is one of its own and keeps these files. Take the source VM out of "
                "the job (exclude_machines), or move the replica's folder away to begin anew"
            )
        return text + f"possible now: {', '.join(f'`{item}`' for item in self.legal) or 'nothing'}"


@dataclass(eq=False)
class ReplicaStarted(ReplicaError):
    """The replica VM was started, or its ready layer written, outside of a failover."""

    path: str
    evidence: str

    def message(self) -> str:
        return (
            f"replica {self.replica}: {self.path} was written outside of a failover "
            f"({self.evidence}). Those writes are nowhere else: keep them with "
            f"`standby replica failover {self.replica} --adopt`, or drop them with "
            f"`standby replica undo-failover {self.replica} --drop-writes`"
        )


@dataclass(eq=False)
class PointDamaged(ReplicaError):
    """A restore point's files are not the ones that were committed."""

    point: str
    path: str
    evidence: str

    def message(self) -> str:
        return (
            f"replica {self.replica}: restore point {self.point}: {self.path}: {self.evidence}. "
            f"See `standby replica verify {self.replica}`; other points may be intact"
        )


@dataclass(eq=False)
class NoSuchPoint(ReplicaError):
    """No restore point of that id, or none so old."""

    point: str
    known: tuple[str, ...] = ()

    def message(self) -> str:
        return (
            f"replica {self.replica}: no restore point {self.point}; there are: "
            f"{', '.join(self.known) or 'none'}"
        )


@dataclass(eq=False)
class VerifyFailed(ReplicaError):
    """What was written does not read back as what was sent, twice."""

    disk: str
    offset: int

    def message(self) -> str:
        return (
            f"replica {self.replica}: disk {self.disk}: the block at offset {self.offset:#x} read "
            "back wrong twice. Check the target's storage; no restore point was made"
        )


@dataclass(eq=False)
class TargetRefuses(ReplicaError):
    """The target's own local rules forbid it (RULES 17)."""

    action: str
    rule: str

    def message(self) -> str:
        return f"replica {self.replica}: the target refuses to {self.action}: {self.rule}"


# --- 14: repository --------------------------------------------------------------------------


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


# --- 15: links and movers --------------------------------------------------------------------


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


@dataclass(eq=False)
class PathRefused(DiskError):
    """A path leads, or may lead, out of the folders that a mover may open (RULES 20)."""

    path: str
    reason: str

    def message(self) -> str:
        return f"{self.path}: refused by the mover: {self.reason}"


@dataclass(eq=False)
class MoverFenced(Fenced):
    """A newer backup server of the installation drives the mover `replica` names (RULES 18)."""

    exit_code: ClassVar[int] = 15

    def message(self) -> str:
        return (
            f"mover {self.replica}: backup server of generation {self.generation} is fenced: "
            f"one of generation {self.current} has taken over"
        )


@dataclass(eq=False)
class MoverDied(StandbyError):
    """A mover process ended while it had work."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 15
    mover: str
    exit_status: str

    def message(self) -> str:
        return f"mover {self.mover} died ({self.exit_status}); the next session resumes its work"


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


# --- 16: jobs and sessions -------------------------------------------------------------------


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
        return (
            f"disk {self.place} of VM {self.machine}: no {self.side} proxy can take it ({why}). "
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
class SessionStopped(StandbyError):
    """Somebody asked the session to end: Ctrl-C, or `standby job stop`."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 130
    job: str
    machine: str

    def message(self) -> str:
        return (
            f"VM {self.machine}: the session of job {self.job} was stopped; no restore point was "
            "made, what was transferred is kept and the next session goes on from it"
        )


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


# --- across processes ------------------------------------------------------------------------


def _tree(root: type[StandbyError]) -> dict[str, type[StandbyError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


def error_to_wire(error: BaseException, mover: str = "") -> dict[str, Any]:
    """`error` as {"error": class name, field: value …}; a foreign error becomes a MoverFault."""
    if not isinstance(error, StandbyError):
        error = MoverFault(mover, f"{type(error).__name__}: {error}")
    return {"error": type(error).__name__} | {f.name: getattr(error, f.name) for f in fields(error)}


def error_from_wire(data: dict[str, Any]) -> StandbyError:
    """The error that `error_to_wire` wrote; an unknown class becomes a MoverFault."""
    values = dict(data)
    name = str(values.pop("error", ""))
    kind = _tree(StandbyError).get(name)
    if kind is None:
        return MoverFault("?", f"{name}: {values}")
    known = {f.name for f in fields(kind)}
    arguments = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
        if key in known
    }
    try:
        return kind(**arguments)
    except TypeError:
        return MoverFault("?", f"{name}: {values}")
