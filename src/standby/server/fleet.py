"""The service movers of an installation: connected when first needed, and what they see.

One object per backup server. `place` turns a path, as a mover's machine has it, into the
"ROOT:relative" that its verbs take (road.places); the mover itself says which roots it has.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import ConfigurationError, NoProxy
from standby.model.job import ReplicationJob
from standby.server.config import Config, MoverConfig
from standby.server.proxies import Side, eligible_proxies, mapped_path
from standby.server.service_mover import Reconnect, ServiceMover
from standby.wire.identity import IdentityFolder
from standby.wire.link import Link
from standby.wire.tls import connect

CONNECT_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Station:
    """A mover at work for a proxy, a host or a repository; `path` as its machine has it. `weight`
    is how many tasks it may do at once."""

    mover: str
    path: str
    weight: int = 1


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
        self._config = config
        self._clock = clock
        server = config.server
        self.reconnect = reconnect or Reconnect(server.reconnect_every_s, server.reconnect_for_s)
        self._make_link = make_link or self._tls_link
        self._lock = threading.Lock()
        self._movers: dict[str, ServiceMover] = {}
        self._roots: dict[str, Mapping[str, str]] = {}
        self._writers: Counter[str] = Counter()
        self._identity: IdentityFolder | None = None

    def _tls_link(self, mover: MoverConfig) -> Link:
        if self._identity is None:
            self._identity = IdentityFolder(self._config.server.identity, self._clock)
        role = needed_roles(self._config, mover.name)[0]
        return connect(
            mover.address, self._identity, mover.name, role, CONNECT_TIMEOUT_S, role="server"
        )

    def mover(self, name: str) -> ServiceMover:
        """The mover of that name in the configuration."""
        with self._lock:
            if name not in self._movers:
                config = self._config.movers[name]
                self._movers[name] = ServiceMover(
                    name,
                    lambda: self._make_link(config),
                    self.reconnect,
                    self._clock,
                    lambda problem: self.on_state(name, problem),
                )
            return self._movers[name]

    def close(self) -> None:
        """End every connection; the movers go on with their tasks."""
        with self._lock:
            movers, self._movers = list(self._movers.values()), {}
        for mover in movers:
            mover.close()

    def place(self, station: Station) -> str:
        """The station's path in its mover's own words; ConfigurationError where it lies below none
        of the mover's roots."""
        roots = self._roots.get(station.mover)
        if roots is None:
            roots = self.mover(station.mover).call("describe")["roots"]
            self._roots[station.mover] = roots
        folders = {path: f"{name}:" for name, path in roots.items()}
        place = mapped_path(station.path, folders)
        if place is None:
            known = ", ".join(f"{name} = {path}" for name, path in sorted(roots.items()))
            raise ConfigurationError(
                station.path,
                f"lies below none of the roots of mover {station.mover} ({known or 'it has none'})",
                "Add a root to the mover's mover.toml, or correct the path",
            )
        return place

    def forget_roots(self, mover: str) -> None:
        """Ask the mover anew: it was restarted, perhaps with another mover.toml."""
        self._roots.pop(mover, None)

    def stations(self, job: ReplicationJob, side: Side) -> dict[str, Station]:
        """The proxies that see the job's host of that side, by name; NoProxy when none does."""
        host = self._config.hosts[job.source if side == "source" else job.target]
        found = eligible_proxies(self._config, job, side, [str(host.path)])
        stations = {
            name: Station(item.proxy.mover, item.paths[0], item.proxy.max_tasks)
            for name, item in found.eligible.items()
            if item.proxy.mover
        }
        if not stations:
            reasons = tuple(f"{name}: {why}" for name, why in sorted(found.refused.items()))
            raise NoProxy("", "", side, reasons)
        return stations

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
        """The proxy that writes the fewest replicas for its size; those that do not answer, and
        those to avoid, only where there is no other."""

        def rank(name: str) -> tuple[bool, bool, float, str]:
            station = stations[name]
            is_away = bool(self.mover(station.mover).problem)
            return name in avoid, is_away, self._writers[name] / max(1, station.weight), name

        return min(stations, key=rank)


def needed_roles(config: Config, mover: str) -> list[str]:
    """The roles that the configuration wants the mover in."""
    roles = [
        role
        for proxy in config.proxies.values()
        for role in ("source", "target")
        if proxy.mover == mover and proxy.side in (role, "both")
    ]
    if any(store.mover == mover for store in config.stores.values()):
        roles.append("repository")
    if any(host.mover == mover for host in config.hosts.values()):
        roles.append("host")
    return list(dict.fromkeys(roles)) or ["source"]
