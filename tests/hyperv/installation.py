"""A simulated Hyper-V host: the real door, over real HTTP, to the very text of our scripts.

Door ─▶ WsmanServer ─▶ Interpreter (the dialect) ─▶ HostView of a World (real VHDX files)
"""

from __future__ import annotations

import base64
from types import TracebackType

from hyperv.dialect.interpreter import Interpreter
from hyperv.world import HostView, World
from hyperv.world.errors import NodeDown
from hyperv.wsman import CommandLine, Result, WsmanServer
from standby.clock import SYSTEM_CLOCK, Clock
from standby.host.hyperv.credentials import Access
from standby.host.hyperv.door import Door

USER, PASSWORD = "backup", "correct horse 7 battery"


class SimulatedHost:
    """One host of `world` behind its WinRM service, while the context lasts. `scripts` counts what
    ran on it."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.scripts = 0
        self._powershell = Interpreter(HostView(world, world.hosts[name]), name, world.clock)
        self.server = WsmanServer(self._execute, {USER: PASSWORD})

    def _execute(self, line: CommandLine, stdin: bytes) -> Result:
        """powershell.exe: the bootstrap comes in its arguments and is executed like any script."""
        self.scripts += 1
        bootstrap = base64.b64decode(line.arguments.rpartition(" ")[2]).decode("utf-16-le")
        try:
            left = self._powershell.run(bootstrap, stdin.decode("ascii"))
        except NodeDown:
            return Result(exit_code=1)  # nobody is there to hear it
        return Result(left.stdout.encode(), left.stderr.encode(), left.exit_code)

    def _fate(self, host: str) -> None:
        """A host of the world died, or is back."""
        if host == self.name:
            (self.server.go_up if self.world.hosts[host].is_up else self.server.go_down)()

    def door(self, title: str = "", clock: Clock = SYSTEM_CLOCK) -> Door:
        """A door to it: basic over HTTP, which no configuration may ask for. `title` is the name
        that errors give it."""
        access = Access(
            title or self.name, "127.0.0.1", self.server.port, "basic", False, USER, "env:HV"
        )
        return Door(access, lambda reference, where: PASSWORD, clock, cleanup_s=2)

    def __enter__(self) -> SimulatedHost:
        self.server.__enter__()
        self.world.fates.append(self._fate)
        self._fate(self.name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.world.fates.remove(self._fate)
        self.server.__exit__(kind, error, traceback)
