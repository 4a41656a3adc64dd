"""The installation's own certificate authority, and everything else that needs `cryptography`.

ECDSA on P-256 with SHA-256: TLS 1.3 of every OpenSSL takes it, and a handshake costs a fifth of
what RSA does. A certificate's one statement is its SAN URIs, `standby://<installation>/<role>/
<name>`, one per role (RULES 19). `Authority` issues and revokes; what it remembers is
`authority_state`. Keys are made where they are used: only requests and certificates travel.

    <folder>/key.pem          the authority's key, 0600; never leaves this folder
    <folder>/certificate.pem  its certificate, which every machine holds as authority.pem
    <folder>/state.json       certificates issued, tokens (hashed), the number of the list
    <folder>/revoked.json     the list of revoked certificates, signed
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import CertificateError, EnrolmentRefused, UnknownName
from standby.files import make_folder_durably, write_durably
from standby.wire.authority_state import FolderLock, Issued, State, Token
from standby.wire.naming import (
    checked_name,
    checked_roles,
    new_secret,
    parsed_token,
    parsed_uris,
    token_text,
    uri_of,
)

CERTIFICATE_DAYS = 90
AUTHORITY_DAYS = 3650
BACKDATED = timedelta(minutes=5)
"""Certificates begin this much before they are made: clocks of two machines differ."""


# --- keys, requests, certificates ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What a certificate says. `serial` is lower-case hex; times are UTC."""

    installation: str
    name: str
    roles: tuple[str, ...]
    serial: str
    not_before: datetime
    not_after: datetime


def new_key() -> bytes:
    """A fresh private key, PEM."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def request_for(key_pem: bytes, where: str) -> bytes:
    """A certificate request for the key, PEM. It names nobody: the authority decides who it is."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(_loaded_key(key_pem, where), hashes.SHA256()).public_bytes(
        serialization.Encoding.PEM
    )


