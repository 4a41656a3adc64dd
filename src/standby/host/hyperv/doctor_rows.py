"""What doctor.ps1 answers, and what is made of it: findings."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import msgspec

from standby.host.hyperv.answers import Moment
from standby.host.hyperv.verbs import Verb


class Level(enum.StrEnum):
    """`ERROR` stops jobs with this host, `WARNING` deserves a look."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class HostFinding:
    """One line: what was looked at, what was found, what to do about it ('' where all is well)."""

    level: Level
    what: str
    text: str
    remedy: str = ""


class System(msgspec.Struct, frozen=True, rename="pascal"):
    """Win32_OperatingSystem."""

    caption: str = ""
    build_number: str = ""
    local_date_time: Moment | None = None


class Service(msgspec.Struct, frozen=True, rename="pascal"):
    """One of Hyper-V's services."""

    name: str = ""
    started: bool | None = None


class ClusterName(msgspec.Struct, frozen=True, rename="pascal"):
    """MSCluster_Cluster."""

    name: str = ""


class Share(msgspec.Struct, frozen=True):
    """An SMB share; `access` are texts "Allow:Full:ACCOUNT"."""

    name: str
    path: str | None = None
    special: bool = False
    access: list[str] = []


class Seen(msgspec.Struct, frozen=True):
    """doctor.ps1: each step tells its own part."""

    systems: list[System] = []
    account: str = ""
    groups: list[str] = []
    services: list[Service] = []
    clusters: list[ClusterName] = []
    shares: list[Share] = []


DOCTOR: Verb[Seen] = Verb("doctor", Seen, is_repeatable=True)
