"""Who this machine is on the wire: a folder with its key and certificate, and whom it trusts.

key.pem          private key, 0600; made here, never leaves
certificate.pem  issued by the installation's authority; replaced whole when it is renewed
authority.pem    the authority's certificate: the only one that peers' certificates may be from
revoked.json     the authority's signed list of revoked certificates
"""

from __future__ import annotations

import ssl
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import CertificateError, CertificateRefused
from standby.files import make_folder_durably, write_durably
from standby.wire import authority
from standby.wire.authority import CertificateFacts
from standby.wire.link import Link
from standby.wire.naming import parsed_uris

KEY, CERTIFICATE, AUTHORITY, REVOKED = (
    "key.pem",
    "certificate.pem",
    "authority.pem",
    "revoked.json",
)

RENEWAL_SHARE = 1 / 3
"""A certificate is renewed when this share of its life is left: a month of 90 days, so that a site
may be out of reach for weeks."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is on the other end of a link, as its certificate says. `role` is the one it speaks in,
    one of `roles`; `serial` is its certificate's, lower-case hex, `not_after` when that ends."""

    name: str
    roles: tuple[str, ...]
    installation: str
    serial: str
    role: str = ""
    not_after: datetime | None = field(default=None, compare=False)


class IdentityFolder:
    """The identity in a folder. Thread-safe. Files that another process replaces (a renewal, a new
    list) are noticed by `refresh`, which every new connection calls."""

    def __init__(self, folder: Path, clock: Clock = SYSTEM_CLOCK) -> None:
        """Nothing is read yet; an empty or missing folder waits for `request` and `install`."""
        self.folder = folder
        self._clock = clock
        self._lock = threading.RLock()
        self._links: weakref.WeakSet[Link] = weakref.WeakSet()
        self._stamp: object = None
        self._facts: CertificateFacts | None = None
        self._revoked: frozenset[str] = frozenset()
        self._number = 0
        self._contexts: dict[bool, ssl.SSLContext] = {}

    # --- enrolment and renewal ---------------------------------------------------------------

    def request(self) -> bytes:
        """A certificate request (PEM) for this folder's key, which is made if it is missing."""
        with self._lock:
            make_folder_durably(self.folder.absolute())
            path = self.folder / KEY
            if not path.exists():
                write_durably(path, authority.new_key())
            return authority.request_for(self._read(KEY), str(path))

    def install(self, certificate: bytes, authority_pem: bytes, revoked: bytes = b"") -> None:
        """Take a first certificate, the authority's, and its list; CertificateError when they do
        not belong to this key or to one another."""
        where = str(self.folder / CERTIFICATE)
        with self._lock:
            authority_pem = authority.certificate_alone(authority_pem, where)
            self._check_pair(certificate, authority_pem)
            if revoked:
                authority.checked_list(revoked, authority_pem, where)
            write_durably(self.folder / AUTHORITY, authority_pem)
            if revoked:
                write_durably(self.folder / REVOKED, revoked)
            write_durably(self.folder / CERTIFICATE, certificate)
            self._stamp, self._number = None, 0

    def install_certificate(self, certificate: bytes) -> None:
        """Take a renewed certificate: of this key, authority, name and roles, and not one that ends
        sooner than the present one; CertificateError otherwise."""
        where = str(self.folder / CERTIFICATE)
        with self._lock:
            self._check_pair(certificate, self._read(AUTHORITY))
            new, old = authority.facts_of(certificate, where), self.facts
            if (new.name, set(new.roles)) != (old.name, set(old.roles)):
                raise CertificateError(where, f"the new certificate is for {new.name!r}")
            if new.not_after < old.not_after:
                raise CertificateError(where, f"the new certificate ends sooner: {new.not_after}")
            write_durably(self.folder / CERTIFICATE, certificate)
            self._stamp = None

    def _check_pair(self, certificate: bytes, authority_pem: bytes) -> None:
        where = str(self.folder / CERTIFICATE)
        if not authority.is_issued_by(certificate, authority_pem, where):
            raise CertificateError(
                where, "the certificate is not from the authority that came along"
            )
        if not authority.belongs_together(self._read(KEY), certificate, where):
            raise CertificateError(where, "the certificate is not for this folder's key")
        authority.facts_of(certificate, where)

    def is_renewal_due(self) -> bool:
        """Whether a third of the certificate's life, or less, is left."""
        facts = self.facts
        life = facts.not_after - facts.not_before
        return self._clock.now() >= facts.not_after - life * RENEWAL_SHARE

    def check_own(self) -> None:
        """CertificateError when our own certificate is not good now: peers would refuse it."""
        facts, now = self.facts, self._clock.now()
        path = str(self.folder / CERTIFICATE)
        if now < facts.not_before:
            raise CertificateError(
                path,
                f"is good from {_time(facts.not_before)} on, but this machine's clock says "
                f"{_time(now)}",
                "The clock may have jumped: set it, or enrol again",
            )
        if now >= facts.not_after:
            raise CertificateError(
                path,
                f"ended at {_time(facts.not_after)}; this machine's clock says {_time(now)}",
                "If the clock is right, enrol again: `standby ca token`, `standby mover enroll`",
            )

    # --- what the files say ------------------------------------------------------------------

    @property
    def facts(self) -> CertificateFacts:
        """What our own certificate says; CertificateError when there is none."""
        with self._lock:
            self.refresh()
            assert self._facts is not None
            return self._facts

    @property
    def name(self) -> str:
        """Our name."""
        return self.facts.name

    @property
    def roles(self) -> tuple[str, ...]:
        """Our roles."""
        return self.facts.roles

    def refresh(self) -> None:
        """Look whether the files changed; if so read them again and close the running links of
        peers that are revoked now. Costs four `stat` calls otherwise."""
        with self._lock:
            stamp = tuple(
                _stamp(self.folder / name) for name in (KEY, CERTIFICATE, AUTHORITY, REVOKED)
            )
            if stamp == self._stamp:
                return
            where = str(self.folder / CERTIFICATE)
            certificate, key = self._read(CERTIFICATE), self._read(KEY)
            _check_mode(self.folder / KEY)
            if not authority.belongs_together(key, certificate, where):
                raise CertificateError(where, "is not for the key in key.pem")
            self._facts = authority.facts_of(certificate, where)
            self._read_list()
            self._contexts.clear()
            self._stamp = stamp
            self._close_revoked()

    def _read_list(self) -> None:
        path = self.folder / REVOKED
        if not path.exists() and self._number == 0:
            return
        found = authority.checked_list(self._read(REVOKED), self._read(AUTHORITY), str(path))
        if found.number < self._number:
            raise CertificateError(
                str(path), f"is number {found.number}, older than {self._number}, seen before"
            )
        self._revoked, self._number = frozenset(found.revoked), found.number

    def _read(self, name: str) -> bytes:
        path = self.folder / name
        try:
            return path.read_bytes()
        except OSError as exc:
            raise CertificateError(
                str(path),
                f"cannot be read: {exc.strerror}",
                "`standby mover enroll` makes this machine a member of an installation",
            ) from exc

    # --- revocation --------------------------------------------------------------------------

    def install_revocations(self, data: bytes) -> bool:
        """Take the authority's newer list; closes the running links of those on it. False when it
        is the one that is here. CertificateError when it is not signed or an older one."""
        with self._lock:
            self.refresh()
            path = self.folder / REVOKED
            found = authority.checked_list(data, self._read(AUTHORITY), str(path))
            if found.number < self._number:
                raise CertificateError(
                    str(path), f"list {found.number} is older than {self._number}, which is here"
                )
            if found.number == self._number:
                return False
            write_durably(path, data)
            self.refresh()
            return True

    @property
    def list_number(self) -> int:
        """The number of the list of revoked certificates that is here, 0 for none."""
        with self._lock:
            self.refresh()
            return self._number

    def is_revoked(self, serial: str) -> bool:
        """Whether that certificate is on the list that is here."""
        with self._lock:
            return serial in self._revoked

    def watch(self, link: Link) -> None:
        """Close the link when its peer's certificate is revoked. CertificateRefused if it is."""
        with self._lock:
            self._links.add(link)
            if link.remote is not None and link.remote.serial in self._revoked:
                raise revoked_error(link.remote)

    def links(self) -> Iterator[Link]:
        """The links made with this identity that somebody still holds."""
        with self._lock:
            return iter(list(self._links))

    def _close_revoked(self) -> None:
        for link in list(self._links):
            if link.remote is not None and link.remote.serial in self._revoked:
                link.end(revoked_error(link.remote))

    # --- TLS ---------------------------------------------------------------------------------

    def context(self, *, is_server: bool) -> ssl.SSLContext:
        """TLS 1.3, both sides showing certificates of our authority."""
        with self._lock:
            self.refresh()
            if is_server not in self._contexts:
                self._contexts[is_server] = self._made_context(is_server)
            return self._contexts[is_server]

    def _made_context(self, is_server: bool) -> ssl.SSLContext:
        made = tls_context(is_server=is_server)
        made.verify_mode = ssl.CERT_REQUIRED
        made.verify_flags |= ssl.VERIFY_X509_STRICT
        try:
            trusted = authority.certificate_alone(
                self._read(AUTHORITY), str(self.folder / AUTHORITY)
            )
            made.load_verify_locations(cadata=trusted.decode("ascii"))
            made.load_cert_chain(self.folder / CERTIFICATE, self.folder / KEY)
        except (ssl.SSLError, OSError) as exc:
            raise CertificateError(str(self.folder), f"key or certificate unusable: {exc}") from exc
        return made

    def peer_of(self, connection: ssl.SSLSocket, address: str) -> Peer:
        """Who the verified certificate on the other end names; CertificateRefused when it names
        nobody of this installation, or is revoked."""
        peer = identity_in(connection, address)
        if peer.installation != self.facts.installation:
            raise CertificateRefused(
                address,
                f"it is of installation {peer.installation!r}, not {self.facts.installation!r}",
            )
        if self.is_revoked(peer.serial):
            raise revoked_error(peer)
        return peer


