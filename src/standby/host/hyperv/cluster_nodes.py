"""The nodes of a failover cluster: found by its name, then each addressed by its own."""

from __future__ import annotations

import contextlib
import ipaddress
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from standby.errors import (
    HostAccessDenied,
    HostCallFailed,
    HostCredentialsRefused,
    HostShellLost,
    HostUnreachable,
)
from standby.host.hyperv.answers import Answer
from standby.host.hyperv.cluster_rows import DOWN, UP, VIEW, ClusterView
from standby.host.hyperv.verbs import Verb
from standby.host.seen_paths import mapped_path

Value = TypeVar("Value")


class NodeDoor(Protocol):
    """`door.Door` of one node."""

    def run(self, verb: Verb[Value], request: Any) -> Answer[Value]:
        """Run the verb's script once."""

    def close(self) -> None:
        """Leave no shell behind."""


OpenDoor = Callable[[str, str], NodeDoor]
"""A door from the name that errors give its host, and its address."""


@dataclass(slots=True)
class Node:
    """A node as it was found last. `problem` is why it was not asked, or did not answer."""

    name: str
    door: NodeDoor
    state: str = ""
    problem: str = ""


class Nodes:
    """The nodes of one cluster. Safe to use from many threads."""

    def __init__(
        self, host: str, address: str, open_door: OpenDoor, addresses: Sequence[str] = ()
    ) -> None:
        self.host = host
        self.address = address
        self._open_door = open_door
        self._addresses = tuple(addresses)
        self._lock = threading.RLock()
        self._looking = threading.Lock()
        self._entry: NodeDoor | None = None
        self._nodes: dict[str, Node] = {}
        self._view: ClusterView | None = None

    def look(self) -> ClusterView:
        """The cluster as one of its nodes sees it now. Raises what the last one asked said, where
        none answers."""
        with self._looking:
            failed: HostCallFailed | None = None
            for node in self._by_chance_of_answer():
                try:
                    return self._seen(node.door.run(VIEW, {}).value("cluster"))
                except (HostCredentialsRefused, HostAccessDenied):
                    raise
                except HostCallFailed as exc:
                    node.problem = str(exc)
                    failed = exc
            for name, address in self._entries():
                door = self._entry if name == self.host and self._entry else None
                door = door or self._open_door(name, address)
                try:
                    view = door.run(VIEW, {}).value("cluster")
                except HostCredentialsRefused:
                    raise
                except HostCallFailed as exc:
                    failed = failed or exc
                    door.close()
                    continue
                if name == self.host:
                    self._entry = door
                else:
                    door.close()
                return self._seen(view)
            assert failed is not None
            raise failed

    def _entries(self) -> list[tuple[str, str]]:
        """(name for errors, address) of the ways in, but for nodes that are known."""
        known = {self._address_of(name) for name in self._nodes}
        ways = [(self.host, self.address)]
        ways += [(f"{self.host}/{_label(one)}", one) for one in self._addresses if one not in known]
        return ways

    def _seen(self, view: ClusterView) -> ClusterView:
        with self._lock:
            self._view = view
            for found in view.nodes:
                node = self._nodes.get(found.name.lower())
                if node is None:
                    door = self._open_door(
                        f"{self.host}/{found.name}", self._address_of(found.name)
                    )
                    node = self._nodes[found.name.lower()] = Node(found.name, door)
                node.state = found.state
                node.problem = "the cluster says that it is down" if found.state == DOWN else ""
            there = {found.name.lower() for found in view.nodes}
            for name in [name for name in self._nodes if name not in there]:
                self._nodes.pop(name).door.close()
        return view

    def _address_of(self, node: str) -> str:
        """A node's address: the configured one of that name, or its name in the cluster's
        domain."""
        for address in self._addresses:
            if _label(address) == node.lower():
                return address
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(self.address)
            return node
        domain = self.address.partition(".")[2]
        return f"{node}.{domain}" if domain and "." not in node else node

    def _by_chance_of_answer(self) -> list[Node]:
        with self._lock:
            return sorted(self._nodes.values(), key=lambda node: (bool(node.problem), node.name))

    def asked(self) -> list[Node]:
        """The nodes that may have VMs: all but those that the cluster says are down."""
        if not self._nodes:
            self.look()
        with self._lock:
            return [node for node in self._nodes.values() if node.state != DOWN]

    @property
    def are_known(self) -> bool:
        """Whether the cluster was ever looked at."""
        return bool(self._nodes)

    def down(self) -> list[str]:
        """The nodes that the cluster says are down."""
        with self._lock:
            return [node.name for node in self._nodes.values() if node.state == DOWN]

    def blame(self, name: str, problem: str) -> None:
        """Say what is wrong with a node, until the cluster is looked at again."""
        with self._lock:
            if name.lower() in self._nodes:
                self._nodes[name.lower()].problem = problem

    def door(self, name: str) -> NodeDoor:
        """The door of one node, for what belongs there and is no VM yet."""
        self.asked()
        with self._lock:
            node = self._nodes.get(name.lower())
        if node is None:
            raise HostUnreachable(f"{self.host}/{name}", name, "the cluster has no such node")
        return node.door

    def up(self) -> list[str]:
        """The nodes that take new VMs: neither down nor paused."""
        self.asked()
        with self._lock:
            return [node.name for node in self._nodes.values() if node.state == UP]

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with nodes, for people."""
        with self._lock:
            return tuple(
                f"node {node.name} of cluster {self.host} is not asked: {node.problem}"
                for node in self._nodes.values()
                if node.problem
            )

    def coordinator_of(self, path: str) -> str:
        """The node that coordinates the shared volume with that file: what runs there has the
        shortest way to it. '' for a file on none, or before the cluster was looked at."""
        view = self._view
        for volume in view.volumes if view else ():
            if any(mapped_path(path, {folder: "/"}) is not None for folder in volume.paths):
                return volume.coordinator
        return ""

    def close(self) -> None:
        """Leave no shell on any node. The door can be used again."""
        with self._lock:
            doors = [node.door for node in self._nodes.values()]
            doors += [self._entry] if self._entry else []
        for door in doors:
            door.close()

    def anywhere(self, verb: Verb[Value], request: Any) -> Answer[Value]:
        """What the first node says that answers."""
        failed: HostCallFailed | None = None
        self.asked()
        for node in self._by_chance_of_answer():
            try:
                return node.door.run(verb, request)
            except (HostUnreachable, HostShellLost) as exc:
                if not verb.is_repeatable and isinstance(exc, HostShellLost):
                    raise
                node.problem = str(exc)
                failed = exc
        assert failed is not None
        raise failed

    def each(
        self, verb: Verb[Any], requests: Mapping[str, Any], *, in_turn: bool = False
    ) -> dict[str, Answer[Any] | HostCallFailed]:
        """What each of these nodes answers to its own request, asked side by side or `in_turn`."""

        def ask(name: str) -> Answer[Any] | HostCallFailed:
            node = self._nodes.get(name.lower())
            if node is None:
                return HostUnreachable(f"{self.host}/{name}", name, "it has left the cluster")
            try:
                answer = node.door.run(verb, requests[name])
            except HostCallFailed as exc:
                if isinstance(exc, HostUnreachable):
                    node.problem = str(exc)
                return exc
            node.problem = ""
            return answer

        names = list(requests)
        if len(names) < 2 or in_turn:
            return {name: ask(name) for name in names}
        with ThreadPoolExecutor(len(names)) as pool:
            return dict(zip(names, pool.map(ask, names), strict=True))


def _label(address: str) -> str:
    """The first part of a host's name, as a cluster names its nodes."""
    return address.partition(".")[0].lower()
