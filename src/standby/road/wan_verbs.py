"""The verbs of a WAN accelerator: both ends of a pair, for any number of disks at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import ProtocolError
from standby.road.connections import (
    BETWEEN_WANS,
    FROM_WAN,
    TO_WAN,
    Connections,
    Errand,
    Spec,
)
from standby.road.places import LOCAL_PLACES, Places
from standby.road.service_config import INDEX_BYTES, STORE_BYTES, WanConfig
from standby.road.source_wan import MODES, SourceWan
from standby.road.target_wan import TargetWan
from standby.road.verbs import answered
from standby.road.wan_cache import CachedContent, Caching, SharedCache
from standby.road.wan_newest import newest_point
from standby.road.wan_relay import telling
from standby.road.wan_room import RECEIVE, SEND, Room
from standby.road.wan_shares import LineShares
from standby.road.wan_upkeep import WanUpkeep, tenant_key
from standby.wan.limits import Limits
from standby.wan.pacing import Paces
from standby.wan.remembering import SourceMemory
from standby.wan.table import LookupTable
from standby.wire.link import Link
from standby.wire.tcp_info import told_of

T = TypeVar("T")

FAILED_MAX = 256
"""Tasks that failed of which is remembered what they did."""


class WanSent(msgspec.Struct, frozen=True):
    """What `wan_send` did: bytes on the connection between the accelerators, either way, and as an
    interface counts them (wire.tcp_info; 0 where the system does not tell); what `direct` mode
    would have sent, estimated; pieces by kind; units sent again; bytes by what they are for."""

    sent: int
    received: int
    direct: int
    pieces: dict[str, int]
    resent: int
    cpu_s: float
    mode: str
    wire_sent: int = 0
    wire_received: int = 0
    bytes: dict[str, int] = {}


class WanReceived(msgspec.Struct, frozen=True):
    """What `wan_receive` did, in pieces; `resent`: frames of which units came again."""

    asked: int
    found: int
    cached: int
    resent: int
    cpu_s: float
    warnings: list[str]


class WanVerbs:
    """Verbs of a WAN accelerator. A tenant's key is in the call alone, and in the memory of its
    task."""

    def __init__(
        self,
        connections: Connections,
        config: WanConfig | None,
        clock: Clock = SYSTEM_CLOCK,
        *,
        name: str = "",
        places: Places = LOCAL_PLACES,
    ) -> None:
        """`name` is the mover's own."""
        self._connections = connections
        own = config or WanConfig(None, Limits(0, 0))
        self._window_log = own.window_log
        self._rooms = {side: Room(own.disks_at_once, name, clock) for side in (SEND, RECEIVE)}
        self._shares = LineShares()
        self._clock = clock
        self.cache = SharedCache(config, clock)
        self._upkeep = WanUpkeep(self.cache, name, places)
        self._places = places
        self._memory = source_memory(config)
        self._paces = Paces()
        self._verbs: dict[str, Callable[..., Any]] = {
            "wan_send": self.wan_send,
            "wan_receive": self.wan_receive,
            "wan_enter": self.wan_enter,
            "wan_leave": self.wan_leave,
            "wan_room": self.wan_room,
            "wan_progress": self.wan_progress,
            "wan_told": self.wan_told,
            **self._upkeep.verbs,
        }
        self._sending: dict[str, Link] = {}
        self._failed = _Failed()

    def call(self, verb: str, arguments: dict[str, Any]) -> Any:
        """Run `verb`; NotImplemented for one of another role."""
        if verb == "progress":
            return self._upkeep.progress()
        return answered(self._verbs, verb, arguments)

    def cancel(self, task: str) -> None:
        """End what waits for room, or reads the cache or for it, under that id."""
        self._upkeep.cancel(task)
        self.wan_leave(task)

    def close(self) -> None:
        """Close the cache; what was taken in is kept."""
        self._upkeep.close()
        for room in self._rooms.values():
            room.close()
        self.cache.close()

    def wan_enter(self, disk: str, side: str, session: str = "", weight: float = 1) -> None:
        """Return when there is room to `send` or `receive` the disk task of that id."""
        if side not in self._rooms:
            raise ProtocolError("backup server", f"no side {side!r}")
        self._rooms[side].enter(disk, session, weight)

    def wan_leave(self, disk: str) -> None:
        """The disk task of that id will not begin, or wait any more."""
        for room in self._rooms.values():
            room.cancel(disk)

    def wan_room(self) -> dict[str, list[int]]:
        """{side: [disks that have room, disks that wait, room for so many]}."""
        return {side: [it.held, it.waiting, it.count] for side, it in self._rooms.items()}

    def wan_send(
        self,
        task: str,
        session: str,
        replica: str,
        disk_id: str,
        virtual_size: int,
        key: str,
        mode: str,
        incoming: Spec,
        outgoing: Spec,
        weight: float = 1,
    ) -> WanSent:
        """Pass one disk from its source proxy on to the target's accelerator."""
        tenant = tenant_key(key)
        if mode not in MODES:
            raise ProtocolError("backup server", f"no mode {mode!r}")
        near_errand = Errand(task, TO_WAN, disk_id, replica, weight=weight)
        far_errand = Errand(task, BETWEEN_WANS, disk_id, replica, weight=weight)
        with (
            self._rooms[SEND].use(task, session, weight),
            self._connections.take(incoming, near_errand) as (near, _),
            telling(near),
            self._connections.take(outgoing, far_errand) as (far, _),
            self._shares.joined(far, weight),
        ):
            memory = None
            if mode in ("auto", "full"):
                memory = self._memory.disk(tenant, replica, disk_id, virtual_size)
            station = SourceWan(
                task,
                near,
                far,
                tenant,
                virtual_size,
                self._window_log,
                mode,
                memory,
                session,
                self._paces,
            )
            self._sending[task] = far
            try:
                station.run()
            except BaseException:
                self._failed.sent[task] = what_was_sent(station, far)
                raise
            finally:
                del self._sending[task]
                if memory is not None:
                    memory.close()
            return what_was_sent(station, far)

    def wan_progress(self) -> dict[str, list[int]]:
        """{task: [bytes sent to the target's accelerator so far, received from it]}."""
        return {
            task: [link.sent_bytes, link.received_bytes]
            for task, link in list(self._sending.items())
        }

    def wan_told(self, disk: str) -> dict[str, WanSent | WanReceived | None]:
        """What a disk task did that failed here a while ago."""
        return {
            "sent": self._failed.sent.get(disk),
            "received": self._failed.received.get(disk),
        }

    def wan_receive(
        self,
        task: str,
        session: str,
        replica: str,
        disk_id: str,
        virtual_size: int,
        key: str,
        incoming: Spec,
        outgoing: Spec,
        path: str = "",
    ) -> WanReceived:
        """Pass one disk from the source's accelerator on to its target proxy. `path` is where the
        replica is, should this mover have that root."""
        tenant = tenant_key(key)
        near_errand = Errand(task, BETWEEN_WANS, disk_id, replica)
        far_errand = Errand(task, FROM_WAN, disk_id, replica)
        with (
            self._rooms[RECEIVE].use(task, session),
            self._connections.take(incoming, near_errand) as (near, _),
            telling(near),
            self._connections.take(outgoing, far_errand) as (far, _),
            newest_point(self._places, path, replica, disk_id, virtual_size) as newest,
        ):
            warned = self.cache.warned
            namespace, warnings = self.cache.namespace(tenant)
            content, caching = CachedContent(namespace), Caching(namespace, self._clock)
            station = TargetWan(
                task,
                near,
                far,
                tenant,
                virtual_size,
                self._window_log,
                content,
                caching,
                asks=namespace is not None,
                newest=newest,
            )
            try:
                station.run()
            except BaseException:
                self._failed.received[task] = what_was_received(station, content, caching, [])
                raise
            finally:
                caching.end()
                content.close()
            warnings += self.cache.warnings(warned)
            warnings += [text for text in (content.problem, caching.problem) if text]
            if caching.left_out:
                warnings.append(f"the global cache was too slow for {caching.left_out} pieces")
            return what_was_received(station, content, caching, warnings)


