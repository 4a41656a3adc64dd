"""The verbs of a WAN accelerator: both ends of a pair, for any number of disks at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
from standby.wan.cache import KEY_BYTES
from standby.wan.compressing import WINDOW_LOG_MAX
from standby.wan.remembering import SourceMemory
from standby.wan.table import LookupTable
from standby.wire.link import Link


class WanSent(msgspec.Struct, frozen=True):
    """What `wan_send` did: bytes on the connection between the accelerators, either way; what
    `direct` mode would have sent, estimated; pieces by kind; units sent again."""

    sent: int
    received: int
    direct: int
    pieces: dict[str, int]
    resent: int
    cpu_s: float
    mode: str


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
        places: Places = LOCAL_PLACES,
    ) -> None:
        self._connections = connections
        self._window_log = WINDOW_LOG_MAX if config is None else config.window_log
        self._clock = clock
        self.cache = SharedCache(config, clock)
        self._places = places
        self._memory = source_memory(config)
        self._verbs: dict[str, Callable[..., Any]] = {
            "wan_send": self.wan_send,
            "wan_receive": self.wan_receive,
            "wan_status": lambda: self.cache.status(),
            "wan_progress": self.wan_progress,
        }
        self._sending: dict[str, Link] = {}

    def call(self, verb: str, arguments: dict[str, Any]) -> Any:
        """Run `verb`; NotImplemented for one of another role."""
        return answered(self._verbs, verb, arguments)

    def close(self) -> None:
        """Close the cache; what was taken in is kept."""
        self.cache.close()

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
            self._connections.take(incoming, near_errand) as (near, _),
            telling(near),
            self._connections.take(outgoing, far_errand) as (far, _),
        ):
            memory = None
            if mode in ("auto", "full"):
                memory = self._memory.disk(tenant, replica, disk_id, virtual_size)
            station = SourceWan(
                task, near, far, tenant, virtual_size, self._window_log, mode, memory, session
            )
            self._sending[task] = far
            try:
                station.run()
            finally:
                del self._sending[task]
                if memory is not None:
                    memory.close()
            return WanSent(
                far.sent_bytes,
                far.received_bytes,
                station.direct,
                station.pieces,
                station.sent.units_resent,
                station.cpu_s,
                station.mode,
            )

    def wan_progress(self) -> dict[str, list[int]]:
        """{task: [bytes sent to the target's accelerator so far, received from it]}."""
        return {
            task: [link.sent_bytes, link.received_bytes]
            for task, link in list(self._sending.items())
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
            self._connections.take(incoming, near_errand) as (near, _),
            telling(near),
            self._connections.take(outgoing, far_errand) as (far, _),
            newest_point(self._places, path, replica, disk_id, virtual_size) as newest,
        ):
            warned = self.cache.warned
            namespace, warnings = self.cache.namespace(tenant)
            content, caching = CachedContent(namespace), Caching(namespace, self._clock)
            try:
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
                station.run()
            finally:
                caching.end()
                content.close()
            warnings += self.cache.warnings(warned)
            warnings += [text for text in (content.problem, caching.problem) if text]
            if caching.left_out:
                warnings.append(f"the global cache was too slow for {caching.left_out} pieces")
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


def tenant_key(text: str) -> bytes:
    """The 32 bytes of a tenant's key; ProtocolError, which does not repeat it, where it is none."""
    try:
        key = bytes.fromhex(text)
    except (ValueError, TypeError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ProtocolError("backup server", f"a tenant's key of {KEY_BYTES} bytes is expected")
    return key
