"""Shells and their commands, as the service keeps them."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class CommandLine:
    """What the service starts."""

    text: str
    arguments: str
    """As on the wire: joined by blanks."""


@dataclass(frozen=True)
class Result:
    """What the program left."""

    stdout: bytes = b""
    stderr: bytes = b""
    exit_code: int = 0


Executor = Callable[[CommandLine, bytes], Result]
"""Runs one command on its whole standard input."""


@dataclass(frozen=True)
class Quotas:
    """The service's limits, as winrm/config shows them."""

    max_shells_per_user: int = 30
    max_envelope_size_kb: int = 500
    max_timeout_ms: int = 60000
    is_readable: bool = True
    """Whether the user may read the configuration."""


@dataclass
class Command:
    """A program in a shell."""

    id: str
    line: CommandLine
    stdin: bytearray = field(default_factory=bytearray)
    has_begun: bool = False
    result: Result | None = None
    sent: dict[str, int] = field(default_factory=lambda: {"stdout": 0, "stderr": 0})
    is_ended: bool = False
    """Terminated by a signal, or with its shell."""


@dataclass
class Shell:
    """One shell of one user."""

    id: str
    user: str
    commands: dict[str, Command] = field(default_factory=dict)


class Shells:
    """All shells of a host; every change notifies `changed`."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._shells: dict[str, Shell] = {}
        self._threads: list[threading.Thread] = []
        self.changed = threading.Condition()
        self.opened = 0
        self.open_most = 0
        self.scripts = 0

    @property
    def open(self) -> int:
        """Shells that exist."""
        return len(self._shells)

    def of(self, user: str) -> int:
        """Shells of one user."""
        return sum(shell.user == user for shell in self._shells.values())

    def create(self, user: str) -> Shell:
        """A new shell."""
        with self.changed:
            shell = Shell(str(uuid.uuid4()).upper(), user)
            self._shells[shell.id] = shell
            self.opened += 1
            self.open_most = max(self.open_most, len(self._shells))
            return shell

    def get(self, shell_id: str) -> Shell | None:
        """The shell of that id."""
        return self._shells.get(shell_id)

    def delete(self, shell_id: str) -> None:
        """End the shell and what runs in it."""
        with self.changed:
            for command in self._shells.pop(shell_id).commands.values():
                command.is_ended = True
            self.changed.notify_all()

    def forget_all(self) -> None:
        """End all shells, as a restart of the host does."""
        for shell_id in list(self._shells):
            self.delete(shell_id)

    def command(self, shell: Shell, line: CommandLine) -> Command:
        """A new command; it begins when its input has ended."""
        with self.changed:
            command = Command(str(uuid.uuid4()).upper(), line)
            shell.commands[command.id] = command
            return command

    def send(self, command: Command, data: bytes, *, is_end: bool) -> None:
        """More input."""
        command.stdin += data
        if is_end:
            command.has_begun = True
            with self.changed:
                self.scripts += 1
            thread = threading.Thread(target=self._run, args=(command,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, command: Command) -> None:
        try:
            result = self._executor(command.line, bytes(command.stdin))
        except Exception as exc:
            result = Result(b"", f"the executor failed: {exc!r}".encode(), 97)
        with self.changed:
            command.result = result
            self.changed.notify_all()

    def join(self) -> None:
        """Wait for every program."""
        for thread in self._threads:
            thread.join(30)
