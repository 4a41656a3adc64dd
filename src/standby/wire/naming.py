"""Names in certificates and enrolment tokens: plain text, no cryptography.

A certificate says who its holder is by its SAN URIs, `standby://<installation>/<role>/<name>`, one
for each role (RULES 19).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable

from standby import clock
from standby.errors import ConfigurationError, EnrolmentRefused

ROLES = ("server", "source", "target", "repository", "host", "wan")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""The same as of every name in standby.toml."""

SECRET_BYTES = 20
_FINGERPRINT_BYTES = 32
_CHECK_BYTES = 2
_PREFIX = "standby-"

_URI = re.compile(r"standby://([^/]+)/([^/]+)/([^/]+)")


def uri_of(installation: str, role: str, name: str) -> str:
    """The URI that a certificate carries for one of its roles."""
    return f"standby://{installation}/{role}/{name}"


def parsed_uris(uris: Iterable[str]) -> tuple[str, str, tuple[str, ...]] | None:
    """(installation, name, roles) when every URI is one of ours, with one installation and one
    name; None otherwise."""
    found: list[tuple[str, str, str]] = []
    for uri in uris:
        match = _URI.fullmatch(uri)
        if match is None or match[2] not in ROLES:
            return None
        if not NAME.fullmatch(match[1]) or not NAME.fullmatch(match[3]):
            return None
        found.append((match[1], match[3], match[2]))
    if len({item[:2] for item in found}) != 1:
        return None
    return found[0][0], found[0][1], tuple(item[2] for item in found)


def checked_name(what: str, name: str) -> str:
    """`name`, or ConfigurationError when it cannot stand in a certificate."""
    if not NAME.fullmatch(name):
        raise ConfigurationError(
            f"{what} {name!r}",
            "must be letters, digits, '.', '_' and '-', at most 64",
        )
    return name


def checked_roles(roles: Iterable[str]) -> tuple[str, ...]:
    """`roles` without repetition, or ConfigurationError."""
    found = tuple(dict.fromkeys(roles))
    unknown = [role for role in found if role not in ROLES]
    if unknown or not found:
        raise ConfigurationError(
            "roles", f"unknown: {', '.join(unknown)}" if unknown else "none given",
            f"There are: {', '.join(ROLES)}",
        )  # fmt: skip
    return found


def new_secret() -> bytes:
    """A fresh secret for a token."""
    return bytes.fromhex(clock.new_token(SECRET_BYTES))


def token_text(fingerprint: bytes, secret: bytes) -> str:
    """The token that a person carries to the other machine. Two bytes of a checksum tell a typing
    error from a wrong token."""
    data = fingerprint + secret
    return _PREFIX + base64.urlsafe_b64encode(data + _check(data)).decode().rstrip("=")


def parsed_token(text: str) -> tuple[bytes, bytes]:
    """(fingerprint of the authority, secret) in a token; EnrolmentRefused when it is none."""
    text = text.strip()
    encoded = text.removeprefix(_PREFIX)
    try:
        data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), b"-_", validate=True)
    except ValueError:
        data = b""
    body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    is_whole = len(body) == _FINGERPRINT_BYTES + SECRET_BYTES and check == _check(body)
    if not text.startswith(_PREFIX) or not is_whole:
        raise EnrolmentRefused(
            "that is no enrolment token", "Copy it whole, as `standby ca token` printed it"
        )
    return body[:_FINGERPRINT_BYTES], body[_FINGERPRINT_BYTES:]


def _check(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:_CHECK_BYTES]
