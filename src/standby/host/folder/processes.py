"""Processes by (pid, start): a pid alone may be somebody else's by now.

`start` is '<boot id>/<clock ticks since boot>' from /proc, so that neither a re-used pid nor a
reboot makes a dead process look alive. Where there is no /proc nothing can be said, and starting
VMs is refused.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from standby.clock import Clock

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_POLL_S = 0.02


def started(pid: int) -> str:
    """When the live process `pid` started, '' when there is none.

    A zombie counts as none, but not while other threads of it live: they still hold its files,
    locks and sockets.
    """
    if pid <= 0:
        return ""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        boot = _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
    # pid (name, may hold anything) state ppid … ; fields 20 and 22 of proc(5): threads, start time
    fields = text.rpartition(")")[2].split()
    if len(fields) < 20 or (fields[0] in ("Z", "X", "x") and int(fields[17]) <= 1):
        return ""
    return f"{boot}/{fields[19]}"


def is_alive(pid: int, start: str) -> bool:
    """Whether the process that `started` described is still there."""
    return bool(start) and started(pid) == start


def end(pid: int, start: str, clock: Clock, *, grace_s: float) -> bool:
    """Ask the process to end, after `grace_s` seconds make it; True when it ended by itself."""
    if not is_alive(pid, start):
        return True
    if sys.platform == "win32":
        return False
    else:
        _send(pid, signal.SIGTERM)
        if wait_for_end(pid, start, clock, timeout_s=grace_s):
            return True
        if is_alive(pid, start):
            _send(pid, signal.SIGKILL)
            wait_for_end(pid, start, clock, timeout_s=10)
        return False


def wait_for_end(pid: int, start: str, clock: Clock, *, timeout_s: float) -> bool:
    """True when the process ended within `timeout_s`."""
    deadline = clock.monotonic() + timeout_s
    while is_alive(pid, start):
        if clock.monotonic() >= deadline:
            return False
        clock.sleep(_POLL_S)
    return True


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
