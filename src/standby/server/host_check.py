"""`standby host check`: a Hyper-V host asked by its doctor, its disks as each proxy sees them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from standby.clock import Clock
from standby.errors import ConfigurationError, HostCallFailed, StandbyError, UnknownName
from standby.host.hyperv.cluster_nodes import Nodes
from standby.host.hyperv.credentials import Access
from standby.host.hyperv.doctor import examined, host_of
from standby.host.hyperv.doctor_rows import HostFinding, Level, Share
from standby.host.hyperv.door import Door
from standby.host.hyperv.machines import HostMachine
from standby.host.seen_paths import Place, mapped_path, parsed_place
from standby.server.config import Config, ProxyConfig
from standby.server.fleet import Fleet
from standby.server.mover_check import Level as MoverLevel
from standby.server.mover_check import Movers
from standby.server.place_check import seen_by
from standby.server.references import read_reference
from standby.server.service_mover import Reconnect

Look = Callable[[ProxyConfig, str], str]
"""(proxy, path as it sees it) to what is wrong with that folder there, '' for nothing."""

NODES_AT_ONCE = 8
SHOWN_MAX = 3


@dataclass(frozen=True, slots=True)
class CheckedNode:
    """A host, or one node of a cluster, by its address."""

    address: str
    findings: tuple[HostFinding, ...]


def check_host(config: Config, name: str, clock: Clock) -> list[CheckedNode]:
    """The host of that name and what proxies see of it, with no backup server around it."""
    fleet = Fleet(config, clock, reconnect=Reconnect(every_s=1, for_s=0))
    with (
        contextlib.closing(fleet),
        opened_doors(config, name, clock) as doors,
        looking(config, fleet, clock) as look,
    ):
        found = checked_nodes(config, doors.open, clock, look)
    return found + [CheckedNode(node, (down_finding(node),)) for node in doors.down]


def down_finding(node: str) -> HostFinding:
    """A node that its cluster says is down: it was not asked."""
    return HostFinding(
        Level.WARNING,
        "cluster",
        "the cluster says that this node is down",
        f"start the machine, or on another node: Start-ClusterNode -Name '{node}'",
    )


@dataclass(frozen=True, slots=True)
class Doors:
    """Doors to a host, or to the nodes of a cluster; those that are `down` have none."""

    open: tuple[Door, ...]
    down: tuple[str, ...] = ()


@contextlib.contextmanager
def opened_doors(config: Config, name: str, clock: Clock) -> Iterator[Doors]:
    """Doors to every node of the host of that name, closed at the end; UnknownName where there is
    none, ConfigurationError where it is a folder."""
    host = config.hosts.get(name)
    if host is None:
        raise UnknownName("host", name, tuple(config.hosts))
    settings = host.hyperv
    if settings is None:
        raise ConfigurationError(
            f"[hosts.{name}]", "is a folder host, there is nobody to ask", "`standby check` does"
        )
    folder = config.path.parent
    first, *others = settings.accesses

    def read_secret(reference: str, where: str) -> str:
        return read_reference(reference, where, folder)

    with contextlib.ExitStack() as stack:

        def open_door(title: str, address: str) -> Door:
            own = next((item for item in settings.accesses if item.address == address), first)
            access = replace(own, host=title, address=address)
            return stack.enter_context(Door(access, read_secret, clock))

        if settings.is_cluster:
            yield cluster_doors(name, first.address, open_door, [it.address for it in others])
        else:
            yield Doors((open_door(name, first.address),))


def cluster_doors(
    name: str, address: str, open_door: Callable[[str, str], Door], addresses: Sequence[str]
) -> Doors:
    """Doors to the nodes that the cluster names; to what answers to its own name, or should, where
    it cannot be asked for them."""
    opened: dict[str, Door] = {}

    def opening(title: str, at: str) -> Door:
        opened[title] = open_door(title, at)
        return opened[title]

    nodes = Nodes(name, address, opening, addresses)
    try:
        asked = nodes.asked()
    except HostCallFailed:
        return Doors((opened[name] if name in opened else open_door(name, address),))
    return Doors(tuple(opened[f"{name}/{node.name}"] for node in asked), tuple(nodes.down()))


def checked_nodes(
    config: Config, doors: Sequence[Door], clock: Clock, look: Look
) -> list[CheckedNode]:
    """Every node of one host of the configuration, all at once."""

    def checked(door: Door) -> CheckedNode:
        return CheckedNode(door.access.address, tuple(checked_host(config, door, clock, look)))

    with ThreadPoolExecutor(NODES_AT_ONCE, thread_name_prefix="host check") as pool:
        return list(pool.map(checked, doors))


@contextlib.contextmanager
def looking(config: Config, fleet: Fleet, clock: Clock) -> Iterator[Look]:
    """Looks at folders through the proxies' movers, each connected once, when it is first asked;
    what has no mover is this machine."""
    movers = Movers(fleet, config, clock)
    lost: dict[str, str] = {}
    lock = threading.Lock()

    def look(proxy: ProxyConfig, path: str) -> str:
        with lock:
            if proxy.mover and proxy.mover not in movers.described and proxy.mover not in lost:
                checks = movers.connected(config.movers[proxy.mover])
                problems = [item.text for item in checks if item.level is MoverLevel.ERROR]
                if proxy.mover not in movers.described:
                    lost[proxy.mover] = problems[0] if problems else "it does not answer"
        if proxy.mover in lost:
            return f"mover {proxy.mover} cannot be asked: {lost[proxy.mover]}"
        try:
            return str(seen_by(movers, proxy.mover, path, False)["problem"] or "")
        except StandbyError as exc:
            return str(exc)

    try:
        yield look
    finally:
        movers.close()


def checked_host(config: Config, door: Door, clock: Clock, look: Look) -> list[HostFinding]:
    """Everything about one host, or about one node of a cluster."""
    access = door.access
    told = examined(access, door, clock)
    machines = told.inventory.machines if told.inventory else ()
    maps = maps_of(config, access)
    found = list(told.findings)
    if told.inventory is not None:
        found += seen_findings(host_of(access), maps, machines, look)
    if told.shares is not None:
        right = "Full" if _is_target(config, host_of(access)) else "Read"
        account = access.username or "ACCOUNT"
        found += share_findings(maps, told.shares, right, account)
    return found


@dataclass(frozen=True, slots=True)
class Map:
    """A proxy, and where it sees the folders of a node: `paths` of the host, and those that are
    written for the node alone (`prod/hv1`)."""

    proxy: ProxyConfig
    paths: Mapping[str, str]


def maps_of(config: Config, access: Access) -> list[Map]:
    """The proxies that are made for the host."""
    names = (host_of(access), f"{host_of(access)}/{_node_of(access).lower()}")
    found = []
    for proxy in config.proxies.values():
        paths = {at: seen for name in names for at, seen in proxy.paths.get(name, {}).items()}
        if paths:
            found.append(Map(proxy, paths))
    return found


def _node_of(access: Access) -> str:
    """A node's own name: errors about it have it behind the cluster's."""
    return access.host.partition("/")[2] or access.address.partition(".")[0]


def _is_target(config: Config, host: str) -> bool:
    return any(job.target == host for job in config.jobs.values())


def seen_findings(
    host: str, maps: Sequence[Map], machines: Iterable[HostMachine], look: Look
) -> Iterator[HostFinding]:
    """Whether the proxies see the folders of the VMs' disks, each by its own `paths`."""
    folders = _folders(machines)
    if not maps:
        example = next(iter(folders), "C:\\ClusterStorage\\Volume1")
        yield HostFinding(
            Level.ERROR,
            "proxies",
            "no proxy sees its disks",
            f"share the folder, mount it, and write [proxies.NAME.paths] {host} = "
            f"{{ '{example}' = \"/mnt/{host}\" }}",
        )
        return
    for folder, names in folders.items():
        if not any(mapped_path(folder, item.paths) for item in maps):
            yield HostFinding(
                Level.ERROR,
                "proxies",
                f"none of {', '.join(item.proxy.name for item in maps)} sees {folder} "
                f"({_shown(names)})",
                f"write it, or a folder above it, into [proxies.{maps[0].proxy.name}.paths] {host}",
            )
    for item in maps:
        yield from _as_seen_by(item, host, folders, look)


