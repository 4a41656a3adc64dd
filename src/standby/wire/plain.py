"""Links without TLS, between processes of one machine: TCP on the loopback device alone.

For a test installation, or a machine that is source and target in one: nobody but the machine's
administrator sees what travels there, but any local user can connect, or listen in a mover's place.
So both sides prove that they know a secret, the file `plain.key` in their identity folders, which
only its owner can read. Whoever knows it is believed the name and role that it claims.

The proof is HMAC-SHA256 over everything that was said and both ends' addresses: it is good for one
connection only, and a process in between can pass none of it on.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import json
import os
import socket
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from standby import __version__, files
from standby.clock import new_token
from standby.errors import (
    CertificateError,
    ConfigurationError,
    LinkError,
    PeerBusy,
    ProtocolError,
    RefusedByPeer,
    StandbyError,
    error_to_wire,
)
from standby.wire import frames
from standby.wire.accepting import Acceptor, Door, Visit, address_text, parsed_address
from standby.wire.handshake import (
    Until,
    check_version,
    connected,
    hello_limits,
    linger,
    refusal,
)
from standby.wire.identity import Peer
from standby.wire.link import BETWEEN_MACHINES, Link
from standby.wire.messages import Challenge, Hello, Message, Proof, Refused, Welcome

KEY_FILE = "plain.key"
KEY_SIZE = 32
Kind = TypeVar("Kind", bound=Message)
_HINT = (
    "All sides of a plain installation have the same one: give them one identity folder, or copy it"
)


def check_loopback(address: str, where: str) -> None:
    """Raise ConfigurationError unless "host:port" is an address of the loopback device."""
    host, _ = parsed_address(address)
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    raise ConfigurationError(
        where,
        f"{host or 'every address'} is not of the loopback device, and plain = true is for it only",
        "Write 127.0.0.1:PORT, or use TLS",
    )


# --- the secret ------------------------------------------------------------------------------


class Secret:
    """The file `plain.key` in a folder. Read anew for every connection."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / KEY_FILE

    def make(self) -> None:
        """Make it where there is none."""
        files.make_folder_durably(self._path.parent.absolute())
        if not self._path.exists():
            files.write_durably(self._path, f"{new_token(KEY_SIZE)}\n".encode())

    def read(self) -> bytes:
        """The secret; CertificateError where there is none, or others can read it."""
        path = self._path
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise CertificateError(str(path), "is not a regular file", _HINT)
            with files.File(path) as file:
                text = file.read(0, min(file.size, 4 * KEY_SIZE))
        except OSError as exc:
            raise CertificateError(str(path), f"cannot be read: {exc.strerror}", _HINT) from exc
        if sys.platform != "win32" and (
            status.st_mode & 0o077 or status.st_uid not in (os.geteuid(), 0)
        ):
            raise CertificateError(
                str(path),
                f"can be read or changed by others (owner {status.st_uid}, mode "
                f"{stat.S_IMODE(status.st_mode):o})",
                "Have it belong to this user with mode 600, and make a new one: others may know it",
            )
        try:
            key = bytes.fromhex(text.decode().strip())
        except ValueError:
            key = b""
        if len(key) != KEY_SIZE:
            raise CertificateError(str(path), f"does not hold {KEY_SIZE} bytes in hex", _HINT)
        return key


class _Proofs:
    """What both sides of one connection prove: `of(side)` differs for the two."""

    def __init__(
        self, key: bytes, ends: tuple[str, str], hello: Hello, challenge: Challenge
    ) -> None:
        self._key = key
        self._said = [*ends, hello.version, hello.role, challenge.name, *challenge.roles]
        self._nonces = [challenge.nonce.hex()]

    def of(self, side: str, name: str, nonce: bytes) -> bytes:
        """The proof of that side; `name` and `nonce` are the connecting side's."""
        said = ["standby plain", side, name, nonce.hex(), *self._nonces, *self._said]
        return hmac.digest(self._key, json.dumps(said).encode(), hashlib.sha256)


def _ends(connection: socket.socket, *, is_server: bool) -> tuple[str, str]:
    """(connecting, listening) address; LinkError when either is not of the loopback device."""
    ends = (connection.getpeername(), connection.getsockname())
    for host, *_ in ends:
        if not ipaddress.ip_address(host).is_loopback:
            raise LinkError(address_text(ends[0]), "a plain link is for the loopback device only")
    there, here = map(address_text, ends)
    return (there, here) if is_server else (here, there)


# --- connecting ------------------------------------------------------------------------------


