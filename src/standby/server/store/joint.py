"""Durable writes of several threads in one transaction: those that come while others are
committed go together with the next.

A durable commit is a sync of the disk, milliseconds each, and takes as long for one change as for
twenty; so a server that is busy commits more at once, and one that is not waits for nobody. Whoever
comes first writes for all that are there (the idea of group commit: DeWitt et al., SIGMOD 1984).

PostgreSQL has several at work at once: what one of them waits for is mostly the next answer.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, cast

from standby.errors import StandbyError

Item = TypeVar("Item")
Found = TypeVar("Found")

MOST = 64
"""Writes of one transaction: SQLite lets nobody else write meanwhile."""

AT_ONCE = 4
"""Transactions of PostgreSQL that are under way together: far fewer than its connections."""


class _Fate(enum.Enum):
    LEAD = enum.auto()
    DONE = enum.auto()
    ALONE = enum.auto()


class _Place(Generic[Item, Found]):
    """A thread's place in the line, what it is woken for, and what its write returned."""

    __slots__ = ("fate", "found", "woken", "write")

    def __init__(self, write: Item) -> None:
        self.write = write
        self.woken = threading.Event()
        self.fate = _Fate.LEAD
        self.found: Found | None = None


class JointWrites(Generic[Item, Found]):
    """Those to one database, under one server's lease. Thread-safe."""

    def __init__(
        self, transact: Callable[[Sequence[Item]], Sequence[Found]], at_once: int = 1
    ) -> None:
        """`transact` has them all take effect in one transaction and returns what each returns, or
        none and raises; `at_once` of them may be under way together."""
        self._transact = transact
        self._at_once = at_once
        self._lock = threading.Lock()
        self._line: list[_Place[Item, Found]] = []
        self._leaders = 0

    @property
    def waiting(self) -> int:
        """How many wait for the next transaction."""
        with self._lock:
            return len(self._line)

    def put(self, write: Item) -> Found:
        """What `write` returns, when its transaction has ended; raises what it does. One that fails
        takes no other with it: each of that transaction is then tried by itself."""
        place: _Place[Item, Found] = _Place(write)
        with self._lock:
            leads = self._leaders < self._at_once  # nobody is in the line then
            if leads:
                self._leaders += 1
            else:
                self._line.append(place)
        if not leads:
            place.woken.wait()
        if place.fate is _Fate.LEAD:
            self._lead(place)
        elif place.fate is _Fate.ALONE:
            (place.found,) = self._transact([write])
        return cast(Found, place.found)

    def _lead(self, place: _Place[Item, Found]) -> None:
        """Write for the caller and all that are there."""
        with self._lock:
            going = [place, *self._line[: MOST - 1]]
            del self._line[: MOST - 1]
        fate = _Fate.ALONE
        try:
            found = self._transact([place.write for place in going])
            for each, result in zip(going, found, strict=True):
                each.found = result
            fate = _Fate.DONE
        except StandbyError:
            if len(going) == 1:
                raise
        finally:
            with self._lock:
                following = self._line.pop(0) if self._line else None
                if following is None:
                    self._leaders -= 1
            if following is not None:
                following.woken.set()
            for other in going[1:]:
                other.fate = fate
                other.woken.set()
        if fate is _Fate.ALONE:
            (place.found,) = self._transact([place.write])
