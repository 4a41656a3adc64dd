"""Which proxies can take a disk: who sees its files, under which path, on which side.

A proxy sees a host's storage where it runs on the host's own machine (the same mover, or both
none), or where its `paths` says how (`host.seen_paths`). A host that no configured
proxy is made for is served by its own mover, as a proxy named `host:NAME`.

All of it is pure; `resources` chooses among those found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from standby.host.seen_paths import mapped_path, path_on_node
from standby.model.job import ReplicationJob
from standby.server.config import Config, HostConfig, ProxyConfig
from standby.server.resources import Capacities

Side = Literal["source", "target"]


@dataclass(frozen=True, slots=True)
class Eligible:
    """A proxy that can take the disk, and its files' paths as it sees them."""

    proxy: ProxyConfig
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Eligibility:
    """By name: who can, and why the others cannot."""

    side: Side
    eligible: dict[str, Eligible]
    refused: dict[str, str]


def own_proxy(config: Config, host: HostConfig) -> ProxyConfig:
    """The host's own mover as a proxy: named 'host:NAME', as many tasks as the host may have, or
    the server where the host has no limit of its own."""
    return ProxyConfig(f"host:{host.name}", host.mover, host.max_tasks or config.limits.max_tasks)


def all_proxies(config: Config) -> dict[str, ProxyConfig]:
    """The configured proxies, and the hosts' own movers for hosts that have none of those, on one
    side at least."""
    found = dict(config.proxies)
    for host in config.hosts.values():
        if host.is_folder and not (
            _has_proxy(config, host, "source") and _has_proxy(config, host, "target")
        ):
            own = own_proxy(config, host)
            found[own.name] = own
    return found


def _has_proxy(config: Config, host: HostConfig, side: Side) -> bool:
    """Whether a configured proxy is made for the host."""
    return any(
        proxy.side in (side, "both") and (proxy.maps_of(host.name) or _is_on(proxy, host))
        for proxy in config.proxies.values()
    )


def eligible_proxies(
    config: Config,
    job: ReplicationJob,
    side: Side,
    files: Sequence[str],
    *,
    avoid: Mapping[str, str] | None = None,
    node: str = "",
) -> Eligibility:
    """The proxies that see all `files` (whole paths on the job's host of that side; for a chain,
    every layer's); of no files, those that see a part of the host's folder, and how they see that.
    A list in the job restricts them; `avoid` are those that failed at this very task, with the
    reason; `node` is where the VM is that they belong to, on a cluster."""
    host = config.hosts[job.source if side == "source" else job.target]
    named = job.proxies if side == "source" else job.target_proxies
    key = "proxies" if side == "source" else "target_proxies"
    eligible: dict[str, Eligible] = {}
    refused: dict[str, str] = {}
    proxies = dict(config.proxies)
    if not named and host.is_folder and not _has_proxy(config, host, side):
        own = own_proxy(config, host)
        proxies[own.name] = own
    for name, proxy in proxies.items():
        if named and name not in named:
            refused[name] = f"not among the job's {key}"
        elif proxy.side not in (side, "both"):
            refused[name] = f"a proxy of the {proxy.side} side only"
        elif avoid and name in avoid:
            refused[name] = avoid[name]
        else:
            seen = [_seen(proxy, host, file, node) for file in files] or seen_folders(proxy, host)
            if None in seen or not seen:
                file = files[seen.index(None)] if files else host.shown
                place = f"{host.name}/{node}" if node else host.name
                refused[name] = f"none of its paths for host {place} leads to {file}"
                if files and not host.is_folder:
                    refused[name] += f": {paths_hint(host.name, file)}"
            else:
                eligible[name] = Eligible(proxy, tuple(path for path in seen if path is not None))
    return Eligibility(side, eligible, refused)


def paths_hint(host: str, file: str = "C:\\ClusterStorage\\Volume1\\DISK.vhdx") -> str:
    """How to write where a proxy sees a file of a host that names whole paths."""
    folder = file.rpartition("\\")[0] or file
    return (
        f"share that folder, mount it on the proxy's machine, and write [proxies.NAME] paths = "
        f"{{ {host} = {{ '{folder}' = \"/mnt/{host}\" }} }}"
    )


def seen_folders(proxy: ProxyConfig, host: HostConfig) -> Sequence[str]:
    """The host's folder as the proxy sees it, or, where it does not, what it sees below that. Of a
    host without a folder of its own, all that the proxy's `paths` say."""
    if not host.is_folder:
        every = proxy.maps_of(host.name).values()
        return tuple(seen for maps in every for seen in maps.values())
    whole = _seen(proxy, host, str(host.path))
    if whole is not None:
        return (whole,)
    maps = proxy.paths.get(host.name, {}).items()
    inside = {str(host.path): "inside"}
    return tuple(at_proxy for at_host, at_proxy in maps if mapped_path(at_host, inside) is not None)


def _seen(proxy: ProxyConfig, host: HostConfig, file: str, node: str = "") -> str | None:
    """The file, of a VM on that node, as the proxy sees it. What its `paths` say goes before what
    it sees as the host does, being on the host's machine."""
    mapped = path_on_node(file, host.name, node, proxy.paths)
    return file if mapped is None and _is_on(proxy, host) else mapped


def _is_on(proxy: ProxyConfig, host: HostConfig) -> bool:
    """Whether the proxy's mover is that of the host's machine, and opens its files by their own
    paths."""
    return host.is_folder and proxy.mover == host.mover


def capacities(config: Config) -> Capacities:
    """What `Resources.configure` takes, from the configuration."""
    return Capacities(
        server=config.limits.max_tasks,
        proxies={name: proxy.max_tasks for name, proxy in all_proxies(config).items()},
        hosts={host.name: host.max_tasks for host in config.hosts.values() if host.max_tasks},
        repositories={
            item.name: item.max_tasks for item in config.stores.values() if item.max_tasks
        },
    )
