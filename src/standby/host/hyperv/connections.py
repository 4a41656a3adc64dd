"""WinRM messages to one host, each with typed errors: where pywinrm's and requests' errors end.

A connection is for one thread at a time: pywinrm's Protocol holds one HTTP session with the state
of NTLM, CredSSP or Kerberos in it. Each piece of an answer is looked at against the call's
deadline, for a time-out of requests is one of a single read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import requests
import urllib3
from winrm.exceptions import (
    InvalidCredentialsError,
    WinRMError,
    WinRMOperationTimeoutError,
    WinRMTransportError,
    WSManFaultError,
)
from winrm.protocol import Protocol

from standby.clock import Clock
from standby.errors import (
    ConfigurationError,
    HostAccessDenied,
    HostCallFailed,
    HostCertificateRefused,
    HostCredentialsRefused,
    HostDeadline,
    HostFault,
    HostQuotaReached,
    HostShellLost,
    HostUnreachable,
)
from standby.host.hyperv.credentials import Access, SecretReader
from standby.host.hyperv.transports import Strange, Transport

CONNECT_S = 10.0
MESSAGE_S = 30.0
"""The longest that a message other than Receive waits for its answer."""
CODE_PAGE = 65001
SHELL_IDLE_S = 900
"""When the host ends a shell of ours that nobody speaks to: one that could not be deleted."""

_SHELL_NOT_FOUND = 2150858843
_ACCESS_DENIED = 5
_SIGNING_MODULES = ("spnego", "requests_credssp", "requests_ntlm", "OpenSSL")

T = TypeVar("T")


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


class Connection:
    """One signed-in HTTP session; `renew` ends it, and the next message begins another.

    Every method that sends takes what it is about (`doing`, for the message of an error) and the
    deadline of the call, and raises children of HostCallFailed only, or ConfigurationError.
    """

    def __init__(self, access: Access, read_secret: SecretReader) -> None:
        self._access = access
        self._transport = Transport(access, read_secret, self._look)
        self._protocol = Protocol(access.url, "basic", username="-", password="-")
        self._protocol.transport = self._transport
        self._is_signed_in = False
        self._doing: tuple[Deadline, str] | None = None
        self.is_shell_gone = False
        """Whether the last message was answered with: there is no such shell."""

    def open_shell(self, doing: str, deadline: Deadline) -> str:
        """The id of a new shell."""
        return self._said(
            doing,
            deadline,
            lambda: self._protocol.open_shell(
                codepage=CODE_PAGE, idle_timeout=f"PT{SHELL_IDLE_S}S"
            ),
        )

    def start(
        self, doing: str, deadline: Deadline, shell_id: str, command: str, *arguments: str
    ) -> str:
        """The id of a new command, which waits for its input."""
        return self._said(
            doing,
            deadline,
            lambda: self._protocol.run_command(
                shell_id, command, arguments, console_mode_stdin=False
            ),
        )

    def send(
        self,
        doing: str,
        deadline: Deadline,
        shell_id: str,
        command_id: str,
        data: bytes,
        *,
        is_end: bool,
    ) -> None:
        """A piece of a command's input."""
        self._said(
            doing,
            deadline,
            lambda: self._protocol.send_command_input(shell_id, command_id, data, end=is_end),
        )

    def receive(
        self,
        doing: str,
        deadline: Deadline,
        shell_id: str,
        command_id: str,
        operation_s: int,
        grace_s: float,
    ) -> tuple[bytes, bytes, int, bool] | None:
        """More output, more errors, the exit code and whether it ended; None when nothing came in
        `operation_s`, which the host is told; it has `grace_s` more to say so."""
        self._protocol.operation_timeout_sec = operation_s
        try:
            return self._said(
                doing,
                deadline,
                lambda: self._protocol.get_command_output_raw(shell_id, command_id),
                operation_s + grace_s,
                may_time_out=True,
            )
        except _TimedOut:
            return None

    def end_command(self, doing: str, deadline: Deadline, shell_id: str, command_id: str) -> None:
        """Signal: the command is over, by itself or now."""
        self._said(doing, deadline, lambda: self._protocol.cleanup_command(shell_id, command_id))

    def delete_shell(self, doing: str, deadline: Deadline, shell_id: str) -> None:
        """Delete a shell with all that runs in it."""
        self._said(
            doing, deadline, lambda: self._protocol.close_shell(shell_id, close_session=False)
        )

    def ask(self, doing: str, deadline: Deadline, message: str, read: Callable[[bytes], T]) -> T:
        """What `read` makes of the answer to a whole envelope."""
        return self._said(doing, deadline, lambda: read(self._protocol.send_message(message)))

    def renew(self) -> None:
        """Begin a new HTTP session at the next message, signing in again."""
        self._is_signed_in = False
        self._transport.close_session()

    # --- one message ---

    def _said(
        self,
        doing: str,
        deadline: Deadline,
        call: Callable[[], T],
        wait_s: float = MESSAGE_S,
        *,
        may_time_out: bool = False,
    ) -> T:
        """What `call` returns, which sends one message; pywinrm's and requests' errors as ours."""
        self.is_shell_gone = False
        if self._transport.is_ending:
            self.renew()
        try:
            try:
                return self._once(doing, deadline, call, wait_s)
            except _SignInLost:
                # http.sys ended the connection that was signed in, and urllib3 opened another.
                # The message was not acted on; this time a refusal is one of the credentials.
                self.renew()
                return self._once(doing, deadline, call, wait_s)
        except _TimedOut as exc:
            self._is_signed_in = True
            if may_time_out:
                raise
            reason = f"the host took too long while {doing}"
            raise HostShellLost(self._access.host, deadline.verb, reason) from exc
        except (HostCallFailed, ConfigurationError):
            self.renew()
            deadline.left_s(doing)  # late is late, whatever it ended with
            raise

    def _once(self, doing: str, deadline: Deadline, call: Callable[[], T], wait_s: float) -> T:
        left_s = deadline.left_s(doing)
        # requests takes a pair (connect, read) of fractions; pywinrm hands it on as it is.
        timeouts: Any = (min(CONNECT_S, left_s), min(wait_s, left_s))
        self._transport.read_timeout_sec = timeouts
        self._doing = deadline, doing
        with self._typed(deadline, doing):
            value = call()
        self._is_signed_in = True
        return value

    def _look(self) -> None:
        """Called for each piece of an answer."""
        if self._doing is not None:
            deadline, doing = self._doing
            deadline.left_s(doing)

    @contextlib.contextmanager
    def _typed(self, deadline: Deadline, doing: str) -> Iterator[None]:
        access = self._access
        try:
            yield
        except (HostCallFailed, ConfigurationError):
            raise
        except WinRMOperationTimeoutError as exc:
            raise _TimedOut(access.host, deadline.verb, f"no answer while {doing}") from exc
        except WSManFaultError as exc:
            raise self._fault(deadline, exc) from exc
        except (InvalidCredentialsError, PermissionError) as exc:
            reason = "" if isinstance(exc, InvalidCredentialsError) else str(exc)
            raise self._refused(reason) from exc
        except WinRMTransportError as exc:
            if exc.code == 400 and self._is_signed_in and self._transport.encryption:
                raise self._refused("") from exc  # encrypted for a connection that has ended
            if exc.code == 403 and access.transport == "certificate":
                raise self._refused("HTTP 403") from exc
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
                raise self._refused(_shown(exc)) from exc
            shown = f": {_shown(exc)}" if isinstance(exc, WinRMError | Strange) else ""
            raise HostUnreachable(
                access.host,
                access.url,
                f"what answers is no WinRM service: {type(exc).__name__.strip('_')} while {doing}"
                f"{shown}",
                "Is the port right, and is there a proxy in between?",
            ) from exc

    def _refused(self, reason: str) -> HostCredentialsRefused:
        kind = _SignInLost if self._is_signed_in else HostCredentialsRefused
        return kind(self._access.host, self._access.username, self._access.transport, reason)

    def _fault(self, deadline: Deadline, exc: WSManFaultError) -> HostCallFailed:
        host, verb = self._access.host, deadline.verb
        subcode = (exc.fault_subcode or "").rpartition(":")[2]
        reason = " ".join(exc.reason.split())
        if exc.wsman_fault_code == _SHELL_NOT_FOUND:
            self.is_shell_gone = True
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
        hint = "Is that port the one of HTTPS"
        if access.transport == "certificate":  # over TLS 1.3 its refusal may look like an end
            hint += f", and does the host trust who signed {access.certificate}"
        return HostUnreachable(access.host, access.url, text, f"{hint}?")


class _TimedOut(HostShellLost):
    """The host says that an operation took longer than it was given (2150858793)."""


class _SignInLost(HostCredentialsRefused):
    """A refusal in the midst of a session that had been signed in."""


def _shown(exc: BaseException) -> str:
    """An error's text in one short line, without the addresses of objects."""
    text = " ".join(str(exc).split())
    return text.rpartition("object at 0x")[2].partition(">: ")[2][:300] or text[:300]
