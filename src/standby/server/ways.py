"""The ways that a disk's data takes between movers, and the tickets of their two ends.

Directly from the source's proxy to the target's, or over a pair of WAN accelerators: three ways,
one behind the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from standby.clock import Clock
from standby.errors import LinkError, MoverDied, MoverLeft, ProtocolError, StandbyError
from standby.road.connections import BETWEEN_WANS, FROM_WAN, TO_WAN, new_ticket
from standby.road.wan_room import RECEIVE, SEND
from standby.server.config import Config
from standby.server.crew import DiskTask
from standby.server.crew_handle import CrewHandle
from standby.server.fleet import Fleet
from standby.server.resources import TaskRequest
from standby.server.wan_config import WanConfig
from standby.server.wan_link import WanLink, WanPair

Ends = tuple[dict[str, Any], dict[str, Any]]
"""The specs of the end that waits, and of the one that connects."""


class Ways:
    """Those of one VM's session. `wan` are its accelerators, None: it has none; `handle` gives a
    mover as the session uses it."""

    def __init__(
        self,
        config: Config,
        fleet: Fleet,
        wan: WanConfig | None,
        handle: Callable[[str], CrewHandle],
        clock: Clock,
    ) -> None:
        self._config = config
        self._fleet = fleet
        self._wan = wan
        self._handle = handle
        self._clock = clock

    def tickets(self, task: DiskTask, source: str, target: str, direction: str) -> Ends:
        """A ticket for the way from mover `source` to mover `target`, as both ends get it."""
        ticket = msgspec.to_builtins(
            new_ticket(
                task.task,
                task.replica,
                task.disk_id,
                task.generation,
                direction,
                source,
                target,
                clock=self._clock,
            )
        )
        where = {"name": target, "address": self._config.movers[target].address}
        return {"accept": ticket}, {"connect": where, "ticket": ticket}

    def pair_for(
        self, request: TaskRequest, task: DiskTask, is_cut: Callable[[], bool]
    ) -> tuple[tuple[WanConfig, str] | None, str]:
        """The job's accelerators and their key, or None, and why not those that it has. Waits for
        their room for one more disk, and for themselves where disks may not go directly, until the
        session `is_cut` off. `leave` them in the end."""
        wan = self._wan
        if wan is None or not task.may_use_wan:
            return None, ""
        try:
            for name in (wan.source, wan.target):
                if wan.if_away == "direct" and not self._fleet.mover(name).answers():
                    raise self._fleet.mover(name).why_away()
            key = self._config.wan_key(wan.name)
            # In this order for all disks, and after their slots: nobody waits in a ring.
            for name, side in ((wan.target, RECEIVE), (wan.source, SEND)):
                self._enter(request, task, wan, name, side, is_cut)
            return (wan, key), ""
        except StandbyError as exc:
            self.leave(task, (wan, ""))
            if wan.if_away == "wait" or is_cut():
                raise
            return None, str(exc)

    def _enter(
        self,
        request: TaskRequest,
        task: DiskTask,
        wan: WanConfig,
        mover: str,
        side: str,
        is_cut: Callable[[], bool],
    ) -> None:
        """Wait for the accelerator's room for one more disk."""
        handle = self._handle(mover)
        asked = {"side": side, "session": request.session, "weight": request.weight}
        while True:
            try:
                if wan.if_away == "wait":
                    handle.call("ping")
                handle.call("wan_enter", disk=task.task, **asked)
                return
            except (LinkError, MoverDied) as exc:
                is_over = isinstance(exc, ProtocolError | MoverLeft) or is_cut()
                if wan.if_away == "direct" or is_over or not self._fleet.mover(mover).answers():
                    raise

    def leave(self, task: DiskTask, pair: tuple[WanConfig, str] | None) -> None:
        """Room at the accelerators that was not used is others'."""
        if pair is not None:
            for name in (pair[0].source, pair[0].target):
                self._fleet.mover(name).tell("wan_leave", disk=task.task)

    def over_wan(
        self, task: DiskTask, source: str, target: str, pair: tuple[WanConfig, str]
    ) -> tuple[dict[str, Any], dict[str, Any], WanLink]:
        """The connection of the task's target, that of its source, and what lies between."""
        wan, key = pair
        from_source, at_source = self.tickets(task, source, wan.source, TO_WAN)
        from_wan, to_wan = self.tickets(task, wan.source, wan.target, BETWEEN_WANS)
        at_target, to_target = self.tickets(task, wan.target, target, FROM_WAN)
        made = WanPair(
            wan.name,
            self._handle(wan.source),
            self._handle(wan.target),
            wan.if_away == "direct",
            wan.mode,
            {"incoming": from_source, "outgoing": to_wan},
            {"incoming": from_wan, "outgoing": to_target},
            key,
        )
        return at_target, at_source, WanLink(made)
