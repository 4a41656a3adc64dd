"""What a host has: VMs with their hardware, checkpoints and reference points, jobs."""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from hyperv.world.tracking import Tracker
from standby.units import GiB

RUNNING, OFF, PAUSED, SAVED, STARTING, STOPPING = 2, 3, 9, 6, 10, 4
"""Msvm_ComputerSystem.EnabledState; 9 is Quiesce, 6 Enabled but Offline."""

RECOVERY, USER = "Recovery", "Realized"

SCSI_TYPE, IDE_TYPE = 6, 5
VERSIONS = {2016: "8.0", 2019: "9.0", 2022: "10.0", 2025: "12.0"}
SUPPORTED = {
    2016: ("5.0", "6.2", "7.0", "7.1", "8.0"),
    2019: ("5.0", "6.2", "7.0", "7.1", "8.0", "8.1", "8.2", "8.3", "9.0"),
    2022: ("8.0", "8.1", "8.2", "8.3", "9.0", "9.1", "9.2", "9.3", "10.0"),
    2025: ("8.0", "8.1", "8.2", "8.3", "9.0", "9.1", "9.2", "9.3", "10.0", "11.0", "12.0"),
}
"""Configuration versions that a server runs; its newest is what new VMs get."""
BUILDS = {2016: "14393", 2019: "17763", 2022: "20348", 2025: "26100"}

_IDE_INSTANCE = "83F8638B-8DCA-4152-9EDA-2CA8B33039B4"


def new_id() -> str:
    """A GUID as Hyper-V writes it."""
    return str(uuid.uuid4()).upper()


@dataclass
class Controller:
    """IDE or SCSI; `number` counts those of its kind from 0."""

    kind: str
    number: int
    instance: str = field(default_factory=new_id)

    @classmethod
    def ide(cls, number: int) -> Controller:
        """One of the two of a generation 1 VM."""
        return cls("IDE", number, _IDE_INSTANCE)

    def element_id(self) -> str:
        """Its part of InstanceIDs."""
        return f"{self.instance}\\{self.number if self.kind == 'IDE' else 0}"


@dataclass
class Drive:
    """Something at a controller's place.

    `kind`: disk, physical (a host's whole disk) or dvd.  `path` is the newest file of a disk's
    chain, where it lies in truth.
    """

    controller: Controller
    location: int
    kind: str = "disk"
    path: Path | None = None
    tracker: Tracker = field(default_factory=lambda: Tracker(0))
    is_shared: bool = False
    disk_number: int = 0
    iso: str = ""

    @property
    def place(self) -> str:
        """For example scsi:0:1."""
        return f"{self.controller.kind.lower()}:{self.controller.number}:{self.location}"

    def element_id(self) -> str:
        """Its part of InstanceIDs, without the letter behind."""
        return f"{self.controller.element_id()}\\{self.location}"


@dataclass
class Adapter:
    """A network adapter; `mode` 0 untagged, 1 access, 2 trunk."""

    name: str = "Network Adapter"
    mac: str = ""
    is_static: bool = False
    switch: str = ""
    mode: int = 0
    vlan: int = 0
    native_vlan: int = 0
    trunk: tuple[int, ...] = ()
    instance: str = field(default_factory=new_id)
    identifiers: tuple[str, ...] = ()
    is_legacy: bool = False
    has_connection: bool = True
    """Whether there is an Msvm_EthernetPortAllocationSettingData of it."""


@dataclass
class Checkpoint:
    """A snapshot of a VM.  `disks` maps places to the files it froze, `marks` to positions of the
    trackers' logs, `tracking` to their ids."""

    name: str
    kind: str
    created: datetime
    consistency: int
    vm: Machine
    disks: dict[str, Path] = field(default_factory=dict)
    drives: dict[str, Drive] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)
    tracking: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    parent: Checkpoint | None = None
    backup_type: int = 0
    id: str = field(default_factory=new_id)


