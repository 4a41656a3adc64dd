"""The error tree. Every class carries typed fields, builds its message from them, and says
whether trying again can help and which exit code the command line ends with.

A message names what failed, on which object, with which values, and what to do next. An error
crosses a process border as `error_to_wire` / `error_from_wire` (class name and fields), so the
backup server sees the very error a mover raised.

Exit codes: 10 configuration and usage of names, 11 disk formats, 12 hosts, 13 replicas,
14 repository, 15 links, movers and certificates, 16 jobs and sessions.
"""

from __future__ import annotations

from standby.errors.base import Retry, StandbyError
from standby.errors.configuration import ConfigurationError, UnknownName
from standby.errors.crossing import error_from_wire, error_to_wire
from standby.errors.disks import (
    DiskBusy,
    DiskCorrupt,
    DiskError,
    DiskFull,
    DiskIO,
    DiskRange,
    DiskUnsupported,
    ParentRefused,
    PathRefused,
)
from standby.errors.hosts import (
    CheckpointLimit,
    HostError,
    MachineRunning,
    SourceChanged,
)
from standby.errors.jobs import (
    IllegalRequest,
    IllegalStep,
    JobBusy,
    JobError,
    NoProxy,
    ResourcesBusy,
    SessionStopped,
    WorkStopped,
)
from standby.errors.links import (
    CertificateError,
    CertificateRefused,
    EnrolmentRefused,
    LinkError,
    LinkTimeout,
    PeerBusy,
    ProtocolError,
    RefusedByPeer,
    TicketRefused,
    VersionMismatch,
)
from standby.errors.movers import (
    MoverAway,
    MoverDied,
    MoverFault,
    MoverFenced,
    MoverLeft,
    RequestRefused,
)
from standby.errors.replicas import (
    Fenced,
    IllegalTransition,
    NoSuchPoint,
    PointDamaged,
    ReplicaBusy,
    ReplicaConflict,
    ReplicaError,
    ReplicaMissing,
    ReplicaStarted,
    TargetRefuses,
    VerifyFailed,
)
from standby.errors.repository import RepositoryBusy, RepositoryError
from standby.errors.servers import (
    IllegalOperation,
    OperationCancelled,
    OperationLost,
    ServerFenced,
    StateDatabaseError,
    StateDatabaseUnreachable,
)

__all__ = [
    "CertificateError",
    "CertificateRefused",
    "CheckpointLimit",
    "ConfigurationError",
    "DiskBusy",
    "DiskCorrupt",
    "DiskError",
    "DiskFull",
    "DiskIO",
    "DiskRange",
    "DiskUnsupported",
    "EnrolmentRefused",
    "Fenced",
    "HostError",
    "IllegalOperation",
    "IllegalRequest",
    "IllegalStep",
    "IllegalTransition",
    "JobBusy",
    "JobError",
    "LinkError",
    "LinkTimeout",
    "MachineRunning",
    "MoverAway",
    "MoverDied",
    "MoverFault",
    "MoverFenced",
    "MoverLeft",
    "NoProxy",
    "NoSuchPoint",
    "OperationCancelled",
    "OperationLost",
    "ParentRefused",
    "PathRefused",
    "PeerBusy",
    "PointDamaged",
    "ProtocolError",
    "RefusedByPeer",
    "ReplicaBusy",
    "ReplicaConflict",
    "ReplicaError",
    "ReplicaMissing",
    "ReplicaStarted",
    "RepositoryBusy",
    "RepositoryError",
    "RequestRefused",
    "ResourcesBusy",
    "Retry",
    "ServerFenced",
    "SessionStopped",
    "SourceChanged",
    "StandbyError",
    "StateDatabaseError",
    "StateDatabaseUnreachable",
    "TargetRefuses",
    "TicketRefused",
    "UnknownName",
    "VerifyFailed",
    "VersionMismatch",
    "WorkStopped",
    "error_from_wire",
    "error_to_wire",
]
