"""How a machine becomes a member: a token on one side, a key that never leaves on the other.

    machine                                   authority
    (TLS 1.3, certificate not looked at)
    GetAuthority                         →
                                         ←    AuthorityCertificate
    compares its SHA-256 with the token's; ends this connection
    (TLS 1.3, certificate of that authority, role `server`)
    Enrol(secret, request)               →
                                         ←    Enrolled(certificate, authority, revoked), or Refused

So the secret reaches nobody but the holder of the authority's key, and the machine need not be told
anything but the token and an address.
"""

from __future__ import annotations

import contextlib
import hmac
import ssl
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import (
    CertificateRefused,
    EnrolmentRefused,
    LinkError,
    PeerBusy,
    ProtocolError,
    StandbyError,
    error_from_wire,
    error_to_wire,
)
from standby.wire import authority as authorities
from standby.wire.accepting import Acceptor, Door, Visit
from standby.wire.authority import Authority
from standby.wire.handshake import Until, connected, hello_limits, linger, shaken
from standby.wire.identity import CERTIFICATE, KEY, IdentityFolder, identity_in, tls_context
from standby.wire.link import Link
from standby.wire.messages import (
    AuthorityCertificate,
    Enrol,
    Enrolled,
    GetAuthority,
    Message,
    Refused,
)
from standby.wire.naming import parsed_token

ENROL_TIMEOUT_S = 20.0
ENROLMENT_DOOR = Door(half_open_max=16, half_open_per_address_max=4)

ATTEMPTS_PER_MINUTE = 6
ATTEMPTS_PER_MINUTE_ALL = 60
"""Refused tokens from one address, and from all. 160 random bits are not guessed at any rate; this
keeps a stranger from spending our time."""

_ADDRESSES_MAX = 1024


# --- the machine's side ----------------------------------------------------------------------


def enrol(
    address: str,
    token: str,
    folder: Path,
    timeout_s: float = ENROL_TIMEOUT_S,
    clock: Clock = SYSTEM_CLOCK,
) -> IdentityFolder:
    """Make `folder` the identity that `token` stands for: asks the enrolment service at
    "host:port". A folder that is enrolled already gets a new certificate for its old key.

    Raises EnrolmentRefused (the token, or a service that is not of the token's authority),
    LinkError and its children, CertificateError."""
    fingerprint, secret = parsed_token(token)
    identity = IdentityFolder(folder, clock)
    request = identity.request()
    authority = _authority_at(address, fingerprint, timeout_s)
    context = tls_context(is_server=False)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=authority.decode("ascii"))
    until = Until(timeout_s)
    tls = shaken(connected(address, address, until), context, address, until)
    with Link(tls, address, hello_limits(until)) as link:
        shown = identity_in(tls, address)
        if "server" not in shown.roles:
            raise CertificateRefused(address, f"it is {shown.name!r}, which is no backup server")
        answer = _asked(link, Enrol(secret, request))
    if not isinstance(answer, Enrolled):
        raise ProtocolError(address, f"answered an enrolment with {type(answer).__name__}")
    if authorities.certificate_alone(answer.authority, address) != authority:
        raise EnrolmentRefused(f"{address} is not of the authority in the token")
    identity.install(answer.certificate, authority, answer.revoked)
    return identity


def _authority_at(address: str, fingerprint: bytes, timeout_s: float) -> bytes:
    """The authority's certificate that the service shows, if it is the token's: that one alone,
    whatever else it sent along."""
    context = tls_context(is_server=False)
    context.verify_mode = ssl.CERT_NONE  # nothing is told on this connection
    until = Until(timeout_s)
    tls = shaken(connected(address, address, until), context, address, until)
    with Link(tls, address, hello_limits(until)) as link:
        answer = _asked(link, GetAuthority())
    if not isinstance(answer, AuthorityCertificate):
        raise ProtocolError(address, f"answered GetAuthority with {type(answer).__name__}")
    found = authorities.fingerprint(answer.authority, address)
    if not hmac.compare_digest(found, fingerprint):
        raise EnrolmentRefused(
            f"{address} is of another authority (fingerprint {found.hex()[:16]}…) than the token "
            f"({fingerprint.hex()[:16]}…)",
            "Check the address; if it is right, somebody is in between",
        )
    return authorities.certificate_alone(answer.authority, address)


def _asked(link: Link, question: Message) -> Message:
    link.send(question)
    answer, _ = link.receive()
    if isinstance(answer, Refused):
        error = error_from_wire(answer.error)
        if isinstance(error, EnrolmentRefused | PeerBusy):
            raise error
        raise EnrolmentRefused(str(error))
    return answer


