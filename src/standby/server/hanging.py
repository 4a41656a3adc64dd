"""Whether an end of a disk's transfer hangs, so that another proxy should go on with the disk.

A mover whose control link is lost may be well: its task goes on without the server (RULES 18), and
is joined again when the link is back. So an end of a task is taken to hang only when, for
`silence_s`, it could not be reached *and* the other end, which can, saw nothing of the task move,
*and* there is another machine that could do its part. Where both ends are away it is the server
that is cut off, and it waits. WAN accelerators between the two count as ends too: nothing moves
through one that hangs, and where disks may go directly they need no other one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from typing import Any, Protocol

from standby.clock import Clock
from standby.errors import MoverAway, StandbyError
from standby.server.service_mover import silence_limit_s

LOOK_S = 15.0
"""The longest time between two looks at a task: one costs nothing while both ends are there."""


class AskableNow(Protocol):
    """A mover that may be away."""

    @property
    def name(self) -> str: ...
    @property
    def is_connected(self) -> bool: ...
    def start_now(self, verb: str, /, **arguments: Any) -> Future[Any] | None: ...


class TaskWatch:
    """Looks at one task. `look` is called now and then by the thread that waits for it."""

    def __init__(
        self,
        task: str,
        source: AskableNow,
        target: AskableNow,
        has_stand_in: Callable[[AskableNow], bool],
        silence_s: float | None,
        clock: Clock,
        between: Sequence[AskableNow] = (),
    ) -> None:
        """`has_stand_in(end)`: another machine can do that end's part, and answers now, or the task
        can do without it. `between` are the accelerators."""
        self._task = task
        self._ends = (source, target)
        names = {source.name, target.name}
        self._between = [end for end in between if end.name not in names]
        self._has_stand_in = has_stand_in
        self._silence_s = silence_limit_s(silence_s)
        self._clock = clock
        self._away: AskableNow | None = None
        self._seen: Any = None
        self._since = 0.0

    @property
    def look_s(self) -> float:
        """How often to look."""
        return min(LOOK_S, self._silence_s / 4)

    def look(self) -> MoverAway | None:
        """The end that hangs, if one does."""
        away = [end for end in (*self._ends, *self._between) if not end.is_connected]
        if len(away) != 1:
            self._away = None
            return None
        (lost,) = away
        other = self._ends[0] if lost is self._ends[1] else self._ends[1]
        is_told, seen = self._told(other)
        now = self._clock.monotonic()
        if lost is not self._away or not is_told or seen != self._seen:
            self._away, self._seen, self._since = lost, seen, now
            return None
        still_s = now - self._since
        if still_s < self._silence_s or not self._has_stand_in(lost):
            return None
        text = f"it hangs: no answer, and nothing of its task moved for {still_s:.0f} s"
        return MoverAway(lost.name, text)

    def _told(self, end: AskableNow) -> tuple[bool, Any]:
        """Whether `end` said how far the task is, and how far."""
        verb = "progress" if end is self._ends[0] else "received"
        try:
            asked = end.start_now(verb)
            if asked is None:
                return False, None
            return True, asked.result(self.look_s).get(self._task)
        except (StandbyError, NotYet):
            return False, None
