"""What a standby.toml says, as frozen values; `config` reads one."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import tzinfo
from pathlib import Path

from standby.clock import LOCAL_ZONE
from standby.errors import UnknownName
from standby.model.job import ReplicationJob
from standby.server.hyperv_config import HyperVConfig
from standby.server.references import read_reference
from standby.server.schedule import Schedule
from standby.server.traffic import TrafficRule
from standby.server.wan_config import WanConfig, tenant_key
from standby.server.watch_config import LogConfig, WebhookConfig
from standby.units import MiB


@dataclass(frozen=True, slots=True)
class HostConfig:
    """A source or target host. `path` is the folder of a folder host: on the machine of `mover`,
    as written, where there is one, else on this machine. `max_tasks` disks of the host at once, 0
    any number. `kind` is 'folder' or 'hyperv', which has no folder and no mover but `hyperv`; a
    program, not the file, may also use 'memory' (`standby.testing`)."""

    name: str
    kind: str
    path: Path
    mover: str = ""
    max_tasks: int = 0
    hyperv: HyperVConfig | None = None

    @property
    def is_folder(self) -> bool:
        """Whether its VMs are folders in its folder."""
        return self.hyperv is None

    def file(self, name: str) -> str:
        """The whole path, as the host has it, of a disk's file: a Hyper-V host names whole paths,
        a folder host those below its folder."""
        return f"{self.path}/{name}" if self.hyperv is None else name

    @property
    def shown(self) -> str:
        """Where it is, for people."""
        return str(self.path) if self.hyperv is None else self.hyperv.shown


@dataclass(frozen=True, slots=True)
class RepositoryConfig:
    """A repository: a folder on the machine of `mover`, as written, or on this one. `max_tasks`
    disks at once, 0 any number."""

    name: str
    path: Path
    mover: str = ""
    max_tasks: int = 0


@dataclass(frozen=True, slots=True)
class MoverConfig:
    """A mover process on another machine: host:port. `plain`: on this machine, without TLS."""

    name: str
    address: str
    plain: bool = False


def host_part(name: str) -> str:
    """The host that a key of a proxy's `paths` is about."""
    return name.partition("/")[0]


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """A mover's duty as a proxy. `max_tasks` disks at once; `paths` maps a host's name, or that of
    a cluster and of a node of it in lower case ("prod/hv1"), to {folder as the host sees it: as the
    proxy sees it}. An empty `mover` is one on this machine.
    `side` is source, target or both."""

    name: str
    mover: str = ""
    max_tasks: int = 2
    paths: dict[str, dict[str, str]] = field(default_factory=dict)
    side: str = "both"

    def maps_of(self, host: str) -> dict[str, dict[str, str]]:
        """Of `paths` those of the host and of its nodes."""
        return {name: maps for name, maps in self.paths.items() if host_part(name) == host}


@dataclass(frozen=True, slots=True)
class Limits:
    """What the whole server may use. `max_tasks` disks at once over all jobs; `task_memory` bytes
    of batches in flight per disk task."""

    max_tasks: int = 4
    task_memory: int = 64 * MiB


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The backup server's own part in an installation of several machines. `identity` is the folder
    of the key and certificate it shows to movers, `authority` that of the installation's authority,
    `listen` the address of the API; a dropped connection to a mover is tried again every
    `reconnect_every_s` for `reconnect_for_s`. A mover that is silent for `hung_after_s` (None: a
    minute) is taken to hang, and its disks go on through others. `certificate` and `key` are the
    API's TLS files, without which it answers this machine only; `metrics_open` has /metrics ask for
    no token. `enrol` is where `standby server` takes enrolments of movers, '' for nowhere."""

    identity: Path
    authority: Path
    listen: str = "127.0.0.1:9443"
    reconnect_every_s: float = 15
    reconnect_for_s: float = 30 * 60
    hung_after_s: float | None = None
    certificate: Path | None = None
    key: Path | None = None
    metrics_open: bool = False
    enrol: str = ""


@dataclass(frozen=True, slots=True)
class Config:
    """A whole standby.toml. `schedules` maps a job to its schedule, where it has one; its times are
    those of `time_zone`."""

    path: Path
    installation: str
    state_database: Path
    hosts: dict[str, HostConfig]
    repositories: dict[str, Path]
    jobs: dict[str, ReplicationJob]
    movers: dict[str, MoverConfig] = field(default_factory=dict)
    proxies: dict[str, ProxyConfig] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    schedules: dict[str, Schedule] = field(default_factory=dict)
    time_zone: tzinfo = LOCAL_ZONE
    stores: dict[str, RepositoryConfig] = field(default_factory=dict)
    """The repositories with all that is said of them; `repositories` has their paths."""
    traffic: dict[str, TrafficRule] = field(default_factory=dict)
    state_url: str = ""
    """Where the state is PostgreSQL: its URL, or a reference to one. `state_database` then only
    says where small files beside the state lie."""

    server: ServerConfig = ServerConfig(Path("identity"), Path("authority"))
    webhooks: dict[str, WebhookConfig] = field(default_factory=dict)
    logs: LogConfig = field(default_factory=LogConfig)
    wans: dict[str, WanConfig] = field(default_factory=dict)

    def wan_key(self, name: str) -> str:
        """The tenant key of that pair of WAN accelerators, in hex (`wan_config.tenant_key`)."""
        return tenant_key(self.wans[name], self.path.parent, self.state_database.parent)

    def state_place(self) -> Path | str:
        """The SQLite file, or the URL, of the state database: what `Store` opens."""
        if not self.state_url or "://" in self.state_url:
            return self.state_url or self.state_database
        return read_reference(self.state_url, "[standby] state_database", self.path.parent)

    def host_path(self, name: str) -> Path:
        """The folder of the host, '/' for one that a program gave without configuring it."""
        found = self.hosts.get(name)
        return found.path if found is not None else Path("/")

    def job(self, name: str) -> ReplicationJob:
        """The job of that name, or UnknownName with those there are."""
        if name not in self.jobs:
            raise UnknownName("job", name, tuple(self.jobs))
        return self.jobs[name]
