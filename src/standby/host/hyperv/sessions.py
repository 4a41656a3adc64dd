"""One connection to one host with one shell: the only place that touches pywinrm.

A session is for one thread at a time (pywinrm's Protocol holds one HTTP session with the state of
NTLM or Kerberos in it). Its shell is kept open between scripts; where the host lost it (restart,
2150858843), the next script gets a new one. After a pause the HTTP session is renewed: http.sys
ends connections after two minutes, and what was encrypted for one connection is nothing to another.

A script begins only when its input has ended, for the bootstrap reads all of it first: until then
(`has_begun`) whatever fails may be tried again.
"""

from __future__ import annotations

import contextlib
import functools
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import requests
import urllib3
import winrm.transport
from winrm.exceptions import (
    InvalidCredentialsError,
    WinRMOperationTimeoutError,
    WinRMTransportError,
    WSManFaultError,
)
from winrm.protocol import Protocol

from standby.clock import Clock
from standby.errors import (
    ConfigurationError,
    HostAccessDenied,
    HostAnswerWrong,
    HostCallFailed,
    HostCertificateRefused,
    HostCredentialsRefused,
    HostDeadline,
    HostFault,
    HostQuotaReached,
    HostShellLost,
    HostUnreachable,
)
from standby.host.hyperv import quotas as quota
from standby.host.hyperv.answers import ANSWER_SIZE_MAX
from standby.host.hyperv.clixml import SIZE_MAX as STDERR_MAX
from standby.host.hyperv.credentials import ENCRYPTING, Access, SecretReader
from standby.host.hyperv.payload import ARGUMENTS, COMMAND
from standby.host.hyperv.quotas import Quotas

STDOUT_MAX = ANSWER_SIZE_MAX // 3 * 4 + (64 << 10)
CODE_PAGE = 65001

CONNECT_S = 10.0
MESSAGE_S = 30.0
"""The longest that a message other than Receive waits for its answer."""
GRACE_S = 10.0
"""What a Receive may take beyond the time that the host was told."""
CLEANUP_S = 5.0
"""The longest that each message of tidying up waits: whoever waits has failed already."""
RENEW_AFTER_S = 60.0
RECEIVE_RECONNECTS_MAX = 2

_SHELL_NOT_FOUND = 2150858843
_ACCESS_DENIED = 5
_EXTRAS = {"kerberos": winrm.transport.HAVE_KERBEROS, "credssp": winrm.transport.HAVE_CREDSSP}
_SIGNING_MODULES = ("kerberos", "spnego", "requests_credssp", "requests_ntlm", "winrm.vendor")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Output:
    """What a script wrote and ended with."""

    stdout: bytes
    stderr: bytes
    exit_code: int
    has_gaps: bool
    """An answer to Receive was lost with its connection, and maybe output in it."""


class Deadline:
    """The end of one call."""

    def __init__(self, host: str, verb: str, duration_s: float, clock: Clock) -> None:
        self.host = host
        self.verb = verb
        self._duration_s = duration_s
        self._clock = clock
        self._end = clock.monotonic() + duration_s

    def left_s(self, doing: str) -> float:
        """Seconds left; HostDeadline when there are none."""
        left = self._end - self._clock.monotonic()
        if left <= 0:
            raise self.passed(doing)
        return left

    def passed(self, doing: str) -> HostDeadline:
        """The error of a call that is late."""
        return HostDeadline(self.host, self.verb, self._duration_s, doing)


