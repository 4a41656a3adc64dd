"""Service movers in this process over plain TCP on loopback: wire.tls without the TLS."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import LinkError, error_from_wire
from standby.model.target_rules import TargetRules
from standby.road.connections import ServiceConnections
from standby.road.service import ServiceMover
from standby.road.service_config import ServiceConfig, WanConfig
from standby.wire.link import Link
from standby.wire.messages import Call, Failed, Hello, Reply

WAIT_S = 30


class ManualClock(Clock):
    """The system's clock, until somebody lets time pass."""

    def __init__(self) -> None:
        self.passed = timedelta()

    def now(self) -> datetime:
        return super().now() + self.passed

    def monotonic(self) -> float:
        return super().monotonic() + self.passed.total_seconds()

    def advance(self, seconds: float) -> None:
        self.passed += timedelta(seconds=seconds)


@dataclass(frozen=True)
class PlainPeer:
    name: str
    roles: tuple[str, ...]
    role: str


class PlainListener:
    """Believes the name and role that a `Hello` claims; that is what TLS is for."""

    def __init__(self, on_link: Callable[[Link, PlainPeer], None]) -> None:
        self._on_link = on_link
        self._socket = socket.create_server(("127.0.0.1", 0))
        host, port = self._socket.getsockname()
        self.address = f"{host}:{port}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        link = Link(connection, "somebody")
        try:
            hello, _ = link.receive()
        except LinkError:
            link.close()
            return
        assert isinstance(hello, Hello)
        link.peer = hello.release
        with contextlib.suppress(LinkError):
            self._on_link(link, PlainPeer(hello.release, (hello.role,), hello.role))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(timeout=10)


def connected(address: str, our_name: str, role: str, their_name: str) -> Link:
    """A link to a PlainListener, as whoever we say we are."""
    host, _, port = address.rpartition(":")
    try:
        connection = socket.create_connection((host, int(port)), WAIT_S)
    except OSError as exc:
        raise LinkError(their_name, f"cannot connect: {exc}") from exc
    link = Link(connection, their_name)
    link.send(Hello(1, role, our_name))
    return link


class Machine:
    """A service mover with its listener."""

    def __init__(
        self,
        name: str,
        folder: Path,
        roles: tuple[str, ...] = ("source", "target", "repository", "host"),
        *,
        clock: Clock = SYSTEM_CLOCK,
        protect: TargetRules = TargetRules(),  # noqa: B008
        orphan_timeout_s: float = 600,
        park_s: float = 10,
        accept_timeout_s: float = 10,
        wan: WanConfig | None = None,
    ) -> None:
        self.name = name
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        config = ServiceConfig(
            name,
            "127.0.0.1:0",
            folder / "identity",
            folder.parent / f"{name}-state",
            roles,
            {"data": folder},
            protect,
            orphan_timeout_s,
            wan=wan,
        )
        self.mover = ServiceMover(
            config,
            self._connect,
            clock=clock,
            connections=ServiceConnections(
                name, self._connect, clock, park_s=park_s, accept_timeout_s=accept_timeout_s
            ),
        )
        self.listener = PlainListener(self.mover.on_link)

    def _connect(self, address: str, name: str, role: str, own_role: str, timeout_s: float) -> Link:
        return connected(address, self.name, own_role, name)

    def server_link(self, server: str) -> Link:
        """A control connection of that server."""
        return connected(self.listener.address, server, "server", self.name)

    @property
    def address(self) -> str:
        return self.listener.address

    def close(self) -> None:
        self.listener.close()
        self.mover.close()


class Server:
    """A backup server's control connection to one mover."""

    def __init__(self, machine: Any, name: str = "server") -> None:
        self.machine = machine
        self.link = machine.server_link(name)
        self._futures: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        self._count = 0
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def start(self, verb: str, /, **arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
            self._count += 1
            number = self._count
            self._futures[number] = future
        self.link.send(Call(number, verb, arguments))
        return future

    def call(self, verb: str, /, **arguments: Any) -> Any:
        return self.start(verb, **arguments).result(WAIT_S)

    def _receive(self) -> None:
        try:
            while True:
                message, _ = self.link.receive()
                assert isinstance(message, Reply | Failed)
                with self._lock:
                    future = self._futures.pop(message.id, None)
                if future is None:
                    continue
                if isinstance(message, Reply):
                    future.set_result(message.result)
                else:
                    future.set_exception(error_from_wire(message.error))
        except LinkError as exc:
            with self._lock:
                futures, self._futures = self._futures, {}
            for future in futures.values():
                future.set_exception(exc)

    def close(self) -> None:
        """Gone without a word; returns when the mover knows."""
        self.link.shutdown()
        self._thread.join(WAIT_S)
        self.link.close()