def connect(
    address: str,
    secret: Secret,
    own_name: str,
    own_role: str,
    expected_name: str,
    expected_role: str,
    timeout_s: float,
) -> Link:
    """A link to `expected_name` at "host:port" of this machine, which knows the secret as we do.

    Raises LinkError (unreachable), LinkTimeout, RefusedByPeer, PeerBusy, VersionMismatch,
    CertificateError (no secret here), ConfigurationError (not a loopback address).
    """
    who = f"{expected_name} at {address}"
    check_loopback(address, who)
    key = secret.read()
    until = Until(timeout_s)
    connection = connected(address, who, until)
    link = Link(connection, who, hello_limits(until))
    try:
        hello = Hello(frames.VERSION, own_role, __version__)
        link.send(hello)
        challenge = _next(link, Challenge)
        if challenge.name != expected_name or expected_role not in challenge.roles:
            raise RefusedByPeer(
                who,
                f"it is {challenge.name!r} with roles {', '.join(challenge.roles)}; "
                f"{expected_name!r} as {expected_role} was expected",
            )
        proofs = _Proofs(key, _ends(connection, is_server=False), hello, challenge)
        nonce = bytes.fromhex(new_token(KEY_SIZE))
        link.send(Proof(own_name, nonce, proofs.of("connecting", own_name, nonce)))
        theirs = _next(link, Proof)
        if not hmac.compare_digest(theirs.proof, proofs.of("listening", own_name, nonce)):
            raise RefusedByPeer(who, "it does not know the secret of this installation's plain.key")
        _next(link, Welcome)
    except BaseException:
        link.close()
        raise
    link.peer = expected_name
    link.remote = Peer(expected_name, tuple(challenge.roles), "", "", expected_role)
    link.limits = BETWEEN_MACHINES
    link.shares_memory = True
    return link


def _next(link: Link, kind: type[Kind]) -> Kind:
    """The next message, of that kind; what the peer refused is raised."""
    message, _ = link.receive()
    if isinstance(message, Refused):
        raise refusal(message, link.peer)
    if not isinstance(message, kind):
        said = type(message).__name__
        raise ProtocolError(link.peer, f"said {said} where {kind.__name__} was due")
    return message


# --- listening -------------------------------------------------------------------------------


class PlainListener:
    """`tls.Listener` without the TLS: takes links from processes of this machine."""

    def __init__(
        self,
        address: str,
        secret: Secret,
        name: str,
        roles: tuple[str, ...],
        on_link: Callable[[Link, Peer], None],
        *,
        on_refusal: Callable[[str, StandbyError], None] = lambda address, error: None,
        door: Door = Door(),  # noqa: B008
    ) -> None:
        """Listen on "host:port" of the loopback device (port 0: any; `address` has it then)."""
        check_loopback(address, "listen")
        secret.read()
        self._secret = secret
        self._name = name
        self._roles = roles
        self._on_link = on_link
        self._on_refusal = on_refusal
        self._lock = threading.Lock()
        self._acceptor = Acceptor(address, self._serve, door, name)
        self.address = self._acceptor.address
        self._acceptor.begin()

    def _serve(self, visit: Visit) -> None:
        until = Until(self._acceptor.door.half_open_s)
        link = Link(visit.connection, visit.address, hello_limits(until))
        try:
            try:
                peer = self._introduced(link, visit)
                link.send(Welcome(frames.VERSION, __version__))
            except (StandbyError, OSError) as exc:
                with contextlib.suppress(LinkError):
                    link.send(Refused(error_to_wire(exc)))
                    with contextlib.suppress(OSError):
                        linger(visit.connection)
                raise
            link.limits = BETWEEN_MACHINES
            link.shares_memory = True
            self._on_link(link, peer)
        except StandbyError as exc:
            link.close()
            self._on_refusal(visit.address, exc)
        except BaseException:
            link.close()
            raise

    def _introduced(self, link: Link, visit: Visit) -> Peer:
        ends = _ends(visit.connection, is_server=True)
        key = self._secret.read()
        hello = _next(link, Hello)
        check_version(hello, link.peer)
        challenge = Challenge(self._name, list(self._roles), bytes.fromhex(new_token(KEY_SIZE)))
        link.send(challenge)
        proofs = _Proofs(key, ends, hello, challenge)
        said = _next(link, Proof)
        if not hmac.compare_digest(said.proof, proofs.of("connecting", said.name, said.nonce)):
            raise LinkError(
                link.peer, "it does not know the secret in plain.key of this identity folder"
            )
        if not visit.admit():
            raise PeerBusy(link.peer, "as many links as there may be are open; try again later")
        ours = proofs.of("listening", said.name, said.nonce)
        link.send(Proof(self._name, challenge.nonce, ours))
        link.peer = said.name
        link.remote = Peer(said.name, (hello.role,), "", "", hello.role)
        return link.remote

    def close(self) -> None:
        """Take no more links; those that are there go on."""
        self._acceptor.close()

    def __enter__(self) -> PlainListener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