class Session:
    """One Protocol and at most one shell, for one thread at a time.

    `on_leftover` gets the id of a shell that could not be deleted.
    """

    def __init__(
        self,
        access: Access,
        read_secret: SecretReader,
        clock: Clock,
        on_leftover: Callable[[str], None],
        *,
        cleanup_s: float = CLEANUP_S,
    ) -> None:
        self._access = access
        self._clock = clock
        self._on_leftover = on_leftover
        self._cleanup_s = cleanup_s
        self._protocol = _protocol(access, read_secret)
        self._shell_id = ""
        self._used_at = clock.monotonic()
        self._is_gone = False
        """Whether the last message was answered with: there is no such shell."""
        self.has_begun = False
        """Whether the script of the last `run` may have done something."""

    @property
    def idle_s(self) -> float:
        """Seconds since the last use."""
        return self._clock.monotonic() - self._used_at

    def read_quotas(self, deadline: Deadline) -> Quotas:
        """The host's limits; the smallest known ones where this account may not read them."""
        message = quota.request(self._access.url)
        try:
            return self._said(
                "reading the host's quotas",
                deadline,
                lambda: quota.read(self._protocol.send_message(message)),
            )
        except (HostAccessDenied, HostFault):
            return Quotas()

    def run(self, data: bytes, deadline: Deadline, quotas: Quotas) -> Output:
        """What powershell.exe makes of `data` on its input. Whatever happens, no command is left
        running: where it did not end by itself its shell is deleted."""
        self.has_begun = False
        if self.idle_s > RENEW_AFTER_S:
            self._renew()
        command_id = ""
        try:
            if not self._shell_id:
                self._shell_id = self._said(
                    "opening a shell",
                    deadline,
                    lambda: self._protocol.open_shell(codepage=CODE_PAGE),
                )
            command_id = self._said(
                "starting powershell",
                deadline,
                lambda: self._protocol.run_command(
                    self._shell_id, COMMAND, ARGUMENTS, console_mode_stdin=False
                ),
            )
            self._send(command_id, data, deadline, quotas)
            output = self._received(command_id, deadline, quotas)
        except BaseException:
            self._abandon(command_id)
            raise
        finally:
            self._used_at = self._clock.monotonic()
        with contextlib.suppress(HostCallFailed):
            self._tidy(lambda: self._protocol.cleanup_command(self._shell_id, command_id))
        return output

    def close(self) -> None:
        """Delete the shell, if the host answers, and end the connection."""
        if self._shell_id:
            self.delete_shell(self._shell_id)
            self._shell_id = ""
        self._protocol.transport.close_session()

    def delete_shell(self, shell_id: str) -> None:
        """Delete a shell of this account; one that cannot be is reported as a leftover."""
        try:
            self._tidy(lambda: self._protocol.close_shell(shell_id, close_session=False))
        except HostCallFailed:
            if not self._is_gone:
                self._on_leftover(shell_id)

    # --- a script's input and output ---

    def _send(self, command_id: str, data: bytes, deadline: Deadline, quotas: Quotas) -> None:
        for start in range(0, len(data), quotas.chunk_bytes):
            chunk = data[start : start + quotas.chunk_bytes]
            is_end = start + len(chunk) == len(data)
            self.has_begun = self.has_begun or is_end
            send = functools.partial(
                self._protocol.send_command_input, self._shell_id, command_id, chunk, end=is_end
            )
            self._said("sending the script", deadline, send)

    def _received(self, command_id: str, deadline: Deadline, quotas: Quotas) -> Output:
        doing = "waiting for its answer"
        stdout, stderr = bytearray(), bytearray()
        reconnects = 0
        while True:
            wait_s = max(1, min(quotas.operation_s, int(deadline.left_s(doing))))
            self._protocol.operation_timeout_sec = wait_s
            try:
                more, more_err, exit_code, is_done = self._said(
                    doing,
                    deadline,
                    lambda: self._protocol.get_command_output_raw(self._shell_id, command_id),
                    wait_s + GRACE_S,
                )
            except WinRMOperationTimeoutError:
                continue
            except HostShellLost:
                reconnects += 1
                if self._is_gone or reconnects > RECEIVE_RECONNECTS_MAX:
                    raise
                self._renew()
                continue
            stdout += more
            stderr += more_err[: STDERR_MAX - len(stderr)]
            if len(stdout) > STDOUT_MAX:
                raise HostAnswerWrong(deadline.host, deadline.verb, f"over {STDOUT_MAX} bytes")
            if is_done:
                return Output(bytes(stdout), bytes(stderr), exit_code, reconnects > 0)

    # --- tidying up ---

    def _abandon(self, command_id: str) -> None:
        """Signal, then Delete: what still runs ends with its shell. On a connection of its own, for
        the old one may have half an answer in it."""
        shell_id, self._shell_id = self._shell_id, ""
        self._renew()
        if not shell_id:
            return
        if command_id:
            with contextlib.suppress(HostCallFailed):
                self._tidy(lambda: self._protocol.cleanup_command(shell_id, command_id))
        self.delete_shell(shell_id)

    def _tidy(self, call: Callable[[], None]) -> None:
        deadline = Deadline(self._access.host, "tidying up", self._cleanup_s, self._clock)
        try:
            self._said("tidying up", deadline, call)
        except (WinRMOperationTimeoutError, ConfigurationError) as exc:
            raise HostShellLost(self._access.host, "tidying up", str(exc)) from exc

    def _renew(self) -> None:
        """Begin a new HTTP session at the next message, signing in again."""
        self._protocol.transport.close_session()
        self._protocol.transport.encryption = None

    # --- one message ---

    def _said(
        self, doing: str, deadline: Deadline, call: Callable[[], T], wait_s: float = MESSAGE_S
    ) -> T:
        """What `call` returns, which sends one message; pywinrm's and requests' errors as ours."""
        left_s = deadline.left_s(doing)
        self._is_gone = False
        # requests takes a pair (connect, read) of fractions; pywinrm hands it on as it is.
        timeouts: Any = (min(CONNECT_S, left_s), min(wait_s, left_s))
        self._protocol.transport.read_timeout_sec = timeouts
        try:
            with self._typed(deadline, doing):
                return call()
        except HostCallFailed:
            # pywinrm keeps an HTTP session whose encryption could not be set up, and would send the
            # next message in the clear.
            self._renew()
            deadline.left_s(doing)  # late is late, whatever it ended with
            raise

    @contextlib.contextmanager
    def _typed(self, deadline: Deadline, doing: str) -> Iterator[None]:
        access = self._access
        try:
            yield
        except (HostCallFailed, ConfigurationError, WinRMOperationTimeoutError):
            raise
        except WSManFaultError as exc:
            raise self._fault(deadline, exc) from exc
        except InvalidCredentialsError as exc:
            raise HostCredentialsRefused(access.host, access.username, access.transport) from exc
        except WinRMTransportError as exc:
            raise HostUnreachable(access.host, access.url, f"HTTP {exc.code}") from exc
        except requests.exceptions.SSLError as exc:
            raise self._tls_failed(exc) from exc
        except requests.exceptions.ConnectTimeout as exc:
            raise HostUnreachable(access.host, access.url, "no connection in time") from exc
        except requests.exceptions.ReadTimeout as exc:
            raise HostShellLost(access.host, deadline.verb, f"no answer while {doing}") from exc
        except requests.exceptions.RequestException as exc:
            cause = getattr(exc.args[0] if exc.args else None, "reason", None)
            if isinstance(cause, urllib3.exceptions.NewConnectionError):
                raise HostUnreachable(access.host, access.url, _shown(cause)) from exc
            reason = f"the connection ended while {doing}"
            raise HostShellLost(access.host, deadline.verb, reason) from exc
        except Exception as exc:
            if type(exc).__module__.startswith(_SIGNING_MODULES):
                raise HostCredentialsRefused(
                    access.host, access.username, access.transport, _shown(exc)
                ) from exc
            raise HostUnreachable(
                access.host,
                access.url,
                f"what answers is no WinRM service: {type(exc).__name__} while {doing}",
                "Is the port right, and is there a proxy in between?",
            ) from exc

    def _fault(self, deadline: Deadline, exc: WSManFaultError) -> HostCallFailed:
        host, verb = self._access.host, deadline.verb
        subcode = (exc.fault_subcode or "").rpartition(":")[2]
        reason = " ".join(exc.reason.split())
        if exc.wsman_fault_code == _SHELL_NOT_FOUND:
            self._is_gone = True
            return HostShellLost(host, verb, reason)
        if exc.wsman_fault_code == _ACCESS_DENIED or subcode == "AccessDenied":
            return HostAccessDenied(host, verb, reason)
        if subcode == "QuotaLimit" or "maximum number of concurrent" in reason:
            return HostQuotaReached(host, verb, reason)
        return HostFault(host, verb, exc.wsman_fault_code or 0, reason)

    def _tls_failed(self, exc: requests.exceptions.SSLError) -> HostCallFailed:
        access, text = self._access, _shown(exc)
        if "CERTIFICATE_VERIFY_FAILED" in text or "doesn't match" in text:
            return HostCertificateRefused(access.host, access.url, text)
        if access.transport == "certificate" and "alert" in text:
            return HostCredentialsRefused(access.host, str(access.certificate), "TLS", text)
        return HostUnreachable(access.host, access.url, text, "Is that port the one of HTTPS?")


