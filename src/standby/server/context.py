"""What all VMs of a session share, and the slots that disks wait for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from standby.clock import SYSTEM_CLOCK, Clock
from standby.model.job import ReplicationJob
from standby.ports import Host
from standby.server.growth_watch import GrowthWatch
from standby.server.store import Store

if TYPE_CHECKING:
    from standby.server.crew import Crew

ProgressCallback = Callable[[str, str, int, int], None]
"""Called as progress(machine, disk place, bytes scanned, bytes to scan) from any thread."""


class TaskSlots:
    """How many disks may be under way: of one session, and of the whole server."""

    def __init__(self, session: int, server: threading.Semaphore) -> None:
        self._session = threading.BoundedSemaphore(max(1, session))
        self._server = server

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for a slot, and hold it until the block ends."""
        with self._session, self._server:
            yield


@dataclass(frozen=True, slots=True)
class SessionContext:
    """A session of a job. `is_cancelled` set: no VM begins any more."""

    session: str
    installation: str
    job: ReplicationJob
    source: Host
    store: Store
    slots: TaskSlots
    take_over: bool = False
    accept_loss: bool = False
    progress: ProgressCallback | None = None
    clock: Clock = field(default_factory=lambda: SYSTEM_CLOCK)
    may_join: bool = False
    """Whether no other session of the job is alive, so that what one left is ours to go on with."""
    is_cancelled: threading.Event = field(default_factory=threading.Event)
    crews: list[Crew] = field(default_factory=list)
    """Those at work for the session now."""
    at_work: dict[str, Crew] = field(default_factory=dict)
    """The same by the VM they are at."""
    stopped: set[str] = field(default_factory=set)
    """VMs that are to end, or not to begin."""
    growth: GrowthWatch | None = None
    """Looks how far open checkpoints have grown at the source."""
    found: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    """By VM and disk id: bytes of data, and of zeros, that the target had of the point when the
    session's first attempt at the disk began."""

    def end_of(self, machine: str) -> Callable[[], bool]:
        """Says whether the work on that VM is to end."""
        return lambda: self.is_cancelled.is_set() or machine in self.stopped

    def cut(self) -> None:
        """End all work of the session, now; what was transferred is kept."""
        self.is_cancelled.set()
        for crew in list(self.crews):
            crew.cut()