def identity_in(connection: ssl.SSLSocket, address: str) -> Peer:
    """Who the certificate names that OpenSSL verified; CertificateRefused when it names nobody."""
    shown = connection.getpeercert() or {}
    names = shown.get("subjectAltName", ())
    uris = [str(item[1]) for item in names if item[0] == "URI"]
    found = parsed_uris(uris) if len(uris) == len(names) else None
    if found is None:
        raise CertificateRefused(address, "it names no standby:// identity")
    installation, name, roles = found
    return Peer(
        name,
        roles,
        installation,
        f"{int(str(shown['serialNumber']), 16):x}",
        not_after=datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), UTC),
    )


def tls_context(*, is_server: bool) -> ssl.SSLContext:
    """TLS 1.3 alone, without resumption (a resumed session would not look at the certificate
    again) and without looking at host names: ours are in the certificate's URIs."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    if is_server:
        made.num_tickets = 0
    return made


def revoked_error(peer: Peer) -> CertificateRefused:
    """The error for a peer whose certificate is revoked."""
    return CertificateRefused(
        peer.name, f"{peer.serial} is revoked", "If that is a mistake, enrol that machine again"
    )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _check_mode(path: Path) -> None:
    if sys.platform != "win32" and path.stat().st_mode & 0o077:
        raise CertificateError(
            str(path), "can be read by others", f"`chmod 600 {path}`; if they did, enrol again"
        )


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
