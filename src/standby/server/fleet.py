"""The service movers of an installation: connected when first needed, and what they see.

One object per backup server. `place` turns a path, as a mover's machine has it, into the
"ROOT:relative" that its verbs take (road.places); the mover itself says which roots it has.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import CertificateError, ConfigurationError, MoverLeft, NoProxy
from standby.host.seen_paths import mapped_path
from standby.model.job import ReplicationJob
from standby.server.certificates import CertificateCare
from standby.server.config import Config, MoverConfig
from standby.server.proxies import Eligibility, Side, eligible_proxies
from standby.server.service_mover import Reconnect, ServiceMover
from standby.server.traffic_server import TrafficServer
from standby.wire import plain
from standby.wire.identity import IdentityFolder
from standby.wire.link import Link
from standby.wire.pacing import pace
from standby.wire.tls import connect

CONNECT_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Station:
    """A mover at work for a proxy, a host or a repository; `path` as its machine has it. `weight`
    is how many tasks it may do at once, `role` what it must be for that, where that is to be asked.
    """

    mover: str
    path: str
    weight: int = 1
    role: str = ""


class Fleet:
    """The service movers of the configuration. Thread-safe."""

    def __init__(
        self,
        config: Config,
        clock: Clock = SYSTEM_CLOCK,
        *,
        reconnect: Reconnect | None = None,
        make_link: Callable[[MoverConfig], Link] | None = None,
    ) -> None:
        """`make_link` replaces the TLS connection, for tests."""
        self.on_state: Callable[[str, str], None] = lambda mover, problem: None
        self.on_problem: Callable[[str, str], None] = lambda mover, text: None
        """Told of certificates that could not be renewed."""
        self._generation: Callable[[], int] = lambda: 0
        self._is_closed = False
        self._config = config
        self._clock = clock
        server = config.server
        self.reconnect = reconnect or Reconnect(
            server.reconnect_every_s, server.reconnect_for_s, server.hung_after_s
        )
        self._make_link = make_link or self._link
        self._shows_itself = make_link is None
        self._lock = threading.Lock()
        self._movers: dict[str, ServiceMover] = {}
        self._roots: dict[str, Mapping[str, str]] = {}
        self._roles: dict[str, Sequence[str]] = {}
        self._joined: dict[str, int] = {}
        self._writers: Counter[str] = Counter()
        self._identity: IdentityFolder | None = None
        self._care: CertificateCare | None = None
        self.traffic = TrafficServer(config.traffic, config.time_zone, self._senders, clock)

    def _link(self, mover: MoverConfig) -> Link:
        role = _greeted_as(needed_roles(self._config, mover.name))
        folder = self._config.server.identity
        if mover.plain:
            us = self._config.installation
            secret = plain.Secret(folder)
            return plain.connect(
                mover.address, secret, us, "server", mover.name, role, CONNECT_TIMEOUT_S
            )
        with _of_a_server():
            return connect(
                mover.address, self._shown(), mover.name, role, CONNECT_TIMEOUT_S, role="server"
            )

    def check_identity(self) -> None:
        """CertificateError where this server cannot show movers who it is."""
        if self._shows_itself:
            with _of_a_server():
                identity = IdentityFolder(self._config.server.identity, self._clock)
                identity.refresh()
                identity.check_own()

    def _shown(self) -> IdentityFolder:
        """The server's own identity, looked after from now on."""
        with self._lock:
            if self._identity is None:
                server = self._config.server
                self._identity = IdentityFolder(server.identity, self._clock)
                self._care = CertificateCare(
                    self._identity,
                    server.authority,
                    self._made,
                    self._clock,
                    lambda who, text: self.on_problem(who, text),
                )
                self._care.start()
            return self._identity

    def _made(self) -> list[ServiceMover]:
        with self._lock:
            return list(self._movers.values())

    def _senders(self) -> list[ServiceMover]:
        """All movers of the configuration, those that this process does not use too: what another
        one has them send counts under the same rules. Does not wait for a connection."""
        with self._lock:
            is_closed = self._is_closed
            new = [name for name in self._config.movers if name not in self._movers]
        if not is_closed:
            for name in new:
                with contextlib.suppress(MoverLeft):  # it was closed meanwhile
                    self.mover(name).wait_connected(0)
        return self._made()

    def has_given_up(self, name: str) -> bool:
        """Whether the mover of that name does not answer and is waited for no more."""
        with self._lock:
            mover = self._movers.get(name)
        return mover is not None and mover.is_given_up

    def is_fenced_by(self, name: str) -> bool:
        """Whether the mover of that name refused this server, for a newer one drives it."""
        with self._lock:
            mover = self._movers.get(name)
        return mover is not None and mover.is_fenced

    def try_again(self) -> None:
        """Look whether movers that were given up answer by now; does not wait."""
        for mover in self._made():
            if mover.is_given_up:
                mover.wait_connected(0)

    # --- who this server is ------------------------------------------------------------------

    def lead(self, generation: Callable[[], int]) -> None:
        """Speak to movers as the active server of that generation, 0 for a guest (RULES 18): links
        that stand are told too."""
        self._generation = generation
        for mover in self._made():
            mover.tell("join", generation=generation())

    def _noticed(self, name: str, problem: str) -> None:
        generation = self._generation()
        if not problem and self._joined.get(name) != generation:  # `lead` while it was greeted
            self.mover(name).tell("join", generation=generation)
        self.on_state(name, problem)

    def _greet(self, name: str, ask: Callable[..., Any], link: Link) -> None:
        """What comes first on a new link: the mover may have been restarted since the last one."""
        self._joined[name] = self._generation()
        told = ask("join", generation=self._joined[name])
        self._roots[name] = told["roots"]
        self._roles[name] = told["roles"]
        self.traffic.greet(name, ask)
        care = self._care
        if care is not None:
            care.tend(ask, link.remote)

    def new_link(self, name: str) -> Link:
        """A control link of one's own to the mover of that name, to be closed by the caller."""
        return self._make_link(self._config.movers[name])

    def mover(self, name: str) -> ServiceMover:
        """The mover of that name in the configuration."""
        with self._lock:
            if self._is_closed:
                raise MoverLeft(name, "this server ends")
            if name not in self._movers:
                config = self._config.movers[name]
                self._movers[name] = ServiceMover(
                    name,
                    lambda: pace(self._make_link(config), self.traffic.throttles, is_control=True),
                    self.reconnect,
                    self._clock,
                    lambda problem: self._noticed(name, problem),
                    lambda ask, link: self._greet(name, ask, link),
                )
            return self._movers[name]

    def close(self) -> None:
        """End every connection, and make none any more; the movers go on with their tasks."""
        with self._lock:
            self._is_closed = True
            movers, self._movers = list(self._movers.values()), {}
            care, self._care = self._care, None
        self.traffic.close()
        for mover in movers:
            mover.close()
        if care is not None:
            care.close()

    def place(self, station: Station) -> str:
        """The station's path in its mover's own words; see `places`."""
        return self.places(station.mover, (station.path,))[0]

    def places(self, mover: str, paths: Sequence[str]) -> list[str]:
        """Paths of the mover's machine in its own words; ConfigurationError where one lies below
        none of the mover's roots."""
        if mover not in self._roots:
            self.mover(mover).call("ping")  # it says its roots when it is greeted
        roots = self._roots[mover]
        folders = {path: f"{name}:" for name, path in roots.items()}
        places = []
        for path in paths:
            place = mapped_path(path, folders)
            if place is None:
                known = ", ".join(f"{name} = {path}" for name, path in sorted(roots.items()))
                raise ConfigurationError(
                    path,
                    f"lies below none of the roots of mover {mover} ({known or 'it has none'})",
                    "Add a root to the mover's mover.toml, or correct the path",
                )
            places.append(place)
        return places

    def stations(self, job: ReplicationJob, side: Side) -> dict[str, Station]:
        """The proxies that see the job's host of that side, or, of the source's, a part of it, by
        name; NoProxy when none does."""
        found = self._found(job, side)
        stations = {
            name: Station(item.proxy.mover, item.paths[0], item.proxy.max_tasks, side)
            for name, item in found.eligible.items()
            if item.proxy.mover
        }
        if not stations:
            reasons = tuple(f"{name}: {why}" for name, why in sorted(found.refused.items()))
            raise NoProxy("", "", side, reasons)
        return stations

    def refused(
        self,
        job: ReplicationJob,
        disk: Sequence[str],
        failed: Collection[str] = (),
        node: str = "",
    ) -> tuple[tuple[str, str, str], ...]:
        """(side, name, reason) of the proxies that cannot take the disk of the job that has these
        files in the source's folder, also of those that `failed` at sending it. `node` is where
        the VM is, on a cluster."""
        avoid = dict.fromkeys(failed, "it failed at this disk before")
        found = (self._found(job, "source", disk, avoid, node), self._found(job, "target"))
        return tuple(
            (item.side, name, reason) for item in found for name, reason in item.refused.items()
        )

    def readers(
        self, job: ReplicationJob, disk: Sequence[str], node: str = ""
    ) -> dict[str, tuple[str, ...]]:
        """The files of a disk, in the source's folder, as each of the proxies that see them all
        has them on its machine, by the proxy's name; `node` as for `refused`."""
        found = self._found(job, "source", disk, node=node)
        return {name: item.paths for name, item in found.eligible.items()}

    def _found(
        self,
        job: ReplicationJob,
        side: Side,
        disk: Sequence[str] = (),
        avoid: Mapping[str, str] | None = None,
        node: str = "",
    ) -> Eligibility:
        host = self._config.hosts[job.source if side == "source" else job.target]
        files = [host.file(name) for name in disk]
        if side == "target":
            files = [str(host.path)]
        return eligible_proxies(self._config, job, side, files, avoid=avoid, node=node)

    @contextlib.contextmanager
    def writer(self, proxy: str) -> Iterator[None]:
        """Count the proxy as the writer of one replica until the block ends."""
        with self._lock:
            self._writers[proxy] += 1
        try:
            yield
        finally:
            with self._lock:
                self._writers[proxy] -= 1

    def least_busy(self, stations: Mapping[str, Station], avoid: Collection[str] = ()) -> str:
        """The proxy that writes the fewest replicas for its size; those that lack the role, do not
        answer, and those to avoid, only where there is no other."""

        def rank(name: str) -> tuple[bool, bool, bool, float, str]:
            station = stations[name]
            is_away = bool(self.mover(station.mover).problem)
            share = self._writers[name] / max(1, station.weight)
            return self.lacks_role(station), is_away, name in avoid, share, name

        chosen = min(stations, key=rank)
        for _ in range(len(stations) - 1):  # whether one answers is known once it was asked
            if self.mover(stations[chosen].mover).answers() and not self.lacks_role(
                stations[chosen]
            ):
                break
            chosen = min(stations, key=rank)
        return chosen

    def lacks_role(self, station: Station) -> bool:
        """Whether its mover has said its roles, and the one that the station needs is not there."""
        told = self._roles.get(station.mover)
        return bool(station.role) and told is not None and station.role not in told

    def check_roles(self, job: ReplicationJob) -> None:
        """ConfigurationError where all movers that could read the job's source, or write its
        target, have said that they are not what is needed. Who does not answer is asked once.
        Where there are none it is for each VM to say so (`stations`)."""
        for side, host in (("source", job.source), ("target", job.target)):
            try:
                stations = self.stations(job, side)  # type: ignore[arg-type]
            except NoProxy:
                continue
            station = stations[self.least_busy(stations)]
            if not self.mover(station.mover).answers() or not self.lacks_role(station):
                continue
            roles = ", ".join(self._roles[station.mover]) or "none"
            does = "reads" if side == "source" else "writes"
            raise ConfigurationError(
                f"[jobs.{job.name}]",
                f"no proxy {does} host {host}: mover {station.mover} is no {side}, its roles are "
                f"{roles}",
                f"Give mover {station.mover} the role {side}, or write a [proxies.NAME] of another "
                f"mover that sees {host}",
            )


