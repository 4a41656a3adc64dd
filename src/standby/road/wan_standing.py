"""The links to other accelerators that a mover has standing, between their turns."""

from __future__ import annotations

import threading
from collections.abc import Callable

from standby.clock import Clock
from standby.wire.standing import Standing

IDLE_MAX = 16
"""Links to one accelerator that stand idle; as many disks at once begin without a handshake. Each
costs both machines a socket and 128 KiB."""


class IdleLinks:
    """Links that wait for their next turn, by whom they lead to. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str], list[Standing]] = {}
        self._is_closed = False

    def take(self, name: str, address: str) -> Standing | None:
        """One that is still good; None where there is none. Those that are not are closed."""
        now = self._clock.now()
        while True:
            with self._lock:
                idle = self._idle.get((name, address))
                if not idle:
                    return None
                end = idle.pop()
            if end.is_usable(now):
                return end
            end.base.close()

    def giver_back(self, name: str, address: str, end: Standing) -> Callable[[bool], None]:
        """To be called when its turn has ended, with whether that was whole."""

        def give_back(is_whole: bool) -> None:
            with self._lock:
                idle = self._idle.setdefault((name, address), [])
                is_kept = is_whole and not self._is_closed and len(idle) < IDLE_MAX
                if is_kept:
                    idle.append(end)
            if not is_kept:
                end.base.close()

        return give_back

    def close(self) -> None:
        """End them, now and from now on."""
        with self._lock:
            self._is_closed = True
            idle = [end for ends in self._idle.values() for end in ends]
            self._idle.clear()
        for end in idle:
            end.base.close()
