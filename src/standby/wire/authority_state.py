"""What the certificate authority remembers: certificates it issued, tokens, who is revoked.

One JSON file, replaced whole under the folder's lock. Secrets of tokens are kept as SHA-256: they
are 160 random bits, so a slow hash would add nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from standby.clock import SYSTEM_CLOCK
from standby.errors import CertificateError
from standby.files import ByteLock, write_durably

FORMAT = 1
TOKEN_LIFE = timedelta(minutes=15)
TOKEN_REMEMBERED = timedelta(days=1)
"""After its end a token is remembered for this long, to say that it was used or is too old."""

EXPIRED_REMEMBERED = timedelta(days=30)
"""A certificate that ended is forgotten after this, and with it that it was revoked: longer than
any clock should be wrong."""

LOCK_PATIENCE_S = 30.0


class Issued(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A certificate that was issued. `serial` is lower-case hex; times are UTC."""

    serial: str
    name: str
    roles: tuple[str, ...]
    not_before: datetime
    not_after: datetime


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An enrolment token: the hash of its secret, and what it buys."""

    hash: bytes
    name: str
    roles: tuple[str, ...]
    made_at: datetime
    expires_at: datetime
    is_used: bool = False


class State(msgspec.Struct, forbid_unknown_fields=True):
    """The whole file."""

    installation: str
    format: int = FORMAT
    list_number: int = 1
    issued: dict[str, Issued] = msgspec.field(default_factory=dict)
    revoked: dict[str, datetime] = msgspec.field(default_factory=dict)
    tokens: list[Token] = msgspec.field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> State:
        """The state in the folder; CertificateError when it is missing or damaged."""
        path = folder / "state.json"
        try:
            state = msgspec.json.decode(path.read_bytes(), type=cls)
        except OSError as exc:
            raise CertificateError(str(path), f"cannot be read: {exc.strerror}") from exc
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise CertificateError(
                str(path), f"is damaged: {exc}", "Bring the authority's folder back from a backup"
            ) from exc
        if state.format != FORMAT:
            raise CertificateError(
                str(path), f"has format {state.format}, this release reads {FORMAT}"
            )
        return state

    def write(self, folder: Path) -> None:
        """Replace the state in the folder, durably."""
        write_durably(folder / "state.json", msgspec.json.format(msgspec.json.encode(self)))

    def add_issued(self, item: Issued, now: datetime) -> None:
        """Remember a certificate; forget those that ended long ago."""
        self.issued[item.serial] = item
        for serial, old in list(self.issued.items()):
            if old.not_after + EXPIRED_REMEMBERED < now:
                del self.issued[serial]
                self.revoked.pop(serial, None)

    def add_token(self, secret: bytes, name: str, roles: tuple[str, ...], now: datetime) -> None:
        """Remember a token; forget old ones."""
        self.tokens = [item for item in self.tokens if now < item.expires_at + TOKEN_REMEMBERED]
        self.tokens.append(Token(_hash(secret), name, roles, now, now + TOKEN_LIFE))

    def take_token(self, secret: bytes, now: datetime) -> Token | str:
        """The token of that secret, used up by this; or what is wrong with it. Every token is
        compared, each in constant time, so that time tells nothing."""
        wanted = _hash(secret)
        found = -1
        for index, item in enumerate(self.tokens):
            if hmac.compare_digest(item.hash, wanted):
                found = index
        if found < 0:
            return "the token is not known here"
        token = self.tokens[found]
        if token.is_used:
            return "the token was used already"
        if not token.made_at <= now < token.expires_at:
            return (
                f"the token was good from {token.made_at:%Y-%m-%d %H:%M:%S} to "
                f"{token.expires_at:%H:%M:%S} UTC; the authority's clock says "
                f"{now:%Y-%m-%d %H:%M:%S}"
            )
        self.tokens[found] = msgspec.structs.replace(token, is_used=True)
        return token

    def revoke(self, which: str, now: datetime) -> tuple[str, ...] | None:
        """Revoke by serial or name; the serials that are new, None when nothing is meant."""
        serials = [
            item.serial for item in self.issued.values() if which in (item.serial, item.name)
        ]
        tokens = [item for item in self.tokens if item.name == which and not item.is_used]
        if not serials and not tokens:
            return None
        self.tokens = [item for item in self.tokens if item not in tokens]
        new = tuple(serial for serial in serials if serial not in self.revoked)
        if new:
            self.list_number += 1
        self.revoked |= dict.fromkeys(new, now)
        return new


def _hash(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


class FolderLock:
    """The lock of the authority's folder, waited for: every holder is done in milliseconds."""

    def __init__(self, folder: Path) -> None:
        self._lock = ByteLock(folder / ".lock")

    def __enter__(self) -> None:
        until = SYSTEM_CLOCK.monotonic() + LOCK_PATIENCE_S
        while not self._lock.acquire():
            if SYSTEM_CLOCK.monotonic() > until:
                self._lock.acquire_or_raise("another process works on the certificate authority")
            SYSTEM_CLOCK.sleep(0.01)

    def __exit__(self, *_: object) -> None:
        self._lock.release()
