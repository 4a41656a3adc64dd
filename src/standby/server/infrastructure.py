"""What the configuration names, as the API and `standby infrastructure list` show it."""

from __future__ import annotations

from dataclasses import dataclass

from standby.server.config import Config
from standby.server.fleet import Fleet, needed_roles
from standby.server.usage import Usage


@dataclass(frozen=True, slots=True)
class HostInfo:
    """A host, without secrets."""

    name: str
    kind: str
    path: str
    mover: str


@dataclass(frozen=True, slots=True)
class MoverInfo:
    """A mover and the control connection of this process; `problem` is why the last attempt to
    connect failed."""

    name: str
    address: str
    is_connected: bool
    problem: str
    roles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProxyInfo:
    """A proxy."""

    name: str
    mover: str
    side: str
    max_tasks: int


@dataclass(frozen=True, slots=True)
class RepositoryInfo:
    """A repository."""

    name: str
    path: str
    mover: str


@dataclass(frozen=True, slots=True)
class WanInfo:
    """A pair of WAN accelerators, without its key."""

    name: str
    source: str
    target: str
    mode: str
    if_away: str


@dataclass(frozen=True, slots=True)
class Infrastructure:
    """Everything that the configuration names, and the slots in use by this process."""

    hosts: tuple[HostInfo, ...]
    movers: tuple[MoverInfo, ...]
    proxies: tuple[ProxyInfo, ...]
    repositories: tuple[RepositoryInfo, ...]
    usage: Usage
    wans: tuple[WanInfo, ...] = ()


def infrastructure_of(config: Config, fleet: Fleet, usage: Usage) -> Infrastructure:
    """What there is; nothing is connected for it."""
    movers = []
    for name, mover in config.movers.items():
        handle, roles = fleet.mover(name), tuple(needed_roles(config, name))
        movers.append(MoverInfo(name, mover.address, handle.is_connected, handle.problem, roles))
    return Infrastructure(
        tuple(HostInfo(it.name, it.kind, it.shown, it.mover) for it in config.hosts.values()),
        tuple(movers),
        tuple(
            ProxyInfo(it.name, it.mover, it.side, it.max_tasks) for it in config.proxies.values()
        ),
        tuple(RepositoryInfo(it.name, str(it.path), it.mover) for it in config.stores.values()),
        usage,
        tuple(
            WanInfo(it.name, it.source, it.target, it.mode, it.if_away)
            for it in config.wans.values()
        ),
    )
