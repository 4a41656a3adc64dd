"""`standby host check`: a Hyper-V host asked by its doctor, its disks as each proxy sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from standby.clock import Clock
from standby.host.hyperv.credentials import Access
from standby.host.hyperv.doctor import examined
from standby.host.hyperv.doctor_rows import HostFinding, Level, Share
from standby.host.hyperv.door import Door
from standby.host.hyperv.machines import HostMachine
from standby.host.seen_paths import Place, mapped_path, parsed_place
from standby.server.config import Config, ProxyConfig

Look = Callable[[ProxyConfig, str], str]
"""(proxy, path as it sees it) to what is wrong with that folder there, '' for nothing."""

SHOWN_MAX = 3


def checked_host(
    config: Config, access: Access, door: Door, clock: Clock, look: Look
) -> list[HostFinding]:
    """Everything about one host of the configuration, or about one node of a cluster."""
    told = examined(access, door, clock)
    machines = told.inventory.machines if told.inventory else ()
    found = list(told.findings)
    found += seen_findings(config, access.host, machines, look)
    if told.shares is not None:
        found += share_findings(config, access.host, told.shares, _account(access))
    return found


def _account(access: Access) -> str:
    return access.username or "ACCOUNT"


def seen_findings(
    config: Config, host: str, machines: Iterable[HostMachine], look: Look
) -> Iterator[HostFinding]:
    """Whether the proxies see the folders of the VMs' disks, each by its own `paths`."""
    folders = _folders(machines)
    proxies = [item for item in config.proxies.values() if host in item.paths]
    if not proxies:
        example = next(iter(folders), "C:\\ClusterStorage\\Volume1")
        yield HostFinding(
            Level.ERROR,
            "proxies",
            "no proxy sees its disks",
            f"share the folder, mount it, and write [proxies.NAME.paths] {host} = "
            f"{{ '{example}' = \"/mnt/{host}\" }}",
        )
        return
    blind = {
        folder: names for folder, names in folders.items() if not _seers(proxies, host, folder)
    }
    for folder, names in blind.items():
        yield HostFinding(
            Level.ERROR,
            "proxies",
            f"none of {', '.join(item.name for item in proxies)} sees {folder} ({_shown(names)})",
            f"write it, or a folder above it, into [proxies.{proxies[0].name}.paths] {host}",
        )
    for proxy in proxies:
        yield from _as_seen_by(proxy, host, folders, look)


def _as_seen_by(
    proxy: ProxyConfig, host: str, folders: dict[str, list[str]], look: Look
) -> Iterator[HostFinding]:
    what = f"proxy {proxy.name}"
    paths = {folder: seen for folder in folders if (seen := mapped_path(folder, proxy.paths[host]))}
    for folder, seen in (paths or proxy.paths[host]).items():
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


def _seers(proxies: Iterable[ProxyConfig], host: str, folder: str) -> list[str]:
    return [item.name for item in proxies if mapped_path(folder, item.paths[host])]


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_MAX} more" if len(names) > SHOWN_MAX else ""
    return f"VM {', '.join(names[:SHOWN_MAX])}{more}"


def share_findings(
    config: Config, host: str, shares: Iterable[Share], account: str
) -> Iterator[HostFinding]:
    """Whether the host shares the folders that proxies on other machines are to see, and lets
    anyone in. The folder's own rights (NTFS) count beside these."""
    targets = {job.target for job in config.jobs.values()}
    right = "Full" if host in targets else "Read"
    told: set[str] = set()
    for proxy in config.proxies.values():
        for folder, seen in proxy.paths.get(host, {}).items():
            place, at_proxy = parsed_place(folder), parsed_place(seen)
            is_remote = place is None or place.anchor.startswith("\\\\")
            if is_remote or at_proxy is None or at_proxy.is_windows or folder in told:
                continue  # another machine's share, or a mover on the host itself
            told.add(folder)
            yield _share_finding(folder, place, list(shares), right, account)


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
