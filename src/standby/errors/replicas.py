"""Exit code 13: replicas and their restore points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from standby.errors.base import Retry, StandbyError

BEGIN_ANEW = (
    "move the replica's folder out of the target's folder and start the job with --accept-loss: "
    "a new full"
)
"""The way out that is always there, for whoever has no other."""


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
    session: str = ""
    """The name by which movers know the writer's session, where there is one."""

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
                "the job (exclude_machines), or "
                f"{BEGIN_ANEW}"
            )
        text += f"possible now: {', '.join(f'`{item}`' for item in self.legal) or 'nothing'}"
        if self.state == "failover":
            text += f". An undo wants its VM off: `standby replica power off {self.replica}`"
        if self.state == "damaged":
            text += (
                ". What a repair cannot mend is left behind: fail over to an undamaged point "
                f"(--point; `standby replica verify {self.replica}` names them), or {BEGIN_ANEW}"
            )
        return text


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
            f"See `standby replica verify {self.replica}`; other points may be intact: fail over "
            f"to one of them (--point), or {BEGIN_ANEW}"
        )


@dataclass(eq=False)
class NoSuchPoint(ReplicaError):
    """No restore point of that id, or none so old; `why`, where that is not plain."""

    point: str
    known: tuple[str, ...] = ()
    why: str = ""

    def message(self) -> str:
        why = f" ({self.why})" if self.why else ""
        return (
            f"replica {self.replica}: no restore point {self.point}{why}; there are: "
            f"{', '.join(self.known) or 'none'}"
        )


@dataclass(eq=False)
class VerifyFailed(ReplicaError):
    """What was written does not read back as what was sent: a block twice, or, without an offset,
    the disk as a whole."""

    disk: str
    offset: int | None = None

    def message(self) -> str:
        what = "it is not what the source sent, by its digest root"
        if self.offset is not None:
            what = f"the block at offset {self.offset:#x} read back wrong twice"
        return (
            f"replica {self.replica}: disk {self.disk}: {what}. Check the target's storage; no "
            "restore point was made"
        )


@dataclass(eq=False)
class TargetRefuses(ReplicaError):
    """The target's own local rules forbid it (RULES 17)."""

    action: str
    rule: str

    def message(self) -> str:
        return f"replica {self.replica}: the target refuses to {self.action}: {self.rule}"
