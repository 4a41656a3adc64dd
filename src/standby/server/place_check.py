"""Of the infrastructure check: each folder, looked at by whoever opens it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from standby.errors import RepositoryError, StandbyError
from standby.files import is_there
from standby.repository import Repository
from standby.repository.database import FILE_NAME
from standby.road.probing import looked_at
from standby.server.config import Config
from standby.server.config_values import host_part
from standby.server.mover_check import SERVER, Check, Level, Movers
from standby.units import GiB, format_bytes

FREE_MIN = 5 * GiB


def place_checks(config: Config, movers: Movers) -> list[Callable[[], list[Check]]]:
    """A check for each folder, by whoever opens it."""
    targets = {job.target for job in config.jobs.values()}
    sources = {job.source for job in config.jobs.values()}
    wanted: list[tuple[str, str, str, bool]] = []
    for host in config.hosts.values():
        if not host.is_folder:
            continue
        is_target = host.name in targets
        wanted.append((host.mover, f"host {host.name}", str(host.path), is_target))
    for store in config.stores.values():
        wanted.append((store.mover, f"repository {store.name}", str(store.path), True))
    for proxy in config.proxies.values():
        for name, paths in proxy.paths.items():
            writes = host_part(name) in targets - sources and proxy.side in ("target", "both")
            for seen_as in paths.values():
                what = f"host {name} as proxy {proxy.name} sees it"
                wanted.append((proxy.mover, what, seen_as, writes))
    return [
        lambda item=item: _place(config, movers, *item)  # type: ignore[misc]
        for item in wanted
    ]


def _place(
    config: Config, movers: Movers, mover: str, what: str, path: str, writes: bool
) -> list[Check]:
    seen_from = f"mover {mover}" if mover else SERVER
    try:
        told = seen_by(movers, mover, path, writes)
    except StandbyError as exc:
        return [Check(Level.ERROR, seen_from, what, f"{path}: {exc}")]
    if told["problem"]:
        hint = "Mount it, or correct the path and its permissions"
        return [Check(Level.ERROR, seen_from, what, f"{path}: {told['problem']}", hint)]
    free = int(told["free_bytes"])
    text = f"{path}: {'can be written' if writes else 'can be read'}, {format_bytes(free)} free"
    if writes and free < FREE_MIN:
        level, hint = Level.WARNING, "Free some space, or keep fewer restore points"
    else:
        level, hint = Level.OK, ""
    found = [Check(level, seen_from, what, text, hint)]
    if what.startswith("repository "):
        found += _repository(movers, mover, seen_from, what, path)
    return found


def seen_by(movers: Movers, mover: str, path: str, writes: bool) -> dict[str, Any]:
    """What is at a path as a mover sees it, or, of no mover, this machine: `problem`, '' for none,
    and `free_bytes`."""
    if not mover:
        return looked_at(Path(path), writes)
    if mover not in movers.described:
        return {"problem": f"mover {mover} is not connected", "free_bytes": 0}
    place = movers.place(mover, path)
    if place is None:
        roots = ", ".join(movers.described[mover]["roots"].values()) or "none"
        return {"problem": f"lies below none of the mover's roots ({roots})", "free_bytes": 0}
    told: dict[str, Any] = movers.call(mover, "probe_place", path=place, writes=writes)
    return told


def _repository(movers: Movers, mover: str, seen_from: str, what: str, path: str) -> list[Check]:
    """Whether the repository opens; one that was never made is made by the first session."""
    try:
        if mover:
            place = movers.place(mover, path)
            if movers.call(mover, "probe_place", path=place)["problem"]:
                replicas = []  # made by the first session
            else:
                replicas = movers.call(mover, "repository_replicas", repository=place)
        elif not is_there(Path(path) / FILE_NAME):
            replicas = []
        else:
            with Repository(Path(path)) as repository:
                replicas = repository.replicas()
    except StandbyError as exc:
        if isinstance(exc, RepositoryError) and "does not exist" in exc.problem:
            return [Check(Level.OK, seen_from, f"{what} opens", "not made yet")]
        hint = "`standby job start` builds it anew when it is moved away"
        return [Check(Level.ERROR, seen_from, f"{what} opens", str(exc), hint)]
    return [Check(Level.OK, seen_from, f"{what} opens", f"{len(replicas)} replicas")]
