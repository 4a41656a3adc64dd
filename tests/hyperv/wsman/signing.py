"""How users sign in at the test's service: each connection has a `Guard` of its own.

Basic and certificates are looked at here; NTLM, CredSSP and Kerberos are accepted by pyspnego and
by the system's GSSAPI, which know nothing of the door's own code.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import spnego
from spnego.channel_bindings import GssChannelBindings

MUTUAL = "http://schemas.dmtf.org/wbem/wsman/1/wsman/secprofile/https/mutual"
_BOUNDARY = b"--Encrypted Boundary"
_SPNEGO = "application/HTTP-SPNEGO-session-encrypted"


@dataclass(frozen=True)
class Signing:
    """What a host offers. NTLM's users stand in the file that the environment variable
    NTLM_USER_FILE names, as pyspnego wants it."""

    offers: tuple[str, ...] = ("Basic",)
    """Of Basic, NTLM, Negotiate (Kerberos) and CredSSP."""
    allows_plain: bool = True
    """Whether messages over HTTP may be unencrypted (AllowUnencrypted)."""
    keytab: Path | None = None
    """The host's own key, for Kerberos."""
    binds_tls: bool = True
    """Whether a sign-in over HTTPS must name the certificate (CbtHardeningLevel Strict)."""
    mapped: Mapping[str, str] = field(default_factory=dict)
    """Users by the common name of their certificate."""


class Refused(Exception):
    """The request gets a 401, with `token` in the offer of `scheme`."""

    def __init__(self, scheme: str = "", token: bytes = b"") -> None:
        super().__init__(scheme)
        self.scheme = scheme
        self.token = token


class Garbled(Exception):
    """The body cannot be decrypted: HTTP 400."""


class Guard:
    """Who one connection belongs to."""

    def __init__(
        self, signing: Signing, users: Mapping[str, str], binding: bytes | None, peer: str
    ) -> None:
        self._signing = signing
        self._users = users
        self._binding = binding
        self._peer = peer
        self._context: Any = None
        self.user = ""
        self.token = b""
        """For the answer that follows a sign-in."""
        self.is_encrypted = False

    def offers(self, refused: Refused) -> list[str]:
        """The values of WWW-Authenticate."""
        if refused.token:
            return [f"{refused.scheme} {base64.b64encode(refused.token).decode()}"]
        return ['Basic realm="WSMAN"' if one == "Basic" else one for one in self._signing.offers]

    def sign_out(self) -> None:
        """The connection belongs to nobody."""
        self.user, self._context, self.is_encrypted = "", None, False

    def look(self, header: str) -> str:
        """The user; Refused where there is none yet."""
        self.token = b""
        scheme, _, value = header.partition(" ")
        if header == MUTUAL:
            user = self._signing.mapped.get(self._peer, "")
        elif scheme == "Basic" and "Basic" in self._signing.offers:
            name, _, password = base64.b64decode(value).decode().partition(":")
            user = name if self._users.get(name) == password else ""
        elif scheme in self._signing.offers:
            user = self._stepped(scheme, base64.b64decode(value))
        else:
            user = "" if header else self.user
        if not user:
            raise Refused
        self.user = user
        return user

    def _stepped(self, scheme: str, token: bytes) -> str:
        if self._context is None or self._context.complete:
            self._context = self._accepting(scheme)
        answer = b""
        try:
            answer = self._context.step(token) or b""
            is_complete = self._context.complete  # raises where `answer` says what is wrong
        except Exception as exc:
            self._context = None
            raise Refused(scheme, answer) from exc
        if not is_complete:
            raise Refused(scheme, answer)
        self.token = answer
        if scheme == "Negotiate":
            return str(self._context.initiator_name)
        return str(self._context.client_principal)

    def _accepting(self, scheme: str) -> Any:
        binding = self._binding if self._signing.binds_tls else None
        if scheme == "Negotiate":
            import gssapi

            return gssapi.SecurityContext(
                creds=gssapi.Credentials(
                    usage="accept", store={"keytab": f"FILE:{self._signing.keytab}"}
                ),
                usage="accept",
                channel_bindings=binding and gssapi.raw.ChannelBindings(application_data=binding),
            )
        return spnego.server(
            protocol=scheme.lower(),
            options=spnego.NegotiateOptions.use_ntlm
            if scheme == "NTLM"
            else spnego.NegotiateOptions.none,
            channel_bindings=GssChannelBindings(application_data=binding)
            if binding and scheme == "NTLM"
            else None,
        )

    # --- messages (MS-WSMV 2.2.9.1.1) ---

    def opened(self, content_type: str, body: bytes) -> bytes:
        """The plain text of a request's body."""
        self.is_encrypted = content_type.startswith("multipart/encrypted")
        if not self.is_encrypted:
            return body
        found = re.fullmatch(
            _BOUNDARY
            + rb"\r\n\tContent-Type: (?P<kind>[^\r]+)\r\n"
            + rb"\tOriginalContent: type=application/soap\+xml;charset=UTF-8;Length=(\d+)\r\n"
            + _BOUNDARY
            + rb"\r\n\tContent-Type: application/octet-stream\r\n(?P<data>.*)"
            + _BOUNDARY
            + rb"--\r\n",
            body,
            re.DOTALL,
        )
        if not found or self._context is None or found["kind"].decode() != _SPNEGO:
            raise Garbled
        data = found["data"]
        (length,) = struct.unpack_from("<i", data)
        try:
            plain = self._unwrapped(data[4 : 4 + length], data[4 + length :])
        except Exception as exc:
            raise Garbled from exc
        if len(plain) != int(found[2]):
            raise Garbled
        return plain

    def closed(self, body: bytes) -> tuple[str, bytes]:
        """An answer's content type and body, encrypted if the request was."""
        if not self.is_encrypted:
            return "application/soap+xml;charset=UTF-8", body
        header, data = self._wrapped(body)
        head = (
            f"\r\n\tContent-Type: {_SPNEGO}\r\n\tOriginalContent: "
            f"type=application/soap+xml;charset=UTF-8;Length={len(body)}\r\n"
        ).encode()
        packed = (
            _BOUNDARY
            + head
            + _BOUNDARY
            + b"\r\n\tContent-Type: application/octet-stream\r\n"
            + struct.pack("<i", len(header))
            + header
            + data
            + _BOUNDARY
            + b"--\r\n"
        )
        return f'multipart/encrypted;protocol="{_SPNEGO}";boundary="Encrypted Boundary"', packed

    def _unwrapped(self, header: bytes, data: bytes) -> bytes:
        if hasattr(self._context, "unwrap_winrm"):
            return bytes(self._context.unwrap_winrm(header, data))
        # Whole wrap tokens, not buffers: another way through the library than the door's.
        return bytes(self._context.unwrap(header + data).message)

    def _wrapped(self, body: bytes) -> tuple[bytes, bytes]:
        if hasattr(self._context, "wrap_winrm"):
            made = self._context.wrap_winrm(body)
            return made.header, made.data
        import gssapi

        kinds = gssapi.raw.IOVBufferType
        parts = gssapi.raw.IOV(kinds.header, body, kinds.padding, std_layout=False)
        gssapi.raw.wrap_iov(self._context, parts, confidential=True, qop=None)
        return parts[0].value or b"", (parts[1].value or b"") + (parts[2].value or b"")
