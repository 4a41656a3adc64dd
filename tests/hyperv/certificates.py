"""Certificates for tests: an authority, and what it signs for hosts and users."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hyperv.wsman import Tls

FIRST = datetime.now(UTC) - timedelta(days=30)


class Authority:
    """Signs certificates into files of a folder; its own is `file`."""

    def __init__(self, folder: Path, name: str = "hosts-ca") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.pem"
        made = self._made(self._name, self._key, True, None, FIRST + timedelta(days=365))
        self.file.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        common_name: str,
        names: tuple[str, ...] = ("127.0.0.1",),
        until: datetime | None = None,
        clients: Path | None = None,
    ) -> Tls:
        """A certificate of that subject for those names or addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        alternatives = x509.SubjectAlternativeName(
            [
                x509.IPAddress(ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
                for name in names
            ]
        )
        made = self._made(subject, key, False, alternatives, until or FIRST + timedelta(days=300))
        certificate = self._folder / f"{common_name}.pem"
        certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        key_file = self._folder / f"{common_name}-key.pem"
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        der = made.public_bytes(serialization.Encoding.DER)
        binding = b"tls-server-end-point:" + hashlib.sha256(der).digest()
        return Tls(certificate, key_file, clients, binding)

    def _made(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        is_authority: bool,
        alternatives: x509.SubjectAlternativeName | None,
        until: datetime,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(FIRST)
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if is_authority:
            usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        return builder.sign(self._key, hashes.SHA256())