@dataclass
class ReferencePoint:
    """What a converted recovery snapshot leaves: one id per disk, in an order of the host's own."""

    vm: Machine
    disks: list[tuple[str, str]]
    """(InstanceID of the disk's settings, tracking id)"""
    consistency: int
    created: datetime
    kind: int = 2
    id: str = field(default_factory=new_id)

    @property
    def instance_id(self) -> str:
        """As Msvm_VirtualSystemReferencePoint has it."""
        return f"Microsoft:{self.id}"


@dataclass
class Faults:
    """What does not work with one VM."""

    vss_fails: bool = False
    """Application-consistent snapshots fail, crash-consistent ones work."""
    vss_works_when_off: bool = False
    """Whether a VM that does not run takes the application-consistent level: not published."""
    not_snapshottable: set[str] = field(default_factory=set)
    """Places of disks that no snapshot can have."""
    silently_left_out: set[str] = field(default_factory=set)
    """Places that a snapshot leaves out though nobody allowed it to."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long the jobs of a method take; 'merge': the merge behind a release."""
    merge_fails: str = ""
    """Reason that merges stop with; empty: they work."""
    conflict_fails_job: bool = False
    """A file in use fails the job of the release, and the snapshot stays.  Otherwise the job is
    well, and the merge behind it stops: the file stays in the chain."""


@dataclass
class Guest:
    """How what runs in a VM behaves."""

    boots_after_s: float | None = 20.0
    """From power on to the first heartbeat; None: it never comes up."""
    has_integration: bool = True
    """Whether it has the integration components: heartbeat, shutdown, data exchange."""
    stops_after_s: float | None = 10.0
    """From the request to power off; None: it never ends by itself."""
    is_locked: bool = False
    """Someone's session is locked: no shutdown without force."""
    name: str = "guest.example.test"
    address: str = "10.0.0.5"


@dataclass
class Machine:
    """A VM and where it is."""

    name: str
    host: str
    folder: Path
    generation: int = 2
    version: str = "10.0"
    id: str = field(default_factory=new_id)
    state: int = RUNNING
    activity: int | None = None
    """OperationalStatus[1]: 32768 to 32774 while something is under way."""
    processors: int = 2
    memory: int = 2 * GiB
    memory_minimum: int = GiB
    memory_maximum: int = 4 * GiB
    dynamic_memory: bool = False
    secure_boot: bool = True
    secure_boot_template: str = "1734C6E8-3154-4DDA-BA5F-A874CC483422"
    bios_guid: str = field(default_factory=lambda: "{" + new_id() + "}")
    serials: dict[str, str] = field(default_factory=dict)
    notes: str = ""
    start_action: int = 3
    stop_action: int = 3
    start_delay: int = 0
    checkpoint_type: int = 3
    automatic_checkpoints: bool = False
    boot_order: list[int] = field(default_factory=lambda: [1, 2, 3, 0])
    """Of generation 1."""
    roots: dict[str, str] = field(default_factory=dict)
    """SnapshotDataRoot and the like, where they are not the VM's folder."""
    tpm: bool = False
    shielded: bool = False
    numa: bool = True
    boot_entries: list[tuple[str, str, str, int]] = field(default_factory=list)
    """Boot order of generation 2: (description, device path, place or '', BootSourceType)."""
    controllers: list[Controller] = field(default_factory=list)
    drives: list[Drive] = field(default_factory=list)
    adapters: list[Adapter] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    last_applied: Checkpoint | None = None
    points: list[ReferencePoint] = field(default_factory=list)
    replication_mode: int = 0
    replication_state: int = 0
    failed_over: int = 0
    heartbeat: tuple[int, ...] = (2, 32782)
    integration: dict[str, int] = field(default_factory=dict)
    """EnabledState by class of the integration component; 2 where it does not say."""
    os_name: str = "Windows Server 2022 Standard"
    is_clustered: bool = False
    priority: int = 2000
    role_name: str = ""
    """Of its role in a cluster; '' is the VM's name."""
    role_failed: bool = False
    offline_action: int = 1
    """How a VM ends that its role takes offline: 0 turned off, 1 saved, 2 shut down, 3 by force."""
    is_planned: bool = False
    created: datetime | None = None
    is_made: bool = False
    """Whether a script made it, so that its files need rights of its own."""
    limits_features: bool = False
    nested: bool = False
    started_at: float | None = None
    """When it was started (the clock's monotonic time); None: it ran from the beginning."""
    stopping: bool = False
    """Its guest was asked to end."""
    guest: Guest = field(default_factory=Guest)
    faults: Faults = field(default_factory=Faults)
    group_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def runs(self) -> bool:
        """Whether its worker process has the disks open."""
        return self.state in (RUNNING, PAUSED, STARTING, STOPPING)

    @property
    def sid(self) -> str:
        """Of the identity that its worker process runs as, NT VIRTUAL MACHINE\\<id>."""
        parts = struct.unpack("<4I", uuid.UUID(self.id).bytes_le)
        return "S-1-5-83-1-" + "-".join(str(part) for part in parts)

    @property
    def role(self) -> str:
        """The name of its role in a cluster."""
        return self.role_name or self.name

    @property
    def owner(self) -> str:
        """The name its open files stand under."""
        return f"vm:{self.id}"

    def drive(self, place: str) -> Drive:
        """What is at that place."""
        return next(drive for drive in self.drives if drive.place == place)

    def disks(self) -> list[Drive]:
        """The drives that are disk files, in order of places."""
        return [drive for drive in self.drives if drive.kind == "disk"]


