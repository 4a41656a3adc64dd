"""`standby infrastructure check`: every part of the installation, tried from whoever needs it.

The server connects to each mover; each mover that sends connects to those it would send to; paths
are looked at by whoever opens them. All of it at once, each bounded by a deadline, so that a
machine that is away costs its own line only. Nothing is changed.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import standby
from standby.clock import Clock
from standby.errors import (
    CertificateError,
    CertificateRefused,
    LinkError,
    LinkTimeout,
    RefusedByPeer,
    RepositoryError,
    StandbyError,
    VersionMismatch,
    error_from_wire,
)
from standby.repository import Repository
from standby.repository.database import FILE_NAME
from standby.road.probing import looked_at
from standby.server.config import Config, MoverConfig
from standby.server.fleet import Fleet, needed_roles
from standby.server.proxies import all_proxies, mapped_path
from standby.server.wan_config import WanConfig
from standby.units import GiB, format_bytes
from standby.wire.link import Link
from standby.wire.messages import Call, Failed, Reply

SKEW_MAX_S = 30.0
"""Tickets of a task allow for 60 s; more than half of that wants to be looked at."""
DAYS_MIN = 14
"""Certificates renew themselves well before this is left of them."""
FREE_MIN = 5 * GiB
ANSWER_S = 30.0
AT_ONCE = 16


class Level(enum.StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Check:
    """One line: `what` was tried, seen from `seen_from`; `text` what was found, `hint` what to do
    about it."""

    level: Level
    seen_from: str
    what: str
    text: str
    hint: str = ""


Progress = Callable[[int, int], None]


def checked(
    fleet: Fleet, config: Config, clock: Clock, progress: Progress | None = None
) -> list[Check]:
    """Every check, in order of who made it and of what."""
    movers = _Movers(fleet, config, clock)
    tasks: list[Callable[[], list[Check]]] = [
        lambda mover=mover: movers.connected(mover)  # type: ignore[misc]
        for mover in config.movers.values()
    ]
    done = 0
    found: list[Check] = []

    def run(wanted: Sequence[Callable[[], list[Check]]], total: int) -> None:
        nonlocal done
        for checks in pool.map(lambda task: task(), wanted):
            found.extend(checks)
            done += 1
            if progress is not None:
                progress(done, total)

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="check") as pool:
        later = [*_roads(config, movers), *_places(config, movers), *_keys(config)]
        try:
            run(tasks, len(tasks) + len(later))
            run(later, len(tasks) + len(later))
        finally:
            movers.close()
    return sorted(found, key=lambda item: (item.seen_from != SERVER, item.seen_from, item.what))


SERVER = "server"


class _Movers:
    """A control connection to each mover, for the checks alone: one that is away is not waited for
    as sessions do."""

    def __init__(self, fleet: Fleet, config: Config, clock: Clock) -> None:
        self._fleet = fleet
        self._config = config
        self._clock = clock
        self._links: dict[str, _Asking] = {}
        self.described: dict[str, dict[str, Any]] = {}

    def connected(self, mover: MoverConfig) -> list[Check]:
        """Connect to the mover, and what it says of itself."""
        what = f"mover {mover.name}"
        try:
            link = self._fleet.new_link(mover.name)
        except StandbyError as exc:
            return [Check(Level.ERROR, SERVER, what, str(exc), _advice(exc, mover))]
        self._links[mover.name] = asking = _Asking(link, mover.name)
        try:
            told = asking.call("join", generation=0)  # a guest: fences nobody, is fenced by nobody
            before = self._clock.now()
            theirs = asking.call("probe_clock")
            after = self._clock.now()
        except StandbyError as exc:
            return [Check(Level.ERROR, SERVER, what, str(exc), _advice(exc, mover))]
        self.described[mover.name] = told
        return [
            Check(Level.OK, SERVER, what, f"connected at {mover.address}"),
            *self._judged(mover.name, what, told),
            _clock_check(what, datetime.fromisoformat(theirs), before, after),
            *self._certificate(asking, what),
        ]

    def _judged(self, name: str, what: str, told: dict[str, Any]) -> Iterator[Check]:
        if told["version"] == standby.__version__:
            yield Check(Level.OK, SERVER, f"{what} release", told["version"])
        else:
            text = f"{told['version']}; this server is {standby.__version__}"
            hint = "Bring both to the same release"
            yield Check(Level.WARNING, SERVER, f"{what} release", text, hint)
        missing = [role for role in needed_roles(self._config, name) if role not in told["roles"]]
        roles = ", ".join(told["roles"])
        if missing and _is_used(self._config, name):
            text = f"{roles}; standby.toml needs {', '.join(missing)} of it"
            hint = f"Add them to roles in {name}'s mover.toml, with a certificate for them"
            yield Check(Level.ERROR, SERVER, f"{what} roles", text, hint)
        else:
            yield Check(Level.OK, SERVER, f"{what} roles", roles)
        if any(wan.target == name for wan in self._config.wans.values()) and not told.get("cache"):
            text = "it keeps no global cache, so nothing is found again"
            hint = f'Write cache = "PATH" into [wan] of {name}\'s mover.toml'
            yield Check(Level.WARNING, SERVER, f"{what} cache", text, hint)
        if not told["roots"] and told["roles"] != ["wan"]:
            hint = f"Add [roots] to {name}'s mover.toml"
            yield Check(Level.WARNING, SERVER, f"{what} roots", "it may open no folder", hint)
        kept = [f"{key} = {value}" for key, value in sorted(told["protect"].items()) if value]
        if "target" in told["roles"]:
            text = ", ".join(kept) if kept else "the target has no rules of its own"
            yield Check(Level.OK, SERVER, f"{what} rules", text)

    def _certificate(self, asking: _Asking, what: str) -> list[Check]:
        try:
            told = asking.call("certificate_request")
        except StandbyError:
            return []  # one without TLS has none
        ends = datetime.fromisoformat(told["not_after"])
        days = (ends - self._clock.now()).days
        text = f"{days} days left, until {ends.astimezone(UTC):%Y-%m-%d}"
        if days >= DAYS_MIN:
            return [Check(Level.OK, SERVER, f"{what} certificate", text)]
        hint = "It should have renewed itself: is `standby server` connected, and the clock right?"
        return [Check(Level.WARNING, SERVER, f"{what} certificate", text, hint)]

    def call(self, mover: str, verb: str, **arguments: Any) -> Any:
        """Ask a mover that was connected; LinkError for one that was not."""
        asking = self._links.get(mover)
        if asking is None or mover not in self.described:
            raise LinkError(mover, "is not connected: see above")
        return asking.call(verb, **arguments)

    def place(self, mover: str, path: str) -> str | None:
        """The path in the mover's words, None where it lies below none of its roots."""
        roots = self.described[mover]["roots"]
        return mapped_path(path, {folder: f"{name}:" for name, folder in roots.items()})

    def close(self) -> None:
        """End the connections."""
        for asking in self._links.values():
            asking.close()