# --- the authority's side --------------------------------------------------------------------


class Attempts:
    """How often who was refused in the last minute. Bounded; thread-safe."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: OrderedDict[str, list[float]] = OrderedDict()

    def refused(self, host: str) -> None:
        """One more for `host`, and for all."""
        with self._lock:
            for key in (host, ""):
                self._seen.setdefault(key, []).append(self._clock.monotonic())
                del self._seen[key][:-ATTEMPTS_PER_MINUTE_ALL]
                self._seen.move_to_end(key)
            while len(self._seen) > _ADDRESSES_MAX:
                self._seen.popitem(last=False)

    def seconds_to_wait(self, host: str) -> float:
        """0 when `host` may try now."""
        now = self._clock.monotonic()
        with self._lock:
            return max(
                _wait(self._seen.get(host, []), ATTEMPTS_PER_MINUTE, now),
                _wait(self._seen.get("", []), ATTEMPTS_PER_MINUTE_ALL, now),
            )


def _wait(times: list[float], most: int, now: float) -> float:
    """Until fewer than `most` of `times` lie within the last minute."""
    if len(times) < most:
        return 0.0
    return max(0.0, times[-most] + 60 - now)


class EnrolmentServer:
    """Takes enrolments for an authority on its machine. `identity` is the backup server's own
    (`own_identity`). `on_enrolled(address, name)` and `on_refusal(address, error)` hear of each."""

    def __init__(
        self,
        address: str,
        authority: Authority,
        identity: IdentityFolder,
        *,
        on_enrolled: Callable[[str, str], None] = lambda address, name: None,
        on_refusal: Callable[[str, StandbyError], None] = lambda address, error: None,
        door: Door = ENROLMENT_DOOR,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Listen on "host:port" (port 0: any; `address` has it then)."""
        identity.refresh()
        identity.check_own()
        self._authority = authority
        self._identity = identity
        self._on_enrolled = on_enrolled
        self._on_refusal = on_refusal
        self._attempts = Attempts(clock)
        self._acceptor = Acceptor(address, self._serve, door, "enrolment")
        self.address = self._acceptor.address
        self._acceptor.begin()

    def _context(self) -> ssl.SSLContext:
        context = tls_context(is_server=True)
        folder = self._identity.folder
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
        return context

    def _serve(self, visit: Visit) -> None:
        until = Until(self._acceptor.door.half_open_s)
        try:
            try:
                tls = shaken(
                    visit.connection,
                    self._context(),
                    visit.address,
                    until,
                    is_server=True,
                    hold=visit.hold,
                )
            except BaseException:
                visit.connection.close()
                raise
            with Link(tls, visit.address, hello_limits(until)) as link:
                try:
                    link.send(self._answered(link, visit))
                except StandbyError as exc:
                    with contextlib.suppress(LinkError, OSError):
                        link.send(Refused(error_to_wire(exc)))
                        linger(tls)
                    raise
        except StandbyError as exc:
            self._on_refusal(visit.address, exc)

    def _answered(self, link: Link, visit: Visit) -> Message:
        question, _ = link.receive()
        if isinstance(question, GetAuthority):
            return AuthorityCertificate(self._authority.certificate)
        if not isinstance(question, Enrol):
            raise ProtocolError(
                visit.address, f"sent {type(question).__name__} to the enrolment service"
            )
        wait_s = self._attempts.seconds_to_wait(visit.host)
        if wait_s > 0:
            raise PeerBusy(
                visit.address, f"too many refused enrolments; try again in {wait_s:.0f} s"
            )
        try:
            certificate = self._authority.redeem(question.secret, question.request)
        except EnrolmentRefused:
            self._attempts.refused(visit.host)
            raise
        name = authorities.facts_of(certificate, visit.address).name
        self._on_enrolled(visit.address, name)
        return Enrolled(certificate, self._authority.certificate, self._authority.revocations())

    def close(self) -> None:
        """Take no more enrolments."""
        self._acceptor.close()

    def __enter__(self) -> EnrolmentServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def own_identity(
    authority: Authority, folder: Path, name: str = "server", clock: Clock = SYSTEM_CLOCK
) -> IdentityFolder:
    """The backup server's own identity, made or renewed in `folder` on the authority's machine."""
    identity = IdentityFolder(folder, clock)
    if not (folder / CERTIFICATE).exists():
        certificate = authority.issue(identity.request(), name, ["server"])
        identity.install(certificate, authority.certificate, authority.revocations())
    elif identity.is_renewal_due():
        identity.install_certificate(authority.renew(identity.facts.serial, identity.request()))
    identity.install_revocations(authority.revocations())
    return identity