@dataclass
class Job:
    """An Msvm_ConcreteJob or Msvm_StorageJob."""

    host: str
    kind: int
    caption: str
    due: float
    submitted: datetime
    class_name: str = "Msvm_ConcreteJob"
    vm: Machine | None = None
    state: int = 4
    affected: list[Any] = field(default_factory=list)
    error_code: int = 0
    error_description: str = ""
    forgotten_at: float | None = None
    id: str = field(default_factory=new_id)

    @property
    def is_over(self) -> bool:
        """Whether it came to its end, well or not."""
        return self.state >= 7


@dataclass
class Host:
    """One Hyper-V host."""

    name: str
    version: int = 2022
    cluster: str = ""
    is_up: bool = True
    node_state: int = 0
    """MSCluster_Node.State: 0 up, 1 down, 2 paused, 3 joining."""
    drain_status: int = 0
    has_credssp: bool = False
    """Whether sessions to it carry credentials on: some of a cluster's commands need that."""
    memory: int = 64 * GiB
    memory_free: int = 48 * GiB
    processors: int = 16
    switches: list[str] = field(default_factory=lambda: ["External"])
    denied: set[str] = field(default_factory=set)
    """Names of classes and methods that the account has no right to."""
    default_folder: str = r"C:\Hyper-V"
    language: int = 1033
    domain: str = "example.test"
    account: str = "EXAMPLE\\backup"
    groups: list[str] = field(default_factory=lambda: ["S-1-1-0", "S-1-5-32-544"])
    """SIDs of the account's groups; S-1-5-32-544 are the Administrators."""
    shares: list[Any] = field(default_factory=list)
    """SMB shares (account.Share)."""
    guest: Guest = field(default_factory=Guest)
    """How guests of VMs behave that scripts make here."""
    methods_are_jobs: bool = False
    """Whether the methods that define and change VMs answer 4096 with a job, not 0: both are
    published."""
    skew_s: float = 0.0
    """Its clock is that much ahead of the world's."""
    stopped: set[str] = field(default_factory=set)
    """Classes of services that do not run."""

    @property
    def supported(self) -> tuple[str, ...]:
        """Configuration versions of VMs that it runs."""
        return SUPPORTED[self.version]
