"""Taking TCP connections from anybody, without letting anybody hold the door.

One thread accepts; each connection is served in a thread of its own from its first byte on, so a
peer that says nothing delays nobody. How many may be there before they have shown who they are is
bounded, in all and from one address; what comes beyond that is closed at once.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from standby.clock import SYSTEM_CLOCK
from standby.errors import ConfigurationError, LinkError
from standby.wire.link import tune

LOOK_ROUND_S = 5.0
"""How often `on_round` is called: a list of revoked certificates that another process wrote is
noticed after this at most."""

BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Door:
    """What strangers may take. `half_open_s` is the whole time from the TCP connection to the end
    of the first frame."""

    half_open_s: float = 10.0
    half_open_max: int = 64
    half_open_per_address_max: int = 16
    links_max: int = 512


def parsed_address(text: str) -> tuple[str, int]:
    """(host, port) of "host:port" or "[v6]:port"; ConfigurationError."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(f"address {text!r}", "is not HOST:PORT, e.g. px1.example:9440")
    return host, int(port)


def address_text(address: object) -> str:
    """What `parsed_address` reads, from a socket's address."""
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = str(address[0]), address[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(address)


class Visit:
    """A connection that has not shown yet who it is. `admit` takes it out of that number."""

    def __init__(self, door: Acceptor, connection: socket.socket, host: str, address: str) -> None:
        self.connection = connection
        self.address = address
        self._door = door
        self.host = host

    def hold(self, connection: socket.socket) -> None:
        """The connection is this object from now on."""
        self.connection = connection

    def admit(self) -> bool:
        """The peer is known now; False when there are as many links as there may be."""
        return self._door._admitted(self)


class Acceptor:
    """Listens on an address and, from `begin` on, calls `serve(visit)` in a thread for each
    connection; the visit's connection belongs to `serve`. `on_round` is called every few seconds.
    Who connects before that waits."""

    def __init__(
        self,
        address: str,
        serve: Callable[[Visit], None],
        door: Door,
        name: str,
        on_round: Callable[[], None] = lambda: None,
    ) -> None:
        host, port = parsed_address(address)
        self.door = door
        self.dropped = 0
        self._serve = serve
        self._name = name
        self._on_round = on_round
        self._lock = threading.Lock()
        self._half_open: dict[Visit, threading.Thread] = {}
        self._by_host: Counter[str] = Counter()
        self._links: set[threading.Thread] = set()
        self._is_closed = False
        try:
            self._socket = _listening(host, port)
        except OSError as exc:
            raise LinkError(address, f"cannot listen: {exc.strerror or exc}") from exc
        self.address = address_text(self._socket.getsockname())
        self._socket.setblocking(False)
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._accept, name=f"{name} accepts", daemon=True)

    def begin(self) -> None:
        """Take connections: to be called when all that `serve` needs is in its place."""
        self._thread.start()

    @property
    def half_open(self) -> int:
        """Connections that have not shown yet who they are."""
        with self._lock:
            return len(self._half_open)

    @property
    def links(self) -> int:
        """Admitted connections whose `serve` has not returned."""
        with self._lock:
            return len(self._links)

    def _accept(self) -> None:
        # Not select.select: it takes no descriptor from 1024 on.
        with selectors.DefaultSelector() as comes, selectors.DefaultSelector() as wakes:
            comes.register(self._socket, selectors.EVENT_READ)
            comes.register(self._woken, selectors.EVENT_READ)
            wakes.register(self._woken, selectors.EVENT_READ)
            self._accept_until_closed(comes, wakes)

    def _accept_until_closed(
        self, comes: selectors.BaseSelector, wakes: selectors.BaseSelector
    ) -> None:
        next_round = SYSTEM_CLOCK.monotonic() + LOOK_ROUND_S
        while not self._is_closed:
            left_s = max(0.0, next_round - SYSTEM_CLOCK.monotonic())
            ready = [key.fileobj for key, _ in comes.select(left_s)]
            if SYSTEM_CLOCK.monotonic() >= next_round:  # however many knock meanwhile
                self._on_round()
                next_round = SYSTEM_CLOCK.monotonic() + LOOK_ROUND_S
            if self._socket not in ready:
                continue
            try:
                connection, address = self._socket.accept()
            except OSError as exc:
                if exc.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    # Nothing can be accepted until something is closed; the peer waits in the
                    # backlog. Waiting on the wake-up end alone keeps `close` prompt.
                    wakes.select(0.1)
                continue
            self._receive_visit(connection, address)

    def _receive_visit(self, connection: socket.socket, address: object) -> None:
        text = address_text(address)
        visit = Visit(self, connection, text.rpartition(":")[0], text)
        thread = threading.Thread(
            target=self._run, args=(visit,), name=f"{self._name} {text}", daemon=True
        )
        with self._lock:
            is_full = (
                len(self._half_open) >= self.door.half_open_max
                or self._by_host[visit.host] >= self.door.half_open_per_address_max
            )
            if self._is_closed or is_full:
                self.dropped += 1
                connection.close()
                return
            self._half_open[visit] = thread
            self._by_host[visit.host] += 1
        try:
            connection.setblocking(True)
            tune(connection)
            thread.start()
        except (OSError, RuntimeError):  # no more threads
            self._left(visit)
            connection.close()

    def _run(self, visit: Visit) -> None:
        try:
            self._serve(visit)
        except BaseException:  # a bug: the peer is not to wait for an answer
            visit.connection.close()
            raise
        finally:
            self._left(visit)
            with self._lock:
                self._links.discard(threading.current_thread())

    def _left(self, visit: Visit) -> None:
        with self._lock:
            if self._half_open.pop(visit, None) is not None:
                self._by_host[visit.host] -= 1
                if not self._by_host[visit.host]:
                    del self._by_host[visit.host]

    def _admitted(self, visit: Visit) -> bool:
        self._left(visit)
        with self._lock:
            if self._is_closed or len(self._links) >= self.door.links_max:
                return False
            self._links.add(threading.current_thread())
            return True

    def close(self) -> None:
        """Accept nothing more and end the half-open connections; links go on."""
        with self._lock:
            self._is_closed = True
            visits = dict(self._half_open)
        with contextlib.suppress(OSError):
            self._wake.send(b"x")
        self._thread.join()
        self._socket.close()
        for visit in visits:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(visit.connection, socket.SHUT_RDWR)
        for thread in visits.values():
            if thread is not threading.current_thread():
                thread.join(timeout=self.door.half_open_s)
        self._wake.close()
        self._woken.close()


def _listening(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return socket.create_server(address[:2], family=family, backlog=BACKLOG)
