"""The global caches of the pairs in standby.toml, asked of the movers that have them open: they are
looked after while jobs run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from standby.errors import ConfigurationError, StandbyError, UnknownName
from standby.ports import Progress
from standby.road.wan_room import RECEIVE, SEND
from standby.server.config import Config
from standby.server.fleet import Fleet, Station
from standby.server.long_calls import long_call
from standby.server.service_mover import ServiceMover
from standby.wan.checking import CheckReport
from standby.wan.counting import CacheStatus
from standby.wan.populating import PopulateReport

Told = Callable[[str, int, int], None]
"""Progress: a label, bytes done, bytes in all."""


@dataclass(frozen=True, slots=True)
class DisksStatus:
    """The disks under way at one accelerator, those that wait for room, and room for how many."""

    under_way: int
    waiting: int
    at_once: int


@dataclass(frozen=True, slots=True)
class PairStatus:
    """A pair of standby.toml, and the cache of its target as that mover tells of it; None where it
    keeps none, or cannot be asked: `problem`. `sending` are the disks of its source's mover,
    `receiving` those of its target's, of all its pairs; None where it cannot be asked."""

    pair: str
    source: str
    target: str
    mode: str
    if_away: str
    problem: str
    cache: CacheStatus | None
    sending: DisksStatus | None = None
    receiving: DisksStatus | None = None


class MoverCache:
    """The cache of one mover. Raises what keeps it from being asked."""

    def __init__(self, name: str, fleet: Fleet) -> None:
        """`name` is the mover's in the configuration."""
        self.label = f"mover {name}"
        self._name = name
        self._fleet = fleet

    def _mover(self) -> ServiceMover:
        """The mover, if it answers: who looks after a cache does not wait for one to come back."""
        mover = self._fleet.mover(self._name)
        if not mover.answers():
            raise mover.why_away()
        return mover

    def told(self) -> CacheStatus | None:
        """What it takes, holds and did; None where the mover keeps no cache."""
        return msgspec.convert(self._mover().call("wan_status"), CacheStatus | None)

    def status(self) -> CacheStatus:
        """As `told`; ConfigurationError where the mover keeps no cache."""
        found = self.told()
        if found is None:
            raise ConfigurationError(
                self.label,
                "keeps no global cache",
                f"Name one in [wan] of {self._name}'s mover.toml",
            )
        return found

    def verify(
        self, keys: Sequence[bytes], progress: Progress | None, *, drop: bool
    ) -> CheckReport:
        """See GlobalCache."""
        told = long_call(
            self._mover(), "wan_verify", progress, keys=[key.hex() for key in keys], drop=drop
        )
        told.pop("is_ok")
        return msgspec.convert(told, CheckReport)

    def clear(self, key: bytes | None) -> int:
        """See GlobalCache."""
        return int(self._mover().call("wan_clear", key="" if key is None else key.hex()))

    def disks(self, places: Sequence[str]) -> list[tuple[str, int]]:
        """Path and bytes of the disk files that `populate` would take in. Places are paths as the
        mover's machine has them, below its roots."""
        found = self._mover().call("wan_disks", places=self._places(places))
        return [(str(path), int(size)) for path, size in found]

    def populate(
        self,
        key: bytes,
        places: Sequence[str],
        told: Told | None,
        *,
        folders: Sequence[str] = (),
        in_place: bool = False,
    ) -> tuple[PopulateReport, int]:
        """See GlobalCache; and how many segments went for room."""
        found: dict[str, Any] = long_call(
            self._mover(),
            "wan_populate",
            None if told is None else lambda done, total: told(self.label, done, total),
            places=self._places(places),
            key=key.hex(),
            in_place=in_place,
            folders=self._places(folders),
        )
        evicted = int(found.pop("evicted"))
        return msgspec.convert(found, PopulateReport), evicted

    def _places(self, paths: Sequence[str]) -> list[str]:
        return [self._fleet.place(Station(self._name, path)) for path in paths]


class WanCaches:
    """The caches of a configuration."""

    def __init__(self, config: Config, fleet: Fleet) -> None:
        self._config = config
        self._fleet = fleet

    def of_mover(self, name: str) -> MoverCache:
        """The cache of the mover of that name."""
        if name not in self._config.movers:
            raise UnknownName("mover", name, tuple(self._config.movers))
        return MoverCache(name, self._fleet)

    def of_pair(self, name: str) -> MoverCache:
        """The cache of the pair of that name."""
        if name not in self._config.wans:
            raise UnknownName("WAN accelerators", name, tuple(self._config.wans))
        return self.of_mover(self._config.wans[name].target)

    def keys_of_mover(self, name: str) -> list[bytes]:
        """The tenant keys of the pairs whose cache the mover has, each once."""
        pairs = [wan.name for wan in self._config.wans.values() if wan.target == name]
        return list(dict.fromkeys(self.key_of_pair(pair) for pair in pairs))

    def key_of_pair(self, name: str) -> bytes:
        """The tenant key of the pair."""
        return bytes.fromhex(self._config.wan_key(name))

    def status(self) -> list[PairStatus]:
        """Every pair; one whose mover is away says so."""
        wans = self._config.wans.values()
        movers = {wan.target for wan in wans}
        for mover in {*movers, *(wan.source for wan in wans)}:
            self._fleet.mover(mover).wait_connected(0)  # all at once
        told = {mover: self._told(mover) for mover in movers}
        return [
            PairStatus(
                it.name,
                it.source,
                it.target,
                it.mode,
                it.if_away,
                *told[it.target],
                self._disks(it.source, SEND),
                self._disks(it.target, RECEIVE),
            )
            for it in wans
        ]

    def _disks(self, mover: str, side: str) -> DisksStatus | None:
        asked = self._fleet.mover(mover)
        try:
            return DisksStatus(*asked.call("wan_room")[side]) if asked.answers() else None
        except StandbyError:
            return None

    def _told(self, mover: str) -> tuple[str, CacheStatus | None]:
        try:
            found = self.of_mover(mover).told()
        except StandbyError as exc:
            return str(exc), None
        return ("" if found is not None else "it keeps no global cache"), found