class _Asking:
    """One question at a time over a control link, each answered in time or never."""

    def __init__(self, link: Link, mover: str) -> None:
        self._link = link
        self._mover = mover
        self._lock = threading.Lock()
        self._number = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"ask {mover}")

    def call(self, verb: str, **arguments: Any) -> Any:
        """The verb's result, or its error; LinkTimeout after ANSWER_S."""
        with self._lock:
            future = self._pool.submit(self._answer, verb, arguments)
            try:
                return future.result(ANSWER_S)
            except FutureTimeout:
                self._link.shutdown()
                problem = f"no answer to {verb} within {ANSWER_S:.0f} s"
                raise LinkTimeout(self._mover, problem) from None

    def _answer(self, verb: str, arguments: dict[str, Any]) -> Any:
        self._number += 1
        self._link.send(Call(self._number, verb, arguments))
        while True:
            message, _ = self._link.receive()
            if isinstance(message, Failed) and message.id in (0, self._number):
                raise error_from_wire(message.error)
            if isinstance(message, Reply) and message.id == self._number:
                return message.result

    def close(self) -> None:
        """End the connection."""
        self._link.shutdown()
        self._pool.shutdown(wait=True)
        self._link.close()


def _clock_check(what: str, theirs: datetime, before: datetime, after: datetime) -> Check:
    """How far the mover's clock is from ours: its time lies between ours before and after."""
    ahead_s = (theirs - after).total_seconds()
    behind_s = (before - theirs).total_seconds()
    skew_s = max(ahead_s, behind_s, 0.0)
    which = "ahead" if ahead_s > behind_s else "behind"
    if skew_s < SKEW_MAX_S:
        return Check(Level.OK, SERVER, f"{what} clock", "as the server's")
    hint = "Have both take their time from the same source (NTP)"
    return Check(Level.ERROR, SERVER, f"{what} clock", f"{skew_s:.0f} s {which}", hint)


def _is_used(config: Config, mover: str) -> bool:
    tables = (config.proxies, config.hosts, config.stores)
    is_relay = any(mover in (wan.source, wan.target) for wan in config.wans.values())
    return is_relay or any(item.mover == mover for table in tables for item in table.values())


def _advice(error: StandbyError, mover: MoverConfig) -> str:
    """What to do about a mover that cannot be connected to."""
    if isinstance(error, CertificateError):
        return "Run `standby ca init` on the server's machine, or correct [server] identity"
    if isinstance(error, CertificateRefused):
        return f"Is another mover at {mover.address}? Else enrol {mover.name} again"
    if isinstance(error, RefusedByPeer):
        return f"Is the server of the same installation as {mover.name}, and not revoked?"
    if isinstance(error, VersionMismatch):
        return "Bring both machines to the same release"
    return f"Does `standby mover run` run there, and does the firewall let {mover.address} through?"


