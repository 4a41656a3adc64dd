"""An installation's authority, identities of its machines, and links between them, for tests."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from standby.clock import Clock
from standby.errors import LinkError, StandbyError
from standby.wire import tls
from standby.wire.accepting import Door, parsed_address
from standby.wire.authority import Authority
from standby.wire.identity import IdentityFolder, Peer
from standby.wire.link import Link
from standby.wire.messages import Call, Reply

PATIENCE_S = 20
QUICK = Door(half_open_s=0.4)
"""For tests in which a stranger keeps silent."""


class SetClock(Clock):
    """Wall time that tests set; the rest is the system's."""

    def __init__(self, at: datetime | None = None) -> None:
        self.at = at or datetime.now(UTC)

    def now(self) -> datetime:
        return self.at

    def advance(self, **span: float) -> None:
        self.at += timedelta(**span)


class Installation:
    """An authority and identities, in a folder."""

    def __init__(self, folder: Path, name: str = "site", clock: Clock | None = None) -> None:
        self.folder = folder
        self.clock = clock or Clock()
        self.authority = Authority.create(folder / "ca", name, self.clock)

    def identity(self, name: str, *roles: str, days: int = 90) -> IdentityFolder:
        """A machine's identity."""
        made = IdentityFolder(self.folder / name, self.clock)
        certificate = self.authority.issue(made.request(), name, roles, days)
        made.install(certificate, self.authority.certificate, self.authority.revocations())
        return made


class Echo:
    """A listener that answers calls with their payload, and remembers whom it refused."""

    def __init__(self, identity: IdentityFolder, **extra: object) -> None:
        self.refused: list[StandbyError] = []
        self.peers: list[Peer] = []
        self.links: list[Link] = []
        self._changed = threading.Condition()
        self.listener = tls.Listener(
            "127.0.0.1:0",
            identity,
            self._serve,
            on_refusal=self._on_refusal,
            **extra,  # type: ignore[arg-type]
        )
        self.address = self.listener.address

    def _serve(self, link: Link, peer: Peer) -> None:
        with self._changed:
            self.peers.append(peer)
            self.links.append(link)
            self._changed.notify_all()
        try:
            while True:
                message, payload = link.receive()
                assert isinstance(message, Call)
                link.send(Reply(message.id, len(payload)), payload)
        finally:
            link.close()

    def _on_refusal(self, address: str, error: StandbyError) -> None:
        with self._changed:
            self.refused.append(error)
            self._changed.notify_all()

    def wait_for_refusal(self, count: int = 1) -> StandbyError:
        """The last of `count` refusals."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.refused) >= count, PATIENCE_S)
            return self.refused[count - 1]

    def close(self) -> None:
        self.listener.close()
        for link in self.links:
            link.shutdown()


@contextmanager
def echo(identity: IdentityFolder, **extra: object) -> Iterator[Echo]:
    """An Echo, closed afterwards."""
    made = Echo(identity, **extra)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def raw_tls(address: str, identity: IdentityFolder) -> Iterator[ssl.SSLSocket]:
    """A TLS connection whose bytes the test writes itself."""
    with socket.create_connection(parsed_address(address), PATIENCE_S) as connection:
        context = identity.context(is_server=False)
        with context.wrap_socket(connection) as made:
            yield made


def tls_pair(ours: IdentityFolder, theirs: IdentityFolder) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Both ends of a TLS connection after its handshake, without hello."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    result: list[ssl.SSLSocket] = []
    context = theirs.context(is_server=True)
    thread = threading.Thread(
        target=lambda: result.append(context.wrap_socket(far, server_side=True))
    )
    thread.start()
    near_tls = ours.context(is_server=False).wrap_socket(near)
    thread.join()
    return near_tls, result[0]


def answers(link: Link, data: bytes = b"abc") -> bool:
    """Whether the other side of a link echoes."""
    try:
        link.send(Call(1, "echo", {}), data)
        message, payload = link.receive()
    except LinkError:
        return False
    return message == Reply(1, len(data)) and bytes(payload) == data


def wait_until(is_so: Callable[[], bool]) -> None:
    """Return once `is_so()`: for what another thread does and tells nobody."""
    until = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.005)
