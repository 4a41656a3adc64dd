"""Weighted shares of the line between two WAN accelerators, whatever the line carries.

Each disk has a TCP connection of its own, and TCP gives all of them about the same. Under a traffic
rule weights hold already (`wire.throttle`), for its rate is known. Without one, the links of a
pair are kept side by side here: what each put into its socket, divided by its weight, may be no
more than AHEAD_BYTES ahead of the least among those that the line keeps waiting. The light ones
then pause, and the line is the heavy one's.

Whom the line keeps waiting is what the kernel says (Linux): bytes in the socket that TCP has not
sent, and a peer that has room for them. A disk that is slow by itself, or whose target is, holds
nobody up, so that nothing is lost where the line is not the bottleneck. Elsewhere shares are TCP's.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from standby.clock import SYSTEM_CLOCK, Clock
from standby.units import KiB
from standby.wire.link import Link, Paced
from standby.wire.tcp_info import told_of

PIECE_BYTES = 256 * KiB
"""Of one write while there are several links: 20 ms of 100 Mbit/s."""

AHEAD_BYTES = 512 * KiB
LOOK_S = 0.005
STALLED_S = 5.0
"""A link that wrote nothing for so long waits for nobody's sake: its peer may be gone."""

FRESH_S = 0.002
"""How long what the kernel said is good: on a fast line it is asked 500 times a second, not for
every write."""


class Waits(NamedTuple):
    """What keeps a link waiting."""

    unsent: int
    """Bytes that TCP could not send yet."""
    peer_s: float
    """Seconds so far that the peer had no room."""


def waits_of(link: Link) -> Waits:
    """As the system tells; nothing where it does not."""
    told = told_of(link.connection)
    return Waits(0, 0.0) if told is None else Waits(told.unsent, told.peer_waits_s)


class _Share:
    """One link's place. What it asks before a write (`Link.throttle`)."""

    def __init__(self, line: _Line, link: Link, weight: float) -> None:
        self.link = link
        self.weight = max(weight, 1e-3)
        self.done = 0.0
        """Bytes it put into its socket, by weight."""
        self._line = line
        self._inner: Paced | None = link.throttle
        self._peer_waits_s = 0.0
        self._was_waiting = False
        self._fresh_until = 0.0
        self.moved_at = 0.0

    def take(self, wanted: int) -> int:
        """See Pace."""
        if not self._line.is_shared:
            return wanted if self._inner is None else self._inner.take(wanted)
        count = min(wanted, PIECE_BYTES)
        if self._inner is not None:
            count = self._inner.take(count)
        self._line.wait_turn(self, count)
        return count

    def close(self) -> None:
        """See Pace."""
        self._line.leave(self)
        if self._inner is not None:
            self._inner.close()

    def is_backlogged(self, now: float, waits: Callable[[Link], Waits]) -> bool:
        """Whether the line keeps it waiting, and not its peer."""
        if now >= self._fresh_until:
            unsent, peer_s = waits(self.link)
            self._was_waiting = unsent > 0 and peer_s <= self._peer_waits_s
            self._peer_waits_s = peer_s
            self._fresh_until = now + FRESH_S
        return self._was_waiting and now - self.moved_at < STALLED_S


class _Line:
    """The links to one accelerator."""

    def __init__(self, waits: Callable[[Link], Waits], clock: Clock) -> None:
        self._waits = waits
        self._clock = clock
        self._changed = threading.Condition()
        self._shares: list[_Share] = []

    @property
    def is_shared(self) -> bool:
        """Whether there are several."""
        return len(self._shares) > 1

    def join(self, share: _Share) -> None:
        with self._changed:
            # No credit for the time before, and none against those that are at it.
            share.done = max((one.done for one in self._shares), default=0.0)
            self._shares.append(share)

    def leave(self, share: _Share) -> None:
        with self._changed:
            if share in self._shares:
                self._shares.remove(share)
            self._changed.notify_all()

    def wait_turn(self, share: _Share, count: int) -> None:
        """Return when `count` bytes of that link may go."""
        with self._changed:
            if not share.is_backlogged(self._clock.monotonic(), self._waits):
                share.done = max(share.done, self._least(share) or 0.0)  # it had a pause
            while share in self._shares:
                least = self._least(share)
                if least is None or (share.done - least) * share.weight <= AHEAD_BYTES:
                    break
                self._changed.wait(LOOK_S)
            share.done += count / share.weight
            share.moved_at = self._clock.monotonic()
            self._changed.notify_all()

    def _least(self, share: _Share) -> float | None:
        now = self._clock.monotonic()
        waiting = [
            one.done
            for one in self._shares
            if one is not share and one.is_backlogged(now, self._waits)
        ]
        return min(waiting, default=None)


class LineShares:
    """The lines of a mover to other accelerators. Thread-safe."""

    def __init__(
        self, waits: Callable[[Link], Waits] = waits_of, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._waits = waits
        self._clock = clock
        self._lock = threading.Lock()
        self._lines: dict[str, _Line] = {}

    @contextlib.contextmanager
    def joined(self, link: Link, weight: float) -> Iterator[None]:
        """The link shares the line to its peer by weight until the block ends."""
        with self._lock:
            line = self._lines.setdefault(link.peer, _Line(self._waits, self._clock))
        before = link.throttle
        share = _Share(line, link, weight)
        line.join(share)
        link.throttle = share
        try:
            yield
        finally:
            line.leave(share)
            link.throttle = before