# --- between movers --------------------------------------------------------------------------


def _roads(config: Config, movers: _Movers) -> list[Callable[[], list[Check]]]:
    """A check for each pair of movers that a job may use: those that send to those that receive,
    and to those that keep the repository; where there are WAN accelerators, the way over them."""
    pairs: set[tuple[str, str, str, str]] = set()
    for job in config.jobs.values():
        source, target = config.hosts[job.source], config.hosts[job.target]
        if not source.mover or not target.mover:
            continue
        senders = _side(config, job.proxies, "source", source.name)
        receivers = _side(config, job.target_proxies, "target", target.name)
        pairs |= {(one, other, "target", "source") for one in senders for other in receivers}
        keeper = config.stores[job.repository].mover
        pairs |= {(one, keeper, "repository", "source") for one in senders if keeper}
        wan = config.wans.get(job.wan)
        if wan is not None and wan.mode != "direct":
            pairs |= {(one, wan.source, "wan", "source") for one in senders}
            pairs.add((wan.source, wan.target, "wan", "wan"))
            pairs |= {(wan.target, other, "target", "wan") for other in receivers}
    return [
        lambda pair=pair: [_road(config, movers, *pair)]  # type: ignore[misc]
        for pair in sorted(pairs)
        if pair[0] != pair[1]
    ]


def _side(config: Config, chosen: Sequence[str], side: str, host: str) -> set[str]:
    """The movers of the proxies that may work on that side for the host."""
    found = all_proxies(config)
    own = config.hosts[host].mover
    return {
        proxy.mover
        for name, proxy in found.items()
        if proxy.mover
        and proxy.side in (side, "both")
        and (not chosen or name in chosen)
        and (host in proxy.paths or proxy.mover == own)
    }


def _road(
    config: Config, movers: _Movers, sender: str, receiver: str, role: str, own_role: str
) -> Check:
    address = config.movers[receiver].address
    what = f"mover {receiver} as {role}"
    try:
        took_s = movers.call(
            sender, "probe", name=receiver, address=address, role=role, own_role=own_role
        )
    except StandbyError as exc:
        hint = f"{sender} must reach {address}: name, route, firewall; both enrolled here"
        return Check(Level.ERROR, f"mover {sender}", what, str(exc), hint)
    text = f"connected at {address} in {took_s * 1000:.0f} ms"
    return Check(Level.OK, f"mover {sender}", what, text)


def _keys(config: Config) -> list[Callable[[], list[Check]]]:
    """A check for each tenant key that the file names; one that is not named is made when it is
    needed."""
    return [
        lambda wan=wan: [_key(config, wan)]  # type: ignore[misc]
        for wan in config.wans.values()
        if wan.key
    ]


def _key(config: Config, wan: WanConfig) -> Check:
    what = f"WAN accelerators {wan.name} key"
    try:
        config.wan_key(wan.name)
    except StandbyError as exc:
        return Check(Level.ERROR, SERVER, what, str(exc))
    return Check(Level.OK, SERVER, what, "can be read")


# --- folders ---------------------------------------------------------------------------------


def _places(config: Config, movers: _Movers) -> list[Callable[[], list[Check]]]:
    """A check for each folder, by whoever opens it."""
    targets = {job.target for job in config.jobs.values()}
    sources = {job.source for job in config.jobs.values()}
    wanted: list[tuple[str, str, str, bool]] = []
    for host in config.hosts.values():
        is_target = host.name in targets
        wanted.append((host.mover, f"host {host.name}", str(host.path), is_target))
    for store in config.stores.values():
        wanted.append((store.mover, f"repository {store.name}", str(store.path), True))
    for proxy in config.proxies.values():
        for name, paths in proxy.paths.items():
            writes = name in targets - sources and proxy.side in ("target", "both")
            for seen_as in paths.values():
                what = f"host {name} as proxy {proxy.name} sees it"
                wanted.append((proxy.mover, what, seen_as, writes))
    return [
        lambda item=item: _place(config, movers, *item)  # type: ignore[misc]
        for item in wanted
    ]


def _place(
    config: Config, movers: _Movers, mover: str, what: str, path: str, writes: bool
) -> list[Check]:
    seen_from = f"mover {mover}" if mover else SERVER
    try:
        told = _looked_at(movers, mover, path, writes)
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


def _looked_at(movers: _Movers, mover: str, path: str, writes: bool) -> dict[str, Any]:
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


def _repository(movers: _Movers, mover: str, seen_from: str, what: str, path: str) -> list[Check]:
    """Whether the repository opens; one that was never made is made by the first session."""
    try:
        if mover:
            place = movers.place(mover, path)
            if movers.call(mover, "probe_place", path=place)["problem"]:
                replicas = []  # made by the first session
            else:
                replicas = movers.call(mover, "repository_replicas", repository=place)
        elif not (Path(path) / FILE_NAME).exists():
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
