"""The sessions of one host: as many as threads need at once, never more than its quota leaves.

A thread takes an idle session, or opens one, for one call; two threads never share one. Idle ones
are kept with their shells, most recently used first, and ended after IDLE_S. (One session for each
thread would leave the shells of threads that ended.)
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

from standby.clock import Clock
from standby.errors import HostCallFailed
from standby.host.hyperv.connections import Deadline
from standby.host.hyperv.credentials import Access, SecretReader
from standby.host.hyperv.quotas import Quotas
from standby.host.hyperv.sessions import Session

IDLE_S = 600.0
LEFTOVERS_MAX = 64
"""Ids of shells kept to be deleted; the host ends older ones by itself (SHELL_IDLE_S)."""

LEFTOVERS_AT_ONCE = 2
"""Deleted before a call, which waits for it."""


class Pool:
    """The sessions of one host."""

    def __init__(
        self,
        access: Access,
        read_secret: SecretReader,
        clock: Clock,
        scripts_max: int,
        cleanup_s: float,
    ) -> None:
        self._access = access
        self._read_secret = read_secret
        self._clock = clock
        self._scripts_max = scripts_max
        self._cleanup_s = cleanup_s
        self._changed = threading.Condition()
        self._idle: list[Session] = []
        self._busy = 0
        self._era = 0
        """Counts `close`: a session taken before it is not kept after it."""
        self._leftovers: deque[str] = deque(maxlen=LEFTOVERS_MAX)
        self._quotas: Quotas | None = None
        self._asking = threading.Lock()

    @property
    def leftovers(self) -> int:
        """Shells that could not be deleted yet."""
        return len(self._leftovers)

    @contextlib.contextmanager
    def session(self, deadline: Deadline) -> Iterator[Session]:
        """A session for this thread alone; HostDeadline when none gets free in time."""
        doing = "waiting for a free shell"
        with self._changed:
            while self._busy >= self._limit():
                self._changed.wait(deadline.left_s(doing))
            self._busy += 1
            era = self._era
            session = self._idle.pop() if self._idle else None
            old = [it for it in self._idle if it.idle_s > IDLE_S]
            self._idle = [it for it in self._idle if it not in old]
        try:
            for one in old:
                one.close()
            session = session or Session(
                self._access,
                self._read_secret,
                self._clock,
                self._leftovers.append,
                cleanup_s=self._cleanup_s,
            )
            self._delete_leftovers(session)
            yield session
        finally:
            self._give_back(session, era)

    def _give_back(self, session: Session | None, era: int) -> None:
        with self._changed:
            self._busy -= 1
            is_kept = session is not None and era == self._era
            if is_kept and session is not None:
                self._idle.append(session)
            self._changed.notify()
        if session is not None and not is_kept:
            with contextlib.suppress(HostCallFailed):
                session.close()

    def _limit(self) -> int:
        return (self._quotas or Quotas()).scripts_at_once(self._scripts_max)

    def quotas(self, session: Session, deadline: Deadline) -> Quotas:
        """The host's limits, asked by the first call."""
        if self._quotas is None:
            doing = "waiting for the host's quotas"
            if not self._asking.acquire(timeout=deadline.left_s(doing)):
                raise deadline.passed(doing)
            try:
                if self._quotas is None:
                    self._quotas = session.read_quotas(deadline)
            finally:
                self._asking.release()
            with self._changed:
                self._changed.notify_all()
        return self._quotas or Quotas()

    def forget_quotas(self) -> None:
        """Ask for them again: the host turned something away that they allow."""
        self._quotas = None

    def _delete_leftovers(self, session: Session) -> None:
        for _ in range(min(LEFTOVERS_AT_ONCE, len(self._leftovers))):
            with contextlib.suppress(IndexError):
                session.delete_shell(self._leftovers.popleft())

    def close(self) -> None:
        """End every idle session, and every busy one when it is given back."""
        with self._changed:
            self._era += 1
            idle, self._idle = self._idle, []
        for session in idle:
            with contextlib.suppress(HostCallFailed):
                session.close()
