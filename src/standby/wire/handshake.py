"""The first seconds of a connection between machines: TCP, TLS, all under one deadline."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable

from standby.clock import SYSTEM_CLOCK
from standby.errors import (
    CertificateRefused,
    LinkError,
    LinkTimeout,
    PeerBusy,
    RefusedByPeer,
    VersionMismatch,
    error_from_wire,
)
from standby.units import KiB
from standby.wire import frames
from standby.wire.accepting import parsed_address
from standby.wire.link import Limits, tune
from standby.wire.messages import Hello, Refused

HELLO_MAX = 64 * KiB
"""Bytes a first frame may have: nothing larger is taken from a peer not yet welcome."""

LINGER_S = 1.0
LINGER_MAX = 256 * KiB

_FOREIGN = frozenset({2, 18, 19, 20, 21})
_NOT_YET, _EXPIRED = 9, 10
"""X509_V_ERR_* of OpenSSL's x509_vfy.h."""


def refusal(answer: Refused, who: str) -> LinkError:
    """What a peer said when it let us not in, as ours."""
    error = error_from_wire(answer.error)
    if isinstance(error, VersionMismatch):
        return VersionMismatch(who, error.problem, error.ours, error.theirs)
    if isinstance(error, PeerBusy):
        return PeerBusy(who, error.problem)
    problem = error.problem if isinstance(error, LinkError) else str(error)
    return RefusedByPeer(who, problem, type(error).__name__)


def check_version(hello: Hello, who: str) -> None:
    """Raise VersionMismatch unless the peer speaks our version."""
    if hello.version != frames.VERSION:
        raise VersionMismatch(
            who,
            f"protocol version {hello.version}, this side speaks {frames.VERSION}",
            hello.version,
            frames.VERSION,
        )


class Until:
    """A deadline of several steps."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._end = SYSTEM_CLOCK.monotonic() + timeout_s

    def left_s(self) -> float:
        """Seconds left, never 0: that would mean "do not block" to a socket."""
        return max(0.001, self._end - SYSTEM_CLOCK.monotonic())


def hello_limits(until: Until) -> Limits:
    """Both the first byte and the rest within what is left: a rate that no drip can meet."""
    left_s = until.left_s()
    return Limits(left_s, left_s, 1 << 40, HELLO_MAX, 0)


def connected(address: str, who: str, until: Until) -> socket.socket:
    """A TCP connection to "host:port"; LinkTimeout, LinkError."""
    try:
        connection = socket.create_connection(parsed_address(address), until.left_s())
    except TimeoutError:
        raise LinkTimeout(who, f"no connection within {until.timeout_s:g} s") from None
    except OSError as exc:
        raise LinkError(who, f"cannot connect: {exc.strerror or exc}") from exc
    tune(connection)
    return connection


def shaken(
    connection: socket.socket,
    context: ssl.SSLContext,
    who: str,
    until: Until,
    *,
    is_server: bool = False,
    hold: Callable[[ssl.SSLSocket], None] = lambda _: None,
) -> ssl.SSLSocket:
    """The connection after its handshake; our typed errors. `hold` gets it before: the TLS socket
    takes the plain one's place, and whoever wants to end a handshake must shut that one down."""
    try:
        connection.settimeout(until.left_s())
        tls = context.wrap_socket(connection, server_side=is_server, do_handshake_on_connect=False)
    except OSError as exc:
        raise LinkError(who, f"ended before the handshake: {exc.strerror or exc}") from exc
    hold(tls)
    try:
        tls.do_handshake()
    except TimeoutError:
        failure: LinkError = LinkTimeout(who, f"no TLS handshake within {until.timeout_s:g} s")
    except ssl.SSLCertVerificationError as exc:
        failure = _certificate_failure(who, exc)
    except ssl.SSLError as exc:
        failure = _handshake_failure(who, exc)
    except OSError as exc:
        failure = LinkError(who, f"ended in the handshake: {exc.strerror or exc}")
    else:
        return tls
    with contextlib.suppress(OSError):
        linger(tls)
    tls.close()
    raise failure


def _certificate_failure(who: str, exc: ssl.SSLCertVerificationError) -> LinkError:
    now = f"{SYSTEM_CLOCK.now():%Y-%m-%d %H:%M:%S} UTC"
    if exc.verify_code == _EXPIRED:
        return CertificateRefused(
            who,
            f"it has expired, by this machine's clock ({now})",
            "If this clock or the peer's jumped, set it; else enrol the peer again",
        )
    if exc.verify_code == _NOT_YET:
        return CertificateRefused(
            who,
            f"it is not valid yet, by this machine's clock ({now})",
            "This clock, or the authority's, has jumped: compare them",
        )
    if exc.verify_code in _FOREIGN:
        return CertificateRefused(
            who,
            f"it is not from this installation's authority ({exc.verify_message})",
            "Enrol both machines with the same backup server",
        )
    return CertificateRefused(who, exc.verify_message or str(exc))


def _handshake_failure(who: str, exc: ssl.SSLError) -> LinkError:
    reason = exc.reason or str(exc)
    said = reason.lower().replace("_", " ")
    if "PEER_DID_NOT_RETURN_A_CERTIFICATE" in reason:
        return CertificateRefused(who, "it showed none")
    if "ALERT" in reason:
        return RefusedByPeer(who, f"it ended the handshake ({said})", reason)
    if isinstance(exc, ssl.SSLEOFError):
        return LinkError(who, "ended in the handshake")
    return LinkError(who, f"TLS handshake failed: {said}")


def linger(connection: socket.socket) -> None:
    """Let the peer read our last words: closing with bytes unread would reset the connection and
    take them away. Bounded in time and bytes."""
    socket.socket.shutdown(connection, socket.SHUT_WR)
    until = Until(LINGER_S)
    taken = 0
    while taken < LINGER_MAX and until.left_s() > 0.001:
        connection.settimeout(until.left_s())
        # The raw bytes, whatever they are: TLS is over.
        data = socket.socket.recv(connection, 16 * KiB)
        if not data:
            return
        taken += len(data)