def _shown(exc: BaseException) -> str:
    """An error's text in one short line, without the addresses of objects."""
    text = " ".join(str(exc).split())
    return text.rpartition("object at 0x")[2].partition(">: ")[2][:300] or text[:300]


def _protocol(access: Access, read_secret: SecretReader) -> Protocol:
    """pywinrm's end, with nothing taken from this process's environment (proxies, authorities)."""
    if not _EXTRAS.get(access.transport, True):
        raise ConfigurationError(
            access.where,
            f"transport = {access.transport!r} needs a package that is not installed",
            f"Run pip install 'standby[{access.transport}]'",
        )
    for path in (access.ca, access.certificate, access.key):
        if path is not None and not path.is_file():
            raise ConfigurationError(access.where, f"{path}: no such file", "Is the path right?")
    default = ssl.get_default_verify_paths()
    authority: Any = access.ca or default.cafile or default.capath
    return Protocol(
        access.url,
        access.transport,
        username=access.username or None,
        password=read_secret(access.password, access.where) if access.password else None,
        ca_trust_path=str(authority) if authority else None,  # type: ignore[arg-type]
        cert_pem=str(access.certificate) if access.certificate else None,
        cert_key_pem=str(access.key) if access.key else None,
        kerberos_delegation=access.delegate,
        message_encryption="auto"
        if access.is_tls or access.transport not in ENCRYPTING  # the latter only in tests
        else "always",
        proxy=None,
    )