@contextlib.contextmanager
def _of_a_server() -> Iterator[None]:
    """What is wrong with an identity is mended at a server by other commands than at a mover."""
    try:
        yield
    except CertificateError as exc:
        if "standby mover enroll" in exc.hint:
            is_there = "cannot be read" not in exc.problem
            exc.hint = (
                "If the clock is right, `standby ca renew` makes a new one"
                if is_there
                else "`standby ca init` makes the authority and this server's certificate"
            )
        raise


def _greeted_as(roles: list[str]) -> str:
    """The role that a mover must have for the server to connect to it: the one that least depends
    on what other movers do, so that one which lacks another role can be asked and named."""
    return next((role for role in ("host", "repository") if role in roles), roles[0])


def needed_roles(config: Config, mover: str) -> list[str]:
    """The roles that the configuration wants the mover in: a proxy of both sides is needed on those
    on which a job's host has disks for it, on both where it has none for any."""
    used = _proxy_roles(config, mover)
    roles = [
        role
        for proxy in config.proxies.values()
        for role in ("source", "target")
        if proxy.mover == mover and (proxy.side == role or (proxy.side == "both" and not used))
    ]
    roles = [role for role in ("source", "target") if role in {*roles, *used}]
    if any(store.mover == mover for store in config.stores.values()):
        roles.append("repository")
    if any(host.mover == mover for host in config.hosts.values()):
        roles.append("host")
    if any(mover in (wan.source, wan.target) for wan in config.wans.values()):
        roles.append("wan")
    return roles or ["source"]


def _proxy_roles(config: Config, mover: str) -> set[str]:
    """The sides on which the mover can take disks of a job, as a proxy or as its host's own."""
    kinds: dict[tuple[Side, str, tuple[str, ...]], ReplicationJob] = {}
    for job in config.jobs.values():
        kinds["source", job.source, job.proxies] = job
        kinds["target", job.target, job.target_proxies] = job
    return {
        side
        for (side, host, _), job in kinds.items()
        for item in eligible_proxies(
            config, job, side, [str(config.hosts[host].path)] if side == "target" else []
        ).eligible.values()
        if item.proxy.mover == mover
    }
