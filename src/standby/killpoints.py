"""Named places in the code at which a test may stop or kill the process (RULES, last section).

Production code calls `reach("point renamed")`; it costs one attribute look-up. A test installs a
handler in its own process, or starts a child with `STANDBY_KILL_POINT=name` (or `name:3` for the
third time it is reached), which kills that child with SIGKILL, or `STANDBY_STOP_POINT` likewise,
which stops it with SIGSTOP. `STANDBY_KILL_PROCESS` limits either to processes that called
`be_called(name)` with that name (`server`, `source mover`, `target mover`).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

_process_name = "server"


def be_called(name: str) -> None:
    """Name this process for `STANDBY_KILL_PROCESS`."""
    global _process_name
    _process_name = name


def _environment_handler() -> Callable[[str], None] | None:
    kill = os.environ.get("STANDBY_KILL_POINT", "")
    wanted = kill or os.environ.get("STANDBY_STOP_POINT", "")
    if not wanted:
        return None
    name, _, count = wanted.rpartition(":")  # names have colons of their own: "merge: intent"
    if not count.isdigit():
        name, count = wanted, "1"
    process = os.environ.get("STANDBY_KILL_PROCESS", "")
    remaining = int(count)

    def handler(reached: str) -> None:
        nonlocal remaining
        if reached != name or (process and process != _process_name):
            return
        remaining -= 1
        if remaining == 0:
            if sys.platform == "win32":
                os._exit(137)
            else:
                # To this very thread: it would run on until another one took the signal.
                ours = threading.get_ident()
                signal.pthread_kill(ours, signal.SIGKILL if kill else signal.SIGSTOP)

    return handler


_handler: Callable[[str], None] | None = _environment_handler()


def install(handler: Callable[[str], None] | None) -> None:
    """Call `handler(name)` at every kill point from now on; None removes it."""
    global _handler
    _handler = handler


def reach(name: str) -> None:
    """Say that the kill point `name` has been reached."""
    if _handler is not None:
        _handler(name)
