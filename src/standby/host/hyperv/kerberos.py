"""Signing in by Kerberos, with the system's GSSAPI through python-gssapi.

    keytab     tickets are got with its key, and again when half of their life is over
    password   the same, by what its reference names
    neither    tickets that somebody else keeps fresh (kinit, k5start) in the default cache

pywinrm's own Kerberos takes all of that from the process's environment, for every host the same;
here each host has its own. How long a domain controller is waited for is krb5.conf's business. Over
HTTPS the ticket is bound to the host's certificate (RFC 5929),
over HTTP each message is encrypted with the session's key (MS-WSMV 2.2.9.1.1).
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from collections import defaultdict
from typing import Any

import requests.auth
from cryptography import x509

from standby.clock import SYSTEM_CLOCK
from standby.errors import (
    ConfigurationError,
    HostCallFailed,
    HostClockSkewed,
    HostCredentialsRefused,
    HostUnreachable,
)
from standby.host.hyperv.credentials import Access

ENDING_S = 60.0
"""A session whose ticket ends within this time signs in again before its next message."""

_KRB5 = "1.2.840.113554.1.2.2"
_FIRST_CODE = -1765328384
"""krb5_err.h's ERROR_TABLE_BASE_krb5: what a code counts from."""

_SKEWED = 37
_NO_KDC = frozenset({29, 154, 156, 220})
"""SVC_UNAVAILABLE, REALM_UNKNOWN, KDC_UNREACH, REALM_CANT_RESOLVE."""
_NO_KEY = "The keytab has no key for this account: `klist -k` shows whose it has"
_NO_TICKET = "There are no tickets: run kinit as the server's user, or name a keytab"

_HINTS: dict[int, str] = {
    1: "The account has expired: extend it in Active Directory",
    6: "The domain knows no such account: is the realm right, and in capitals?",
    7: "The domain knows no service HTTP/{address}: write the host's own name as the domain has it "
    "(`setspn -Q HTTP/{address}` finds it)",
    18: "The account is disabled or locked: unlock it in Active Directory",
    23: "The password has expired: set a new one, and make the keytab anew",
    24: "The password was changed: write the new one, or make the keytab anew",
    31: "The host's own key was changed: sign in anew, and restart its WinRM service",
    32: "Tickets of the default cache ran out and nothing renews them: name a keytab",
    141: _NO_TICKET,
    181: _NO_KEY,
    195: _NO_TICKET,
}
"""By code of RFC 4120 (up to 127), or of MIT's library."""

_TOKEN = re.compile(r"(?:^|,)\s*(?:Negotiate|Kerberos)\s+([A-Za-z0-9+/=]+)", re.IGNORECASE)
_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
_locks_lock = threading.Lock()


def check(access: Access) -> None:
    """ConfigurationError where this machine has no Kerberos."""
    _gssapi(access)


