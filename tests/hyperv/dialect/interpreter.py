"""powershell.exe in a process of its own: a script's text in, standard output and errors out."""

from __future__ import annotations

from dataclasses import dataclass

from hyperv.dialect.world import World
from standby.clock import Clock


@dataclass(frozen=True)
class StderrRecord:
    """One line of the error stream as CLIXML has it: `stream` is Error, Warning, Verbose, …"""

    stream: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """What powershell.exe left behind."""

    stdout: str
    stderr_records: list[StderrRecord]
    exit_code: int

    @property
    def stderr(self) -> str:
        """The bytes of standard error as text: CLIXML, or nothing."""
        raise NotImplementedError


class Interpreter:
    """Runs scripts of the dialect as Windows PowerShell 5.1 would on one host."""

    def __init__(self, world: World, host_name: str, clock: Clock) -> None:
        self._world = world
        self._host_name = host_name
        self._clock = clock

    def run(self, text: str, stdin: str = "") -> Outcome:
        """Run one script in a fresh process; `Start-Sleep` moves the clock, nothing else waits."""
        raise NotImplementedError