def _as_seen_by(
    item: Map, host: str, folders: Mapping[str, list[str]], look: Look
) -> Iterator[HostFinding]:
    proxy = item.proxy
    what = f"proxy {proxy.name}"
    paths = {folder: seen for folder in folders if (seen := mapped_path(folder, item.paths))}
    for folder, seen in (paths or item.paths).items():
        problem = look(proxy, seen)
        if problem:
            yield HostFinding(
                Level.ERROR,
                what,
                f"{folder} should be {seen} there: {problem}",
                f"mount the host's share on {proxy.mover or 'this machine'}, or correct "
                f"[proxies.{proxy.name}.paths] {host}",
            )
        else:
            yield HostFinding(Level.OK, what, f"sees {folder} as {seen}")


def _folders(machines: Iterable[HostMachine]) -> dict[str, list[str]]:
    """{folder with files of disks, as the host has it: names of VMs}; one that lies in another is
    seen with that."""
    found: dict[str, list[str]] = {}
    for machine in machines:
        if machine.reason_kept_out:
            continue
        for disk in machine.disks:
            for file in disk.chain:
                names = found.setdefault(file.path.rpartition("\\")[0], [])
                if machine.name not in names:
                    names.append(machine.name)
    return dict(sorted(found.items()))


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_MAX} more" if len(names) > SHOWN_MAX else ""
    return f"VM {', '.join(names[:SHOWN_MAX])}{more}"


