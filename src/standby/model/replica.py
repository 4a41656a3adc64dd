"""What a replica is, and the table of its states.

The table below is the single source for the code, the command line's messages and the docs.
`processing` is not a state: it is a live writer lease (RULES 2).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class ReplicaState(enum.StrEnum):
    """Where a replica stands."""

    NEW = "new"
    READY = "ready"
    FAILOVER = "failover"
    PERMANENT = "permanent"
    FAILBACK = "failback"
    DAMAGED = "damaged"


class Action(enum.StrEnum):
    """What can be asked of a replica."""

    SESSION = "run a session"
    FAILOVER = "failover"
    UNDO_FAILOVER = "undo-failover"
    PERMANENT_FAILOVER = "permanent-failover"
    FAILBACK = "failback"
    COMMIT_FAILBACK = "commit-failback"
    UNDO_FAILBACK = "undo-failback"
    VERIFY = "verify"
    REPAIR = "verify --repair"
    MARK_DAMAGED = "be marked damaged"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Transition:
    """In `state`, `action` is legal and leads to `result`; `guard` says on which condition."""

    state: ReplicaState
    action: Action
    result: ReplicaState
    guard: str = ""


_N, _R, _F, _P, _B, _D = (
    ReplicaState.NEW,
    ReplicaState.READY,
    ReplicaState.FAILOVER,
    ReplicaState.PERMANENT,
    ReplicaState.FAILBACK,
    ReplicaState.DAMAGED,
)

TRANSITIONS: tuple[Transition, ...] = (
    Transition(_N, Action.SESSION, _R, "the first restore point is committed"),
    Transition(_N, Action.DELETE, _P),
    Transition(_R, Action.SESSION, _R),
    Transition(_R, Action.FAILOVER, _F, "the point's files match their record"),
    Transition(_R, Action.VERIFY, _R),
    Transition(_R, Action.REPAIR, _R),
    Transition(_R, Action.MARK_DAMAGED, _D, "a point was touched from outside"),
    Transition(_R, Action.DELETE, _P, "the target's own rules allow it"),
    Transition(_F, Action.UNDO_FAILOVER, _R, "the replica VM is off"),
    Transition(_F, Action.UNDO_FAILOVER, _D, "it is marked damaged"),
    Transition(_F, Action.PERMANENT_FAILOVER, _P, "the target's own rules allow it"),
    Transition(_F, Action.FAILBACK, _B, "a target for the failback is reachable"),
    Transition(_F, Action.VERIFY, _F),
    Transition(_F, Action.MARK_DAMAGED, _F, "a point was touched from outside; damaged by undo"),
    Transition(_B, Action.COMMIT_FAILBACK, _R),
    Transition(_B, Action.UNDO_FAILBACK, _F),
    Transition(_B, Action.VERIFY, _B),
    Transition(_D, Action.FAILOVER, _F, "the point's files match their record"),
    Transition(_D, Action.VERIFY, _D, "ready again when every point verifies"),
    Transition(_D, Action.REPAIR, _R, "every piece could be repaired"),
    Transition(_D, Action.DELETE, _P, "the target's own rules allow it"),
)


def legal_actions(state: ReplicaState) -> tuple[Action, ...]:
    """What may be asked of a replica in `state`, in the table's order."""
    return tuple(dict.fromkeys(t.action for t in TRANSITIONS if t.state is state))


COMMANDS: dict[Action, str] = {
    Action.SESSION: "standby job start {job}",
    Action.FAILOVER: "standby replica failover {replica}",
    Action.UNDO_FAILOVER: "standby replica undo-failover {replica}",
    Action.PERMANENT_FAILOVER: "standby replica permanent-failover {replica}",
    Action.VERIFY: "standby replica verify {replica}",
    Action.REPAIR: "standby replica verify {replica} --repair",
}
"""What a person types for an action; one without a command cannot be asked for."""

RUNS_ON = "the VM runs, and goes on running"
"""What the plan of a permanent failover says of a replica VM that is on."""


def legal_commands(state: ReplicaState, replica: str, job: str) -> tuple[str, ...]:
    """The commands for what may be asked of `replica` of the job in `state`, in the table's
    order."""
    return tuple(
        COMMANDS[action].format(replica=replica, job=job)
        for action in legal_actions(state)
        if action in COMMANDS
    )


def next_state(state: ReplicaState, action: Action) -> ReplicaState | None:
    """The state that `action` leads to from `state`, of several the first; None where it is not
    legal."""
    for transition in TRANSITIONS:
        if transition.state is state and transition.action is action:
            return transition.result
    return None


@dataclass(frozen=True, slots=True)
class ReplicaIdentity:
    """Who a replica is the replica of (RULES 1)."""

    installation: str
    source_host: str
    machine_id: str
    job: str


@dataclass(frozen=True, slots=True)
class ReplicaDisk:
    """One disk of a replica: our id (also its folder's name) and what it was matched by."""

    id: str
    place: str
    host_id: str = ""
    page83: str = ""


@dataclass(frozen=True, slots=True)
class LayerFile:
    """One disk file as we left it: name relative to the replica's folder (forward slashes),
    bytes, data-write GUID."""

    file: str
    size: int
    data_write_guid: str


@dataclass(frozen=True, slots=True)
class ReplicaRecord:
    """replica.json: enough to fail over with nothing else left alive.

    `points` are the ids committed before `generation` was last raised: a point record of an older
    generation that is not among them came from a fenced writer and does not count (RULES 2, 3).
    `ready` maps a disk id to its ready layer as we left it, above the files of `ready_point`; while
    they are being renewed `ready_next` holds the new ones, and a layer on disk may be either.
    `damage` is why sessions are stopped; of the verified points `damaged_points` are the ones that
    are damaged and `intact_points` the others, both empty without damage.
    `failover_point` and `failover_started_at` are set while the state is failover. `serve_pid` and
    `serve_started` name the detached disk server of a running replica VM. `host_folder` is the
    replica's folder as its host sees it, where that is another host than a folder's: locators name
    it, and no file is sparse (RULES 13).
    """

    format: int
    identity: ReplicaIdentity
    name: str
    state: ReplicaState
    generation: int
    disks: tuple[ReplicaDisk, ...]
    points: tuple[str, ...] = ()
    ready: dict[str, LayerFile] | None = None
    ready_point: str = ""
    ready_next: dict[str, LayerFile] | None = None
    failover_point: str = ""
    failover_started_at: str = ""
    damage: str = ""
    damaged_points: tuple[str, ...] = ()
    intact_points: tuple[str, ...] = ()
    serve_pid: int = 0
    serve_started: str = ""
    host_folder: str = ""