class KerberosAuth(requests.auth.AuthBase):
    """Signs a session's connection in, before its first message goes out (HTTP) or when the host
    asks for it (HTTPS, whose certificate has to be seen first)."""

    def __init__(self, access: Access, password: str) -> None:
        self._access = access
        self._gssapi = _gssapi(access)
        self._password = password.encode()
        self._context: Any = None
        self._ends_at = float("inf")

    @property
    def is_ending(self) -> bool:
        """Whether the session's ticket is about to end."""
        return SYSTEM_CLOCK.monotonic() > self._ends_at - ENDING_S

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """requests' hook before a request."""
        if not self._access.is_tls and self._context is None:
            request.headers["Authorization"] = f"Negotiate {self._token(None)}"
        request.register_hook("response", self._answered)
        return request

    def _answered(self, response: requests.Response, **options: Any) -> requests.Response:
        if self._context is not None and not self._context.complete:
            self._finish(response)
            return response
        if response.status_code != 401 or "egotiate" not in _offered(response):
            return response
        if self._context is not None:
            return response  # the connection signed in with it has ended: begin a session anew
        binding = _binding(response)
        request = response.request.copy()
        response.content  # noqa: B018  # read to the end, so that the connection can be used again
        response.raw.release_conn()
        request.headers["Authorization"] = f"Negotiate {self._token(binding)}"
        signed: requests.Response = response.connection.send(request, **options)
        signed.history.append(response)
        self._finish(signed)
        return signed

    def _finish(self, response: requests.Response) -> None:
        """Have the host prove who it is; a refusal that says why is one of the ticket."""
        match = _TOKEN.search(_offered(response))
        if match:
            with self._typed():
                self._context.step(base64.b64decode(match[1]))
                self._raise_deferred()
        if response.status_code == 401:
            self._context = None
        elif self._context.complete:
            self._ends_at = SYSTEM_CLOCK.monotonic() + self._context.lifetime
        else:
            raise HostCredentialsRefused(
                self._access.host,
                self._access.username,
                "kerberos",
                "what answers did not prove that it is the host",
            )

    def _token(self, binding: bytes | None) -> str:
        gssapi = self._gssapi
        with self._typed():
            mech = gssapi.OID.from_int_seq(_KRB5)
            flags = gssapi.RequirementFlag
            wanted = [
                flags.mutual_authentication,
                flags.out_of_sequence_detection,
                flags.replay_detection,
                flags.integrity,
                flags.confidentiality,
            ]
            if self._access.delegate:
                wanted.append(flags.delegate_to_peer)
            credentials = self._credentials(mech)
            self._context = gssapi.SecurityContext(
                name=gssapi.Name(f"HTTP@{self._access.address}", gssapi.NameType.hostbased_service),
                creds=credentials,
                mech=mech,
                flags=wanted,
                usage="initiate",
                channel_bindings=binding and gssapi.raw.ChannelBindings(application_data=binding),
            )
            token = self._context.step()
            self._raise_deferred()
        return base64.b64encode(token or b"").decode("ascii")

    def _credentials(self, mech: Any) -> Any:
        gssapi, access = self._gssapi, self._access
        name = gssapi.Name(access.username, gssapi.NameType.kerberos_principal)
        if access.keytab is not None:
            who = f"{access.username}\0{access.keytab}".encode()
            store = {
                "client_keytab": f"FILE:{access.keytab}",
                # A cache in memory of this account alone, for all of its sessions: the library
                # gets new tickets into it when the old ones have lived half of their life.
                "ccache": f"MEMORY:standby-{hashlib.sha256(who).hexdigest()[:32]}",
            }
            with _lock_of(store["ccache"]):  # one request for tickets at a time
                return gssapi.Credentials(name=name, store=store, mechs=[mech], usage="initiate")
        if self._password:
            got = gssapi.raw.acquire_cred_with_password(
                name, self._password, mechs=[mech], usage="initiate"
            )
            return got.creds
        return gssapi.Credentials(name=name, mechs=[mech], usage="initiate")

    def _raise_deferred(self) -> None:
        """A step that failed with something to send raises at the next use of its context."""
        self._context.complete  # noqa: B018

    def _typed(self) -> _Typed:
        return _Typed(self._access, self._gssapi)

    # --- what pywinrm's Encryption asks for ---

    def wrap_winrm(self, host: str, message: bytes) -> tuple[bytes, bytes]:
        """The message encrypted, and its header."""
        raw = self._gssapi.raw
        parts = raw.IOV(
            raw.IOVBufferType.header, message, raw.IOVBufferType.padding, std_layout=False
        )
        with self._typed():
            raw.wrap_iov(self._context, parts, confidential=True, qop=None)
        return (parts[1].value or b"") + (parts[2].value or b""), parts[0].value or b""

    def unwrap_winrm(self, host: str, message: bytes, header: bytes) -> bytes:
        """The plain text of an answer."""
        raw = self._gssapi.raw
        parts = raw.IOV(
            (raw.IOVBufferType.header, False, header),
            (raw.IOVBufferType.data, False, message),
            (raw.IOVBufferType.data, False, None),
            std_layout=False,
        )
        with self._typed():
            raw.unwrap_iov(self._context, parts)
        plain: bytes = parts[1].value or b""
        return plain


class _Typed:
    """Turns GSSAPI's errors into ours."""

    def __init__(self, access: Access, gssapi: Any) -> None:
        self._access = access
        self._gssapi = gssapi

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, self._gssapi.raw.GSSError):
            raise error_of(self._access, error.min_code, _text(error)) from error


def error_of(access: Access, code: int, text: str) -> HostCallFailed:
    """The typed error of GSSAPI's minor status."""
    number = code - _FIRST_CODE if code < 1 << 31 else code - (1 << 32) - _FIRST_CODE
    if number == _SKEWED:
        return HostClockSkewed(access.host, text)
    if number in _NO_KDC:
        realm = access.username.rpartition("@")[2]
        return HostUnreachable(
            access.host,
            f"the domain {realm}",
            text,
            "Does this machine find its domain controllers by DNS, or does krb5.conf name them, "
            "and does a firewall let it reach their port 88?",
        )
    hint = _HINTS.get(number, "").format(address=access.address)
    if hint == _NO_TICKET and access.keytab is not None:
        hint = _NO_KEY
    return HostCredentialsRefused(access.host, access.username, "kerberos", text, hint)


def _text(error: Any) -> str:
    """What the library says, without its "Unspecified GSS failure"."""
    said = error.get_all_statuses(error.min_code, False) if error.min_code else []
    return " ".join("; ".join(str(one) for one in said).split()) or str(error)


def _lock_of(cache: str) -> threading.Lock:
    with _locks_lock:
        return _locks[cache]


def _offered(response: requests.Response) -> str:
    return str(response.headers.get("WWW-Authenticate", ""))


def _binding(response: requests.Response) -> bytes | None:
    """tls-server-end-point of RFC 5929, section 4.1; None where the certificate cannot be had."""
    try:
        certificate = response.raw._fp.fp.raw._sock.getpeercert(True)
    except AttributeError:
        return None
    algorithm = x509.load_der_x509_certificate(certificate).signature_hash_algorithm
    name = algorithm.name if algorithm is not None else "sha256"
    digest = hashlib.new("sha256" if name in ("md5", "sha1") else name, certificate).digest()
    return b"tls-server-end-point:" + digest


def _gssapi(access: Access) -> Any:
    try:
        import gssapi
        import gssapi.raw
    except ImportError as exc:
        raise ConfigurationError(
            access.where,
            "transport = 'kerberos' needs a package that is not installed",
            "Run apt install gcc libkrb5-dev krb5-user, then pip install 'standby[kerberos]'",
        ) from exc
    except OSError as exc:
        raise ConfigurationError(
            access.where, f"this machine's Kerberos cannot be loaded: {exc}", "Is MIT's installed?"
        ) from exc
    return gssapi
