"""The replicas a target mover has open as their writer: found, handed on, closed with their tasks.

Each is one session's at a time. A service mover keeps what a server that is away had opened, and
gives it to the next one that asks for it, or closes it (`close_where`)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from standby.errors import ProtocolError, ReplicaBusy, StandbyError
from standby.road.connections import Connections
from standby.road.lease import WriterLease
from standby.road.owners import Owner, current_owner
from standby.road.partial import PartialDisk, SealedDisk
from standby.road.replica import ReplicaFolder

ENDING_TIMEOUT_S = 30.0
"""How long tasks that were cut off may take to notice it."""

OPENING_S = 60.0
"""How long an opening that a server left behind is waited for: it may have a merge to end."""

NOTICING_S = 2.0
"""How long a mover may take to notice that the server is gone that it holds a replica for."""


@dataclass(slots=True)
class OpenReplica:
    """A replica this mover writes; `receiving` are the tasks at it now."""

    folder: ReplicaFolder
    lease: WriterLease
    owner: Owner
    partials: dict[str, PartialDisk] = field(default_factory=dict)
    sealed: dict[str, SealedDisk] = field(default_factory=dict)
    receiving: set[str] = field(default_factory=set)
    is_ending: bool = False
    """Whether it was to be closed and its tasks could not be ended: the last one closes it."""

    def close(self) -> None:
        """Close every partial disk, whatever becomes of another one, and give the lease back."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.lease.release)
            for partial in self.partials.values():
                stack.callback(partial.close)
            self.partials.clear()


@dataclass(slots=True, eq=False)
class _Opening:
    """A replica that is being opened; `is_ended`: its session ended meanwhile."""

    path: str
    owner: Owner
    session: str
    is_ended: bool = False


class OpenReplicas:
    """By their paths, as verbs call them. Thread-safe."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._replicas: dict[str, OpenReplica] = {}
        self._opening: list[_Opening] = []
        self._lock = threading.Condition()

    def held(self, path: str) -> OpenReplica | None:
        """The replica if it is open."""
        with self._lock:
            return self._replicas.get(path)

    def get(self, path: str) -> OpenReplica:
        """The replica, which belongs to whoever asks for it now: a server that came back goes on
        with it. ProtocolError when it is not open."""
        replica = self.held(path)
        if replica is None:
            raise ProtocolError("backup server", f"replica {path} is not open")
        replica.owner = current_owner()
        return replica

    @contextlib.contextmanager
    def opening(
        self, path: str, folder: ReplicaFolder, session: str, take_over: bool
    ) -> Iterator[WriterLease]:
        """The right to write it, for the one who asks now and opens it within the block, at whose
        end it is `add`ed, or given back by the caller.

        What this very process holds for a session that lost its server nobody else could give
        back, and it is known a moment later than the server's end; or it is being opened for it
        still. So that is waited for, where the replica is not taken over anyway. Where the session
        is ended meanwhile, the replica is closed at once and ReplicaBusy raised.
        """
        mine = _Opening(path, current_owner(), session)
        with self._lock:
            if not take_over:
                self._lock.wait_for(lambda: not self._is_left_opening(path), OPENING_S)
            self._opening.append(mine)
        try:
            yield self._leased(path, folder, session, take_over)
        finally:
            with self._lock:
                self._opening.remove(mine)
                self._lock.notify_all()
        if mine.is_ended:
            self.close(path)
            raise ReplicaBusy(folder.name, f"session {session}, which was ended", session)

    def _is_left_opening(self, path: str) -> bool:
        return any(other.path == path and other.owner.is_gone for other in self._opening)

    def _leased(
        self, path: str, folder: ReplicaFolder, session: str, take_over: bool
    ) -> WriterLease:
        deadline = folder.clock.monotonic() + NOTICING_S
        while True:
            self._take_from(path, session, take_over)
            try:
                return WriterLease.acquire(folder, session, take_over=take_over)
            except ReplicaBusy:
                with self._lock:
                    is_ours = (
                        path in self._replicas
                        or len([other for other in self._opening if other.path == path]) > 1
                    )
                if not is_ours or folder.clock.monotonic() >= deadline:
                    raise

    def add(self, path: str, folder: ReplicaFolder, lease: WriterLease) -> None:
        """It was opened, for whoever asks now."""
        with self._lock:
            self._replicas[path] = OpenReplica(folder, lease, current_owner())

    @contextlib.contextmanager
    def receiving(self, path: str, task: str) -> Iterator[OpenReplica]:
        """The replica, which `close` ends the task at before it closes it."""
        replica = self.get(path)
        with self._lock:
            replica.receiving.add(task)
        try:
            yield replica
        finally:
            with self._lock:
                replica.receiving.discard(task)
                is_last = replica.is_ending and not replica.receiving
                self._lock.notify_all()
            if is_last and self.held(path) is replica:
                self.close(path)

    def _take_from(self, path: str, session: str, take_over: bool) -> None:
        """Close the replica where this very process holds it for a session that lost its server,
        or whose server asks again: nobody else could give it back."""
        held = self.held(path)
        if held is not None and (take_over or held.owner.is_gone or held.lease.session == session):
            self.close(path)

    def give_way(self, path: str) -> None:
        """Close the replica if it was opened for a server that is away: somebody needs it."""
        held = self.held(path)
        if held is not None and held.owner.is_away:
            self.close(path)

    def adopt(self, owner: Owner, is_meant: Callable[[str, Collection[str]], bool]) -> None:
        """The replicas for whose (session, tasks receiving) that is true are `owner`'s now."""
        with self._lock:
            for replica in self._replicas.values():
                if is_meant(replica.lease.session, replica.receiving):
                    replica.owner = owner

    def close_where(
        self, is_meant: Callable[[Owner, str], bool], *, only_idle: bool = False
    ) -> list[str]:
        """Close the replicas for whose (owner, session) that is true, their tasks cut off first
        (`only_idle`: unless there are any); which, by their paths."""
        with self._lock:
            meant = [
                path
                for path, replica in self._replicas.items()
                if is_meant(replica.owner, replica.lease.session)
                and not (only_idle and replica.receiving)
            ]
            for opening in self._opening:
                if not only_idle and is_meant(opening.owner, opening.session):
                    opening.is_ended = True
        for path in meant:
            with contextlib.suppress(StandbyError):
                self.close(path)  # else it is as a kill would have left it
        return meant

    def close(self, path: str) -> None:
        """Give the replica back, its tasks cut off; partial disks keep what was acknowledged. Where
        the tasks hang, ReplicaBusy: it is given back when the last of them ends."""
        with self._lock:
            replica = self._replicas.pop(path, None)
            if replica is None:
                return
            for task in replica.receiving:
                self._connections.cancel(task)
            if not self._lock.wait_for(lambda: not replica.receiving, ENDING_TIMEOUT_S):
                replica.is_ending = True
                self._replicas[path] = replica
                raise ReplicaBusy(replica.folder.name, "its tasks hang and cannot be ended")
        replica.close()
