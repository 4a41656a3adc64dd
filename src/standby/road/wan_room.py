"""Memory of a WAN accelerator for the disks under way: who has none waits, in fair order.

A disk holds its compression window and what is on its way, some 200 MiB on either side, so that as
many go at once as mover.toml says, whoever asks. The backup server asks for room before it starts a
disk (`wan_enter`), at the target's accelerator first and then at the source's, and all that a
mover receives has a room apart from all that it sends: nobody waits in a ring. What is granted and
not begun goes back after RESERVED_S.

Order: whose session holds least for its weight comes first, then who came first. A session of many
disks does not keep another one's only disk waiting.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import LinkError
from standby.units import MiB

SEND, RECEIVE = "send", "receive"

BESIDE_BYTES = 112 * MiB
"""What a disk takes beside its window: parts on their way (`source_wan.IN_FLIGHT_BYTES`), frames
that wait for the line, batches being read; at the target, decoded frames that wait to be sent on
and to be cached, which is less."""

RESERVED_S = 60.0
"""How long granted room waits for its disk."""

LOOK_S = 1.0


def disk_bytes(window_log: int) -> int:
    """Memory of one disk under way, at most."""
    return (1 << window_log) + BESIDE_BYTES


@dataclass(slots=True, eq=False)
class _Held:
    """A disk that has room, or waits for it (`since` 0)."""

    task: str
    session: str
    weight: float
    number: int
    since: float | None = None
    """When it was granted, until it is begun."""
    is_granted: bool = False
    is_begun: bool = False
    is_cancelled: bool = False


class Room:
    """Room for so many disks at once. Thread-safe."""

    def __init__(self, count: int, name: str, clock: Clock = SYSTEM_CLOCK) -> None:
        """`name` is the mover's."""
        self.count = max(1, count)
        self._name = name
        self._clock = clock
        self._changed = threading.Condition()
        self._held: dict[str, _Held] = {}
        self._waiting: list[_Held] = []
        self._numbers = 0

    @property
    def held(self) -> int:
        """Disks that have room."""
        with self._changed:
            self._expire()
            return len(self._held)

    @property
    def waiting(self) -> int:
        """Disks that wait for it."""
        with self._changed:
            return len(self._waiting)

    def enter(self, task: str, session: str = "", weight: float = 1.0) -> None:
        """Return when there is room for the task; LinkError when it was cancelled before. Held
        until `use` or `leave` ends it, or nobody begins."""
        with self._changed:
            if task in self._held:
                return
            self._numbers += 1
            one = _Held(task, session, max(weight, 1e-3), self._numbers)
            self._waiting.append(one)
            self._grant()
            while not (one.is_granted or one.is_cancelled):
                self._changed.wait(LOOK_S)
                self._grant()
        if one.is_cancelled:
            raise LinkError(self._name, f"{task} waited for room: the task was ended")

    def leave(self, task: str) -> None:
        """Give the room of a task back that is not begun; others are not touched."""
        with self._changed:
            one = self._held.get(task)
            if one is not None and not one.is_begun:
                del self._held[task]
            self._grant()

    @contextlib.contextmanager
    def use(self, task: str, session: str = "", weight: float = 1.0) -> Iterator[None]:
        """The room that was entered for the task, or one waited for now, until the block ends."""
        while True:
            self.enter(task, session, weight)
            with self._changed:
                one = self._held.get(task)
                if one is not None:  # else it was given back meanwhile
                    one.is_begun = True
                    break
        try:
            yield
        finally:
            with self._changed:
                if self._held.get(task) is one:
                    del self._held[task]
                self._grant()

    def cancel(self, task: str) -> None:
        """Have a task that waits wait no longer, and give back what is not begun."""
        with self._changed:
            for one in self._waiting:
                if one.task == task:
                    one.is_cancelled = True
            self._waiting = [one for one in self._waiting if not one.is_cancelled]
            self._changed.notify_all()
        self.leave(task)

    def close(self) -> None:
        """End every wait."""
        for one in list(self._waiting):
            self.cancel(one.task)

    # --- under the lock ----------------------------------------------------------------------

    def _expire(self) -> None:
        oldest = self._clock.monotonic() - RESERVED_S
        for task, one in list(self._held.items()):
            if not one.is_begun and one.since is not None and one.since < oldest:
                del self._held[task]

    def _grant(self) -> None:
        self._expire()
        while self._waiting and len(self._held) < self.count:
            one = min(self._waiting, key=self._rank)
            self._waiting.remove(one)
            one.is_granted, one.since = True, self._clock.monotonic()
            self._held[one.task] = one
            self._changed.notify_all()

    def _rank(self, one: _Held) -> tuple[float, int]:
        holds = sum(other.session == one.session for other in self._held.values())
        return holds / one.weight, one.number
