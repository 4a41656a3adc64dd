"""How far open checkpoints have grown on their host, looked at every 5 minutes (RULES 10).

One question per host covers the checkpoints of all VMs and jobs. It is asked beside the transfers,
which never wait for a host: a host that does not answer is asked again when its call has ended.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from standby.clock import Clock
from standby.errors import StandbyError
from standby.ports import Growing, Grown, Host

EVERY_S = 5 * 60.0


class GrowthWatch:
    """The open checkpoints of one host. Thread-safe."""

    def __init__(self, host: Host, clock: Clock, min_free: int = 0) -> None:
        """`min_free` bytes must stay free where a VM writes; 0: any number."""
        self._host = host
        self._clock = clock
        self._min_free = min_free
        self._lock = threading.Lock()
        self._found: Sequence[Grown] = ()
        self._looking: threading.Thread | None = None
        self._looked_at = clock.monotonic()

    def reached(self, machine_id: str, growth_max: int) -> str:
        """The limit that the VM's checkpoint has reached as far as is known, '' for none. Waits for
        nobody; has the host asked where that is due."""
        self._look_if_due()
        for item in self._found:
            text = item.limit(growth_max, self._min_free) if item.machine_id == machine_id else ""
            if text:
                return text
        return ""

    def _look_if_due(self) -> None:
        host = self._host
        if not isinstance(host, Growing):
            return
        with self._lock:
            is_due = self._clock.monotonic() - self._looked_at >= EVERY_S
            if not is_due or self._looking is not None:
                return
            self._looking = threading.Thread(
                target=self._look, args=(host,), name="growth watch", daemon=True
            )
            self._looking.start()

    def _look(self, host: Growing) -> None:
        try:
            with contextlib.suppress(StandbyError):  # the session meets what is wrong with the host
                self._found = host.growth()
        finally:
            with self._lock:
                self._looked_at = self._clock.monotonic()
                self._looking = None

    def settle(self) -> None:
        """Wait for a look that is under way."""
        looking = self._looking
        if looking is not None:
            looking.join()

    def released(self, machine_id: str) -> None:
        """The VM's checkpoint is gone: what was seen of it does not count for the next one."""
        self._found = [item for item in self._found if item.machine_id != machine_id]


__all__ = ["EVERY_S", "GrowthWatch"]
