"""Simulated clusters: each node behind a WinRM service of its own, one door over all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from hyperv.installation import SimulatedHost
from hyperv.world import World
from standby.host.hyperv.cluster import ClusterDoor
from standby.host.hyperv.door import Door

ADDRESS = "prod.example.test"


class SimulatedCluster:
    """A cluster of `world` while the context lasts; its name leads to the first node that is up."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.address = f"{name}.example.test"
        self.hosts = {
            host.name: SimulatedHost(world, host.name)
            for host in world.hosts.values()
            if host.cluster == name
        }
        self.opened: list[tuple[str, str]] = []
        """(name for errors, address) of the doors that were asked for."""
        self._doors: list[Door] = []
        self._stack = contextlib.ExitStack()

    def open_door(self, title: str, address: str) -> Door:
        """What a configuration's access does: a door by name and address."""
        self.opened.append((title, address))
        if address in (ADDRESS, self.address):
            node = next(
                (n for n in self.hosts if self.world.hosts[n].is_up), next(iter(self.hosts))
            )
        else:
            node = address.partition(".")[0]
        door = self.hosts[node].door(title, self.world.clock)
        self._doors.append(door)
        return door

    def door(self, **more: Any) -> ClusterDoor:
        """A door to it."""
        return ClusterDoor(self.name, self.address, self.open_door, clock=self.world.clock, **more)

    @property
    def scripts(self) -> dict[str, int]:
        """How many ran, by node."""
        return {name: host.scripts for name, host in self.hosts.items()}

    def __enter__(self) -> SimulatedCluster:
        for host in self.hosts.values():
            self._stack.enter_context(host)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for door in self._doors:
            door.close()
        self._stack.close()


class At:
    """A hook of the world: does something before a call that is `what`, once."""

    def __init__(self, what: str, action: Callable[[], None], *, skip: int = 0) -> None:
        self.what = what
        self.action = action
        self.skip = skip
        self.is_done = False

    def __call__(self, host: str, what: str, arguments: Mapping[str, Any]) -> None:
        if self.is_done or not what.endswith(self.what):
            return
        if self.skip:
            self.skip -= 1
            return
        self.is_done = True
        self.action()
