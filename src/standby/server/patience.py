"""Whether, and how long, what a failure ended is tried again."""

from __future__ import annotations

from collections.abc import Callable

from standby.clock import Clock
from standby.errors import LinkError, MoverDied, ProtocolError, StandbyError
from standby.server.service_mover import Reconnect
from standby.server.waits import LOOK_S


def is_link_trouble(error: StandbyError) -> bool:
    """Whether a mover, or the way to it, was lost, and not refused by the other side."""
    return isinstance(error, LinkError | MoverDied) and not isinstance(error, ProtocolError)


class Patience:
    """How long a disk whose only proxy fails is tried again."""

    def __init__(self, clock: Clock, reconnect: Reconnect) -> None:
        self._clock = clock
        self._every_s = reconnect.every_s
        self._until = clock.monotonic() + reconnect.for_s

    def wait(self, is_over: Callable[[], bool] = lambda: False) -> bool:
        """Wait for the next attempt; False when it is too late for one, or `is_over`."""
        if self._clock.monotonic() >= self._until:
            return False
        left_s = self._every_s
        while left_s > 0 and not is_over():
            self._clock.sleep(min(LOOK_S, left_s))
            left_s -= LOOK_S
        return not is_over()
