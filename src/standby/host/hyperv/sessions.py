"""One connection to one host with one shell.

A session is for one thread at a time. Its shell is kept open between scripts; where the host lost
it (restart, 2150858843), the next script gets a new one. After a pause the HTTP session is renewed:
http.sys ends connections after two minutes, and what was encrypted for one connection is nothing to
another.

A script begins only when its input has ended, for the bootstrap reads all of it first: until then
(`has_begun`) whatever fails may be tried again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from standby.clock import Clock
from standby.errors import (
    ConfigurationError,
    HostAccessDenied,
    HostAnswerWrong,
    HostCallFailed,
    HostCredentialsRefused,
    HostFault,
    HostShellLost,
)
from standby.host.hyperv import quotas as quota
from standby.host.hyperv.answers import ANSWER_SIZE_MAX
from standby.host.hyperv.clixml import SIZE_MAX as STDERR_MAX
from standby.host.hyperv.connections import Connection, Deadline
from standby.host.hyperv.credentials import Access, SecretReader
from standby.host.hyperv.payload import ARGUMENTS, COMMAND
from standby.host.hyperv.quotas import Quotas

STDOUT_MAX = ANSWER_SIZE_MAX // 3 * 4 + (64 << 10)
GRACE_S = 10.0
"""What a Receive may take beyond the time that the host was told."""
CLEANUP_S = 5.0
"""The longest that each message of tidying up waits: whoever waits has failed already."""
RENEW_AFTER_S = 60.0
RECEIVE_RECONNECTS_MAX = 2


@dataclass(frozen=True, slots=True)
class Output:
    """What a script wrote and ended with."""

    stdout: bytes
    stderr: bytes
    exit_code: int
    has_gaps: bool
    """An answer to Receive was lost with its connection, and maybe output in it."""


class Session:
    """One connection and at most one shell, for one thread at a time.

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
        self._connection = Connection(access, read_secret)
        self._shell_id = ""
        self._used_at = clock.monotonic()
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
            return self._connection.ask("reading the host's quotas", deadline, message, quota.read)
        except (HostAccessDenied, HostFault):
            return Quotas()

    def run(self, data: bytes, deadline: Deadline, quotas: Quotas) -> Output:
        """What powershell.exe makes of `data` on its input. Whatever happens, no command is left
        running: where it did not end by itself its shell is deleted."""
        self.has_begun = False
        if self.idle_s > RENEW_AFTER_S:
            self._connection.renew()
        command_id = ""
        try:
            if not self._shell_id:
                self._shell_id = self._connection.open_shell("opening a shell", deadline)
            command_id = self._connection.start(
                "starting powershell", deadline, self._shell_id, COMMAND, *ARGUMENTS
            )
            self._send(command_id, data, deadline, quotas)
            output = self._received(command_id, deadline, quotas)
        except HostCredentialsRefused:
            # Nothing more is sent: each message would be one more try with a wrong password.
            shell_id, self._shell_id = self._shell_id, ""
            if shell_id:
                self._on_leftover(shell_id)
            raise
        except BaseException:
            self._abandon(command_id)
            raise
        finally:
            self._used_at = self._clock.monotonic()
        with contextlib.suppress(HostCallFailed):
            self._end_command(self._shell_id, command_id)
        return output

    def close(self) -> None:
        """Delete the shell, if the host answers, and end the connection."""
        shell_id, self._shell_id = self._shell_id, ""
        try:
            if shell_id:
                self.delete_shell(shell_id)
        finally:
            self._connection.renew()

    def delete_shell(self, shell_id: str) -> None:
        """Delete a shell of this account; one that cannot be is reported as a leftover. Raises
        only HostCredentialsRefused, which is no reason to try more."""
        try:
            self._connection.delete_shell("tidying up", self._soon(), shell_id)
        except (HostCallFailed, ConfigurationError) as exc:
            if not self._connection.is_shell_gone:
                self._on_leftover(shell_id)
            if isinstance(exc, HostCredentialsRefused):
                raise

    # --- a script's input and output ---

    def _send(self, command_id: str, data: bytes, deadline: Deadline, quotas: Quotas) -> None:
        for start in range(0, len(data), quotas.chunk_bytes):
            chunk = data[start : start + quotas.chunk_bytes]
            is_end = start + len(chunk) == len(data)
            self.has_begun = self.has_begun or is_end
            self._connection.send(
                "sending the script", deadline, self._shell_id, command_id, chunk, is_end=is_end
            )

    def _received(self, command_id: str, deadline: Deadline, quotas: Quotas) -> Output:
        doing = "waiting for its answer"
        stdout, stderr = bytearray(), bytearray()
        reconnects = 0
        while True:
            wait_s = max(1, min(quotas.operation_s, int(deadline.left_s(doing))))
            try:
                received = self._connection.receive(
                    doing, deadline, self._shell_id, command_id, wait_s, GRACE_S
                )
            except HostShellLost:
                reconnects += 1
                if self._connection.is_shell_gone or reconnects > RECEIVE_RECONNECTS_MAX:
                    raise
                continue
            if received is None:
                continue
            more, more_err, exit_code, is_done = received
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
        self._connection.renew()
        if not shell_id:
            return
        if command_id:
            with contextlib.suppress(HostCallFailed):
                self._end_command(shell_id, command_id)
        self.delete_shell(shell_id)

    def _end_command(self, shell_id: str, command_id: str) -> None:
        self._connection.end_command("tidying up", self._soon(), shell_id, command_id)

    def _soon(self) -> Deadline:
        return Deadline(self._access.host, "tidying up", self._cleanup_s, self._clock)