def share_findings(
    maps: Iterable[Map], shares: Iterable[Share], right: str, account: str
) -> Iterator[HostFinding]:
    """Whether the host shares the folders that proxies on other machines are to see, and lets
    anyone in with `right` (Read, or Full). The folder's own rights (NTFS) count beside these."""
    told: set[str] = set()
    listed = list(shares)
    for item in maps:
        for folder, seen in item.paths.items():
            place, at_proxy = parsed_place(folder), parsed_place(seen)
            is_remote = place is None or place.anchor.startswith("\\\\")
            if is_remote or at_proxy is None or at_proxy.is_windows or folder in told:
                continue  # another machine's share, or a mover on the host itself
            told.add(folder)
            yield _share_finding(folder, place, listed, right, account)


def _share_finding(
    folder: str, place: Place | None, shares: list[Share], right: str, account: str
) -> HostFinding:
    name = folder.rstrip("\\").rpartition("\\")[2].replace(":", "") or "VMs"
    holding = [item for item in shares if _holds(parsed_place(item.path or ""), place)]
    if not holding:
        return HostFinding(
            Level.WARNING,
            "shares",
            f"no share of the host shows {folder}",
            f"on the host: New-SmbShare -Name '{name}' -Path '{folder}' -CachingMode None "
            + (f"-FullAccess '{account}'" if right == "Full" else f"-ReadAccess '{account}'"),
        )
    wanted = ("full", "change") if right == "Full" else ("full", "change", "read")
    for share in holding:
        allowed = [entry.split(":", 2) for entry in share.access]
        who = [
            name
            for kind, what, name in (entry for entry in allowed if len(entry) == 3)
            if kind.lower() == "allow" and what.lower() in wanted
        ]
        if who:
            text = f"{share.name} shows {folder} to {', '.join(who[:SHOWN_MAX])}"
            return HostFinding(Level.OK, "shares", text)
    return HostFinding(
        Level.WARNING,
        "shares",
        f"{holding[0].name} shows {folder}, and lets nobody {_verb(right)} it",
        f"on the host: Grant-SmbShareAccess -Name '{holding[0].name}' -AccountName '{account}' "
        f"-AccessRight {right} -Force",
    )


def _verb(right: str) -> str:
    return "write" if right == "Full" else "read"


def _holds(share: Place | None, folder: Place | None) -> bool:
    if share is None or folder is None or share.anchor != folder.anchor:
        return False
    return share.folded == folder.folded[: len(share.parts)]