class _Kept(OrderedDict[str, T]):
    """What was told of the last tasks."""

    def __setitem__(self, task: str, told: T) -> None:
        super().__setitem__(task, told)
        while len(self) > FAILED_MAX:
            self.popitem(last=False)


class _Failed:
    """What tasks did that failed, for the report of their disk."""

    def __init__(self) -> None:
        self.sent: _Kept[WanSent] = _Kept()
        self.received: _Kept[WanReceived] = _Kept()


def what_was_sent(station: SourceWan, link: Link) -> WanSent:
    """As far as the station came."""
    told, (sent_before, received_before) = told_of(link.connection), link.wire_before
    return WanSent(
        link.sent_bytes,
        link.received_bytes,
        station.direct,
        station.pieces,
        station.sent.units_resent,
        station.cpu_s,
        station.mode,
        0 if told is None else told.wire_sent - sent_before,
        0 if told is None else told.wire_received - received_before,
        station.bytes_by_kind,
    )


def what_was_received(
    station: TargetWan, content: CachedContent, caching: Caching, warnings: list[str]
) -> WanReceived:
    """As far as the station came."""
    return WanReceived(
        content.asked,
        content.found,
        caching.cached,
        station.resent,
        station.cpu_s + caching.cpu_s,
        warnings,
    )


def source_memory(config: WanConfig | None) -> SourceMemory:
    """What a mover remembers of disks that it sends."""
    index_bytes = INDEX_BYTES if config is None else config.limits.index_bytes
    store_bytes = STORE_BYTES if config is None else config.store_bytes
    return SourceMemory(LookupTable, index_bytes, store_bytes)
