"""How HTTP sessions with a host are set up: certificates, signing in, encryption, bounds.

Nothing is taken from this process's environment: no proxies, no authorities, no .netrc. A host's
answer is read piece by piece and at most ENVELOPE_MAX of it, is not unpacked, and no redirection is
followed, which would carry the request elsewhere.
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import requests
import requests.adapters
import requests.auth
import winrm.transport
from requests_ntlm import HttpNtlmAuth

from standby.errors import ConfigurationError
from standby.host.hyperv import kerberos
from standby.host.hyperv.credentials import ENCRYPTING, Access, SecretReader

ENVELOPE_MAX = 8 << 20
"""Bytes of one answer; pywinrm asks for envelopes of at most 150 KiB."""

_CREDSSP_MIN = 5
"""The protocol's version since the update of May 2018; older ones let others act as the user."""


class Strange(Exception):
    """What no WinRM service answers."""


class Transport(winrm.transport.Transport):
    """pywinrm's, with sessions of our own making.

    `look` is called for each piece of an answer; what it raises ends the message.
    """

    def __init__(self, access: Access, read_secret: SecretReader, look: Callable[[], None]) -> None:
        _check(access)
        super().__init__(access.url, username="-", password="-", auth_method="basic")
        self.auth_method = access.transport
        self.username = self.password = None
        self._access = access
        self._read_secret = read_secret
        self._look = look
        # Over HTTP every message is encrypted; basic is among them only in tests.
        self._is_encrypting = not access.is_tls and access.transport in ENCRYPTING

    @property
    def is_ending(self) -> bool:
        """Whether the session was signed in with a ticket that is about to end."""
        auth = self.session.auth if self.session else None
        return isinstance(auth, kerberos.KerberosAuth) and auth.is_ending

    def build_session(self) -> requests.Session:
        """The session that is signed in, or a new one. One whose encryption could not be set up is
        not kept: the next message would go in the clear."""
        if self.session is not None:
            return self.session
        access = self._access
        session = requests.Session()
        session.trust_env = False
        session.max_redirects = 0
        default = ssl.get_default_verify_paths()
        session.verify = str(access.ca or default.cafile or default.capath or "") or True
        session.headers.update(self.default_headers)
        session.headers["Accept-Encoding"] = "identity"
        if access.transport == "certificate":
            session.cert = (str(access.certificate), str(access.key))
            session.headers["Authorization"] = (
                "http://schemas.dmtf.org/wbem/wsman/1/wsman/secprofile/https/mutual"
            )
        else:
            session.auth = self._auth()
        session.hooks["response"].append(self._bounded)
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Adapter())
        if self._is_encrypting:
            try:
                self.setup_encryption(session)
            except BaseException:
                session.close()
                raise
        self.session = session
        return session

    def close_session(self) -> None:
        """End the session, and with it what its messages were encrypted with."""
        super().close_session()
        self.encryption = None

    def _auth(self) -> Any:
        access = self._access
        password = self._read_secret(access.password, access.where) if access.password else ""
        match access.transport:
            case "ntlm":
                return HttpNtlmAuth(access.username, password)
            case "credssp":
                return _credssp(access)(access.username, password, minimum_version=_CREDSSP_MIN)
            case "kerberos":
                return kerberos.KerberosAuth(access, password)
            case _:
                return requests.auth.HTTPBasicAuth(access.username, password)

    def _bounded(self, response: requests.Response, **_: Any) -> None:
        """The last hook of a message, after those that sign in."""
        encoding = response.headers.get("Content-Encoding", "identity")
        if response.is_redirect or encoding != "identity":
            raise Strange(f"HTTP {response.status_code}, content encoding {encoding}")
        response.raw = _Bounded(response.raw, self._look)


class _Adapter(requests.adapters.HTTPAdapter):
    """Ends with its session also what an error left half read, which no pool knows any more."""

    def __init__(self) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1)
        self._answers: deque[requests.Response] = deque(maxlen=4)  # of a sign-in's steps

    def send(self, *message: Any, **options: Any) -> requests.Response:
        """The answer to a request."""
        response = super().send(*message, **options)
        self._answers.append(response)
        return response

    def close(self) -> None:
        """End all connections."""
        while self._answers:
            self._answers.pop().close()
        super().close()


class _Bounded:
    """An answer's body in pieces, for `requests.Response.raw`."""

    def __init__(self, raw: Any, look: Callable[[], None]) -> None:
        self._raw = raw
        self._look = look

    def stream(self, size: int, decode_content: bool | None = None) -> Iterator[bytes]:
        """The body as it was sent."""
        total = 0
        while data := self._raw.read1(size, decode_content=False):
            total += len(data)
            if total > ENVELOPE_MAX:
                raise Strange(f"an answer of more than {ENVELOPE_MAX} bytes")
            self._look()
            yield data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


def _check(access: Access) -> None:
    """Everything that can be known before the first message."""
    if access.transport == "credssp":
        _credssp(access)
    if access.transport == "kerberos":
        kerberos.check(access)
    for path in (access.ca, access.certificate, access.key, access.keytab):
        if path is not None and not path.is_file():
            raise ConfigurationError(access.where, f"{path}: no such file", "Is the path right?")


def _credssp(access: Access) -> Any:
    try:
        from requests_credssp import HttpCredSSPAuth
    except ImportError as exc:
        raise ConfigurationError(
            access.where,
            "transport = 'credssp' needs a package that is not installed",
            "Run pip install 'standby[credssp]'",
        ) from exc
    return HttpCredSSPAuth
