"""How far the sessions of this process are, disk by disk."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from standby.server.context import ProgressCallback


@dataclass(frozen=True, slots=True)
class DiskProgress:
    """One disk of a session at work: bytes scanned, of how many."""

    machine: str
    place: str
    done: int
    total: int


class ProgressBoard:
    """What sessions at work last said. Thread-safe."""

    def __init__(self) -> None:
        self._sessions: dict[str, dict[tuple[str, str], DiskProgress]] = {}
        self._lock = threading.Lock()

    def following(self, session: str, also: ProgressCallback | None) -> ProgressCallback:
        """A callback that notes what the session says, and passes it on to `also`."""

        def note(machine: str, place: str, done: int, total: int) -> None:
            with self._lock:
                disks = self._sessions.setdefault(session, {})
                disks[machine, place] = DiskProgress(machine, place, done, total)
            if also is not None:
                also(machine, place, done, total)

        return note

    def of(self, session: str) -> list[DiskProgress]:
        """The session's disks, by VM and place; none where it is not at work in this process."""
        with self._lock:
            return [item for _, item in sorted(self._sessions.get(session, {}).items())]

    def disks(self) -> int:
        """How many disks are under way."""
        with self._lock:
            found = [item for disks in self._sessions.values() for item in disks.values()]
        return sum(item.done < item.total for item in found)

    def forget(self, session: str) -> None:
        """The session has ended."""
        with self._lock:
            self._sessions.pop(session, None)
