"""The roles of one service mover together: their verbs, and what they hold open for servers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from standby.clock import Clock
from standby.road.connections import ServiceConnections
from standby.road.host_verbs import HostVerbs
from standby.road.owners import Owner
from standby.road.places import RootPlaces
from standby.road.replica_verbs import ReplicaVerbs
from standby.road.repository_verbs import RepositoryVerbs
from standby.road.service_config import WAN, ServiceConfig
from standby.road.source_host import SourceVerbs
from standby.road.target_host import TargetVerbs
from standby.road.verbs import Verbs
from standby.road.wan_verbs import WanVerbs


class ServiceRoles:
    """The verbs of the roles that mover.toml names, and `more` of every mover."""

    def __init__(
        self,
        config: ServiceConfig,
        connections: ServiceConnections,
        places: RootPlaces,
        clock: Clock,
        more: Sequence[Verbs],
    ) -> None:
        self._all: list[Verbs] = [*_made(config, connections, places, clock), *more]

    def __iter__(self) -> Iterator[Verbs]:
        return iter(self._all)

    def call(self, verb: str, arguments: dict[str, Any]) -> Any:
        """The answer of the first role that has the verb; NotImplemented where none has it."""
        for role in self._all:
            result = role.call(verb, arguments)
            if result is not NotImplemented:
                return result
        return NotImplemented

    def progress(self) -> dict[str, Any]:
        """{task: [done, total]} of every role's tasks."""
        found: dict[str, Any] = {}
        for role in self._all:
            told = role.call("progress", {})
            if told is not NotImplemented:
                found |= told
        return found

    def cancel(self, task: str) -> None:
        """End the task where a role reads for it."""
        for role in self._all:
            if isinstance(role, ReplicaVerbs | WanVerbs):
                role.cancel(task)

    def adopt(self, owner: Owner, is_meant: Callable[[str, Collection[str]], bool]) -> None:
        """The replicas for whose (session, tasks receiving) that is true are `owner`'s now."""
        for role in self._all:
            if isinstance(role, TargetVerbs):
                role.replicas.adopt(owner, is_meant)

    def close_where(self, is_meant: Callable[[Owner, str], bool]) -> list[str]:
        """Close the replicas and release the checkpoints for whose (owner, session) that is true;
        which."""
        closed = []
        for role in self._all:
            if isinstance(role, TargetVerbs):
                closed += role.replicas.close_where(is_meant)
            elif isinstance(role, HostVerbs):
                closed += role.close_where(is_meant)
        return closed

    def close_idle_replicas(self, is_meant: Callable[[Owner, str], bool]) -> list[str]:
        """Close the replicas that no task is at and for whose (owner, session) that is true."""
        closed = []
        for role in self._all:
            if isinstance(role, TargetVerbs):
                closed += role.replicas.close_where(is_meant, only_idle=True)
        return closed

    def close(self) -> None:
        """Close every role, whatever becomes of another one."""
        with contextlib.ExitStack() as stack:
            for role in self._all:
                stack.callback(role.close)


def _made(
    config: ServiceConfig, connections: ServiceConnections, places: RootPlaces, clock: Clock
) -> list[Verbs]:
    made: list[Verbs] = []
    if "source" in config.roles:
        made.append(SourceVerbs(connections, places=places))
    if "target" in config.roles:
        target = TargetVerbs(connections, clock, places=places, protect=config.protect)
        made.append(target)
        made.append(
            ReplicaVerbs(
                places=places,
                protect=config.protect,
                clock=clock,
                give_way=target.replicas.give_way,
            )
        )
    if "repository" in config.roles:
        made.append(RepositoryVerbs(connections, places=places))
    if "host" in config.roles:
        made.append(HostVerbs(places=places, state_folder=config.state, clock=clock))
    if WAN in config.roles:
        made.append(WanVerbs(connections, config.wan, clock, name=config.name, places=places))
    return made
