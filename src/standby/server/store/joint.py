"""Durable writes of several threads in one transaction: those that come while one is committed go
together with the next.

A durable commit is a sync of the disk, milliseconds each, and takes as long for one change as for
twenty; so a server that is busy commits more at once, and one that is not waits for nobody. Whoever
comes first writes for all that are there (the idea of group commit: DeWitt et al., SIGMOD 1984).
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Sequence

import sqlalchemy as sa

from standby.errors import StandbyError

Write = Callable[[sa.Connection], None]
"""Changes rows over a connection, in any thread, and may be called again after a rollback."""

MOST = 64
"""Writes of one transaction: SQLite lets nobody else write meanwhile."""


class _Fate(enum.Enum):
    LEAD = enum.auto()
    DONE = enum.auto()
    ALONE = enum.auto()


class _Place:
    """A thread's place in the line, and what it is woken for."""

    __slots__ = ("fate", "woken", "write")

    def __init__(self, write: Write) -> None:
        self.write = write
        self.woken = threading.Event()
        self.fate = _Fate.LEAD


class JointWrites:
    """Those to one database, under one server's lease. Thread-safe."""

    def __init__(self, transact: Callable[[Sequence[Write]], None]) -> None:
        """`transact` has them all take effect in one durable transaction, or none and raises."""
        self._transact = transact
        self._lock = threading.Lock()
        self._line: list[_Place] = []
        self._is_led = False

    @property
    def waiting(self) -> int:
        """How many wait for the next transaction."""
        with self._lock:
            return len(self._line)

    def put(self, write: Write) -> None:
        """Return when `write` is on stable storage; raises what it does. One that fails takes no
        other with it: each of that transaction is then tried by itself."""
        place = _Place(write)
        with self._lock:
            self._line.append(place)
            is_first, self._is_led = not self._is_led, True
        if not is_first:
            place.woken.wait()
        if place.fate is _Fate.LEAD:
            self._lead()
        elif place.fate is _Fate.ALONE:
            self._transact([write])

    def _lead(self) -> None:
        """Write for all that are there; the caller is the first of the line."""
        with self._lock:
            going, self._line = self._line[:MOST], self._line[MOST:]
        fate = _Fate.ALONE
        try:
            self._transact([place.write for place in going])
            fate = _Fate.DONE
        except StandbyError:
            if len(going) == 1:
                raise
        finally:
            with self._lock:
                following = self._line[0] if self._line else None
                self._is_led = following is not None
            if following is not None:
                following.woken.set()
            for place in going[1:]:
                place.fate = fate
                place.woken.set()
        if fate is _Fate.ALONE:
            self._transact([going[0].write])
