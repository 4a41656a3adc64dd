"""Links between machines: TCP with TLS 1.3, both sides authenticated by the installation's CA.

`connect` makes one, `Listener` takes them. Either ends in a `Link` whose `remote` says who the
other side is, or in a typed error; the listener's errors go to `on_refusal`. After the handshake
the connecting side says `Hello`, and the other one `Welcome`, or `Refused` with the reason:
without that, a client whose certificate was refused would learn it by its first lost message.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from standby import __version__
from standby.errors import (
    CertificateRefused,
    LinkError,
    LinkTimeout,
    PeerBusy,
    ProtocolError,
    StandbyError,
    error_to_wire,
)
from standby.wire import frames
from standby.wire.accepting import Acceptor, Door, Visit
from standby.wire.handshake import (
    Until,
    check_version,
    connected,
    hello_limits,
    linger,
    refusal,
    shaken,
)
from standby.wire.identity import IdentityFolder, Peer
from standby.wire.link import BETWEEN_MACHINES, Link
from standby.wire.messages import Hello, Refused, Welcome

__all__ = ["Door", "IdentityFolder", "Listener", "Peer", "connect"]

CONNECT_TIMEOUT_S = 20.0

# --- connecting ------------------------------------------------------------------------------


def connect(
    address: str,
    identity: IdentityFolder,
    expected_name: str,
    expected_role: str,
    timeout_s: float = CONNECT_TIMEOUT_S,
    *,
    role: str = "",
) -> Link:
    """A link to `expected_name` at "host:port", which welcomed us in our `role` (default: the first
    of our certificate).

    Raises LinkError (unreachable: worth another try), LinkTimeout, PeerBusy, CertificateRefused
    (another name or role than expected, expired, foreign, revoked), RefusedByPeer (it does not
    accept us), VersionMismatch, CertificateError (our own identity is no good).
    """
    identity.refresh()
    identity.check_own()
    role = role or identity.roles[0]
    who = f"{expected_name} at {address}"
    until = Until(timeout_s)
    connection = connected(address, who, until)
    try:
        tls = shaken(connection, identity.context(is_server=False), who, until)
        connection = tls
        peer = identity.peer_of(tls, who)
        if peer.name != expected_name:
            raise CertificateRefused(
                who,
                f"it is {peer.name!r}, expected {expected_name!r}",
                "Check the mover's address in standby.toml",
            )
        if expected_role not in peer.roles:
            raise CertificateRefused(
                who, f"its roles are {', '.join(peer.roles)}; {expected_role!r} is not among them"
            )
        link = Link(tls, expected_name, hello_limits(until))
        link.remote = replace(peer, role=expected_role)
    except BaseException:
        connection.close()
        raise
    try:
        _introduce(link, role, who)
        link.limits = BETWEEN_MACHINES
        identity.watch(link)
    except BaseException:
        link.close()
        raise
    return link


def _introduce(link: Link, role: str, who: str) -> None:
    try:
        link.send(Hello(frames.VERSION, role, __version__))
        answer, _ = link.receive()
    except LinkTimeout:
        raise LinkTimeout(who, "no answer to our hello in time") from None
    if isinstance(answer, Refused):
        raise refusal(answer, who)
    if not isinstance(answer, Welcome):
        raise ProtocolError(who, f"answered a hello with {type(answer).__name__}")


# --- listening -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Guest:
    link: Link
    peer: Peer


class Listener:
    """Takes links from machines of the installation.

    `on_link(link, peer)` is called in a thread of the link's own, which ends when it returns; the
    link is the callee's to close, and is closed if it raises. `on_refusal(address, error)` hears
    of every connection that did not get that far. `roles`, if given, are the roles that may speak.
    """

    def __init__(
        self,
        address: str,
        identity: IdentityFolder,
        on_link: Callable[[Link, Peer], None],
        *,
        roles: tuple[str, ...] = (),
        on_refusal: Callable[[str, StandbyError], None] = lambda address, error: None,
        door: Door = Door(),  # noqa: B008
    ) -> None:
        """Listen on "host:port" (port 0: any; `address` has it then)."""
        identity.refresh()
        identity.check_own()
        self._identity = identity
        self._on_link = on_link
        self._on_refusal = on_refusal
        self._roles = roles
        self._links_lock = threading.Lock()
        self._acceptor = Acceptor(address, self._serve, door, identity.name, self._look_round)
        self.address = self._acceptor.address
        self._acceptor.begin()

    @property
    def half_open(self) -> int:
        """Connections that have not shown yet who they are."""
        return self._acceptor.half_open

    @property
    def dropped(self) -> int:
        """Connections closed at once since the start, because too many were half open."""
        return self._acceptor.dropped

    def _look_round(self) -> None:
        try:
            self._identity.refresh()
        except StandbyError as exc:
            self._on_refusal(self.address, exc)

    def _serve(self, visit: Visit) -> None:
        try:
            guest = self._received(visit)
        except StandbyError as exc:
            self._on_refusal(visit.address, exc)
            return
        try:
            self._on_link(guest.link, guest.peer)
        except StandbyError as exc:
            guest.link.close()
            self._on_refusal(visit.address, exc)
        except BaseException:
            guest.link.close()
            raise

    def _received(self, visit: Visit) -> _Guest:
        until = Until(self._acceptor.door.half_open_s)
        try:
            context = self._identity.context(is_server=True)
            tls = shaken(
                visit.connection, context, visit.address, until, is_server=True, hold=visit.hold
            )
        except BaseException:
            visit.connection.close()
            raise
        link = Link(tls, visit.address, hello_limits(until))
        try:
            peer = self._introduced(link, tls, visit)
            link.send(Welcome(frames.VERSION, __version__))
        except (StandbyError, OSError) as exc:
            self._refuse(link, tls, exc)
            raise
        link.limits = BETWEEN_MACHINES
        return _Guest(link, peer)

    def _introduced(self, link: Link, tls: ssl.SSLSocket, visit: Visit) -> Peer:
        shown = self._identity.peer_of(tls, visit.address)
        link.peer = f"{shown.name} at {visit.address}"
        try:
            hello, _ = link.receive()
        except LinkTimeout:
            raise LinkTimeout(link.peer, "no hello in time") from None
        if not isinstance(hello, Hello):
            raise ProtocolError(link.peer, f"began with {type(hello).__name__}, not Hello")
        check_version(hello, link.peer)
        if hello.role not in shown.roles:
            raise CertificateRefused(
                link.peer, f"it speaks as {hello.role!r}, its roles are {', '.join(shown.roles)}"
            )
        if self._roles and hello.role not in self._roles:
            raise CertificateRefused(
                link.peer,
                f"role {hello.role!r} has no business here: {', '.join(self._roles)} have",
            )
        link.remote = peer = replace(shown, role=hello.role)
        self._identity.watch(link)
        if not visit.admit():
            raise PeerBusy(link.peer, "as many links as there may be are open; try again later")
        link.peer = peer.name
        return peer

    def _refuse(self, link: Link, tls: ssl.SSLSocket, error: Exception) -> None:
        with contextlib.suppress(LinkError):
            link.send(Refused(error_to_wire(error)))
            with contextlib.suppress(OSError):
                linger(tls)
        link.close()

    def close(self) -> None:
        """Take no more links; those that are there go on."""
        self._acceptor.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