def facts_of(certificate_pem: bytes, where: str) -> CertificateFacts:
    """What the certificate says; CertificateError when it is none of ours."""
    certificate = _loaded_certificate(certificate_pem, where)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        uris = []
    identity = parsed_uris(uris)
    if identity is None:
        raise CertificateError(where, "names no standby:// identity")
    installation, name, roles = identity
    return CertificateFacts(
        installation,
        name,
        roles,
        f"{certificate.serial_number:x}",
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


def belongs_together(key_pem: bytes, certificate_pem: bytes, where: str) -> bool:
    """Whether the certificate is for that key."""
    key = _loaded_key(key_pem, where).public_key()
    return _public_bytes(key) == _public_bytes(
        _loaded_certificate(certificate_pem, where).public_key()
    )


def is_issued_by(certificate_pem: bytes, authority_pem: bytes, where: str) -> bool:
    """Whether the authority signed the certificate; says nothing about its time."""
    certificate = _loaded_certificate(certificate_pem, where)
    try:
        certificate.verify_directly_issued_by(_loaded_certificate(authority_pem, where))
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def certificate_alone(pem: bytes, where: str) -> bytes:
    """The first certificate of a text that may hold several, PEM: OpenSSL would trust them all,
    and a fingerprint is of one."""
    return _loaded_certificate(pem, where).public_bytes(serialization.Encoding.PEM)


def fingerprint(authority_pem: bytes, where: str) -> bytes:
    """SHA-256 of the certificate, as `openssl x509 -fingerprint -sha256` has it."""
    return _loaded_certificate(authority_pem, where).fingerprint(hashes.SHA256())


def _public_bytes(key: object) -> bytes:
    return key.public_bytes(  # type: ignore[attr-defined,no-any-return]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _loaded_key(pem: bytes, where: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as exc:
        raise CertificateError(where, f"is not a private key: {exc}") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(where, "is not an elliptic-curve key")
    return key


def _loaded_certificate(pem: bytes, where: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as exc:
        raise CertificateError(where, f"is not a certificate: {exc}") from exc


# --- signed lists ----------------------------------------------------------------------------


class RevocationList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Serials that are no longer accepted. `number` only grows; an older list is never taken."""

    installation: str
    number: int
    made_at: str
    revoked: dict[str, str]
    """Serial to name."""


class _SignedList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str
    signature: bytes


def checked_list(data: bytes, authority_pem: bytes, where: str) -> RevocationList:
    """The list in `data`; CertificateError unless the authority signed it."""
    try:
        signed = msgspec.json.decode(data, type=_SignedList)
        found = msgspec.json.decode(signed.text.encode(), type=RevocationList)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as exc:
        raise CertificateError(where, f"is not a list of revoked certificates: {exc}") from exc
    key = _loaded_certificate(authority_pem, where).public_key()
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise InvalidSignature
        key.verify(signed.signature, signed.text.encode(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise CertificateError(where, "is not signed by the installation's authority") from None
    return found


# --- the authority ---------------------------------------------------------------------------


class Authority:
    """The certificate authority in a folder. Thread-safe, and safe with other processes on the
    folder: what changes it happens under a lock file, and is durable when the call returns."""

    def __init__(self, folder: Path, clock: Clock = SYSTEM_CLOCK) -> None:
        """Open the authority; CertificateError when there is none or its files do not fit."""
        self.folder = folder
        self._clock = clock
        try:
            self._key_pem = (folder / "key.pem").read_bytes()
            self.certificate = (folder / "certificate.pem").read_bytes()
        except OSError as exc:
            raise CertificateError(
                str(folder),
                f"no certificate authority here ({exc.strerror})",
                "`standby ca init` makes one",
            ) from exc
        if not belongs_together(self._key_pem, self.certificate, str(folder)):
            raise CertificateError(str(folder), "key.pem and certificate.pem are not a pair")
        self.installation = State.read(folder).installation

    @classmethod
    def create(cls, folder: Path, installation: str, clock: Clock = SYSTEM_CLOCK) -> Authority:
        """Make a new authority in `folder`; CertificateError when one is there. A kill halfway
        leaves a folder that `create` completes, with a new key."""
        checked_name("installation", installation)
        if (folder / "revoked.json").exists():
            raise CertificateError(
                str(folder), "there is a certificate authority already", "Name another folder"
            )
        make_folder_durably(folder.absolute())
        key_pem = new_key()
        now = clock.now()
        key = _loaded_key(key_pem, str(folder))
        subject = x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, f"standby {installation}"[:64])]
        )
        certificate = (
            _builder(now, timedelta(days=AUTHORITY_DAYS))
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(is_authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .sign(key, hashes.SHA256())
        )
        write_durably(folder / "key.pem", key_pem)
        write_durably(
            folder / "certificate.pem", certificate.public_bytes(serialization.Encoding.PEM)
        )
        State(installation).write(folder)
        authority = cls(folder, clock)
        authority._publish(State.read(folder))  # last: its presence says that all is there
        return authority

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the authority's certificate."""
        return fingerprint(self.certificate, str(self.folder))

    def issue(
        self, request: bytes, name: str, roles: Iterable[str], days: int = CERTIFICATE_DAYS
    ) -> bytes:
        """A certificate for the key of the request, PEM. What the request says of its owner is not
        looked at; that it is signed with its own key is."""
        checked_name("name", name)
        roles = checked_roles(roles)
        with FolderLock(self.folder):
            state = State.read(self.folder)
            pem = self._issue(state, request, name, roles, days)
            state.write(self.folder)
        return pem

    def _issue(
        self, state: State, request: bytes, name: str, roles: tuple[str, ...], days: int
    ) -> bytes:
        public_key = _requested_key(request)
        now = self._clock.now()
        issuer = _loaded_certificate(self.certificate, str(self.folder))
        span = min(timedelta(days=days), issuer.not_valid_after_utc - now)
        if span <= timedelta(0):
            raise CertificateError(
                str(self.folder / "certificate.pem"),
                f"the authority's own certificate ended at {issuer.not_valid_after_utc}; this "
                f"machine's clock says {now}",
                "Check the clock; else make a new authority and enrol every mover again",
            )
        uris = [x509.UniformResourceIdentifier(uri_of(self.installation, r, name)) for r in roles]
        key = _loaded_key(self._key_pem, str(self.folder))
        certificate = (
            _builder(now, span)
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer.subject)
            .public_key(public_key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(is_authority=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(uris), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), False
            )
            .sign(key, hashes.SHA256())
        )
        state.add_issued(
            Issued(
                f"{certificate.serial_number:x}",
                name,
                roles,
                certificate.not_valid_before_utc,
                certificate.not_valid_after_utc,
            ),
            now,
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    # --- tokens ------------------------------------------------------------------------------

    def make_token(self, name: str, roles: Iterable[str]) -> str:
        """A token that buys one certificate of that name and those roles within 15 minutes. Only
        its hash is kept."""
        checked_name("name", name)
        roles = checked_roles(roles)
        secret = new_secret()
        with FolderLock(self.folder):
            state = State.read(self.folder)
            state.add_token(secret, name, roles, self._clock.now())
            state.write(self.folder)
        return token_text(self.fingerprint, secret)

    def redeem(self, token: str | bytes, request: bytes) -> bytes:
        """The certificate that `token` (as printed, or its bare secret) buys for the request, PEM;
        EnrolmentRefused when it is unknown, used or too old. A token is used once, whatever comes
        of it: but a damaged request does not use it up."""
        secret = token if isinstance(token, bytes) else parsed_token(token)[1]
        _requested_key(request)
        with FolderLock(self.folder):
            state = State.read(self.folder)
            found = state.take_token(secret, self._clock.now())
            if isinstance(found, Token):
                pem = self._issue(state, request, found.name, found.roles, CERTIFICATE_DAYS)
            state.write(self.folder)
        if not isinstance(found, Token):
            raise EnrolmentRefused(found, "`standby ca token NAME` makes another one")
        return pem

    def renew(
        self,
        serial: str,
        request: bytes,
        days: int = CERTIFICATE_DAYS,
        *,
        name: str = "",
        roles: Iterable[str] = (),
    ) -> bytes:
        """A new certificate of the same name and roles as `serial`, PEM; EnrolmentRefused when that
        one is unknown or revoked, or, where `name` and `roles` say who asks, is none of theirs."""
        with FolderLock(self.folder):
            state = State.read(self.folder)
            held = state.issued.get(serial)
            if held is None:
                raise EnrolmentRefused(f"certificate {serial} is none of this authority")
            if serial in state.revoked:
                raise EnrolmentRefused(f"certificate {serial} of {held.name!r} is revoked")
            if name and (held.name != name or not set(held.roles) <= set(roles)):
                raise EnrolmentRefused(
                    f"certificate {serial} is of {held.name!r} ({', '.join(held.roles)}), not of "
                    f"{name!r}"
                )
            pem = self._issue(state, request, held.name, held.roles, days)
            state.write(self.folder)
        return pem

    # --- revocation --------------------------------------------------------------------------

    def revoke(self, which: str) -> tuple[str, ...]:
        """Revoke by serial, or by name: every certificate issued to it so far, and its unused
        tokens. Returns the serials that are newly revoked; UnknownName when nothing is meant."""
        with FolderLock(self.folder):
            state = State.read(self.folder)
            serials = state.revoke(which, self._clock.now())
            if serials is None:
                names = sorted({item.name for item in state.issued.values()})
                raise UnknownName("certificate", which, tuple(names))
            state.write(self.folder)
            self._publish(state)
        return serials

    def revoked(self) -> frozenset[str]:
        """Serials of all revoked certificates."""
        return frozenset(State.read(self.folder).revoked)

    def list_number(self) -> int:
        """The number of the list of revoked certificates; it grows with every revocation."""
        return State.read(self.folder).list_number

    def revocations(self) -> bytes:
        """The signed list, to hand to every machine."""
        try:
            return (self.folder / "revoked.json").read_bytes()
        except OSError as exc:
            raise CertificateError(
                str(self.folder / "revoked.json"), f"cannot be read: {exc.strerror}"
            ) from exc

    def _publish(self, state: State) -> None:
        found = RevocationList(
            self.installation,
            state.list_number,
            self._clock.now().isoformat(timespec="seconds"),
            {serial: state.issued[serial].name for serial in sorted(state.revoked)},
        )
        text = msgspec.json.encode(found)
        key = _loaded_key(self._key_pem, str(self.folder))
        signature = key.sign(text, ec.ECDSA(hashes.SHA256()))
        write_durably(
            self.folder / "revoked.json",
            msgspec.json.format(msgspec.json.encode(_SignedList(text.decode(), signature))),
        )

    # --- looking -----------------------------------------------------------------------------

    def issued(self) -> tuple[Issued, ...]:
        """Every certificate issued that has not long expired, oldest first."""
        return tuple(State.read(self.folder).issued.values())


def _builder(now: datetime, span: timedelta) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - BACKDATED).not_valid_after(now + span)


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    try:
        found = x509.load_pem_x509_csr(request)
        key = found.public_key()
        is_sound = found.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise EnrolmentRefused(f"the certificate request is damaged: {exc}") from exc
    if not is_sound:
        raise EnrolmentRefused("the certificate request is not signed with its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise EnrolmentRefused("the certificate request is not for a key on the curve P-256")
    return key
