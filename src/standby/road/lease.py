"""The writer lease: one writer per replica, and the fencing of one that was replaced (RULES 2, 3).

The lease is an exclusive lock on byte <generation> of `.lock`; it ends with its process. Taking
over does not wait for the old writer: it locks the byte of a *higher* generation and raises the
generation in replica.json. From then on three things keep an old writer, however late it wakes,
from changing anything that counts:

1. it writes records only by `replace_checked`: temporary file, then a look at the generation, then
   the rename; a take-over removes older temporaries *after* raising, so that either the look or
   the rename fails;
2. so does the record of a point about to be committed, and so do ready layers;
3. a point record of an older generation that was not there when the generation was raised is void
   (`points.counts`).
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from standby import killpoints
from standby.errors import DiskIO, Fenced, IllegalTransition, ReplicaBusy
from standby.files import (
    ByteLock,
    is_byte_locked,
    remove_durably,
    rename_durably,
    write_plainly,
)
from standby.model.replica import Action, ReplicaRecord, legal_commands, next_state
from standby.road import naming
from standby.road.records import replace_checked
from standby.road.replica import GUARD_POLL_S, ReplicaFolder, encode_replica

_ATTEMPTS = 5
"""A look at whether a lease is alive locks its byte for an instant; an acquire tries again."""
_GENERATIONS_SKIPPED_MAX = 64


class Holder(msgspec.Struct, frozen=True):
    """Who took the lease last: for messages only, it proves nothing."""

    session: str
    process: int
    computer: str
    since: str
    generation: int

    def __str__(self) -> str:
        return (
            f"session {self.session}, process {self.process} on {self.computer}, since {self.since}"
        )


class WriterLease:
    """The right to write one replica, until `release` or the end of the process."""

    def __init__(
        self, folder: ReplicaFolder, session: str, generation: int, lock: ByteLock
    ) -> None:
        self.folder = folder
        self.session = session
        self.generation = generation
        self._lock = lock

    @classmethod
    def acquire(
        cls,
        folder: ReplicaFolder,
        session: str,
        *,
        take_over: bool = False,
        action: Action = Action.SESSION,
    ) -> WriterLease:
        """Become the writer for `action`. Raises IllegalTransition where the replica's state
        forbids it, and ReplicaBusy while another writer lives, unless `take_over` fences it."""
        check_legal(folder.record(), folder.name, action)
        lease = cls._fencing(folder, session) if take_over else cls._waiting(folder, session)
        try:
            check_legal(folder.record(), folder.name, action)
            lease._say_who()
        except BaseException:
            lease.release()
            raise
        return lease

    @classmethod
    def _waiting(cls, folder: ReplicaFolder, session: str) -> WriterLease:
        for _ in range(_ATTEMPTS):
            generation = folder.record().generation
            lock = ByteLock(folder.lock_path, generation)
            if lock.acquire():
                if folder.record().generation == generation:
                    return cls(folder, session, generation, lock)
                lock.release()  # raised between the look and the lock
            else:
                folder.clock.sleep(GUARD_POLL_S)
        holder = _holder(folder)
        raise ReplicaBusy(folder.name, _words(holder), holder.session if holder else "")

    @classmethod
    def _fencing(cls, folder: ReplicaFolder, session: str) -> WriterLease:
        while True:
            generation = folder.record().generation
            with folder.guarded(generation, force=True):
                before = folder.record()
                if before.generation != generation:
                    continue  # someone else took over meanwhile
                lock = _next_free_byte(folder, generation)
                try:
                    _raise_generation(folder, before, lock.byte)
                except BaseException:
                    lock.release()
                    raise
                return cls(folder, session, lock.byte, lock)

    def check(self) -> None:
        """Raise Fenced when someone took over."""
        current = self.folder.record().generation
        if current != self.generation or not self._lock.is_held:
            raise Fenced(self.folder.name, self.generation, current)

    def write(self, path: Path, data: bytes) -> None:
        """Replace the file at `path` durably, unless fenced; never after having been fenced."""
        replace_checked(path, data, self.generation, self.check)

    def rename(self, old: Path, new: Path) -> None:
        """Rename `old`, a name that take-overs remove, over `new` durably, unless fenced."""
        self.check()
        killpoints.reach("lease checked")
        try:
            rename_durably(old, new)
        except DiskIO:
            self.check()
            raise

    def update(self, **changes: Any) -> ReplicaRecord:
        """replica.json with these fields changed, durably."""
        with self.folder.guarded(self.generation):
            record = self.folder.record()
            if record.generation != self.generation:
                raise Fenced(self.folder.name, self.generation, record.generation)
            changed = replace(record, **changes)
            if changed != record:
                self.write(self.folder.record_path, encode_replica(changed))
            return changed

    def release(self) -> None:
        """Give the lease up; a second call does nothing."""
        self._lock.release()

    def __enter__(self) -> WriterLease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _say_who(self) -> None:
        holder = Holder(
            self.session,
            os.getpid(),
            platform.node(),
            f"{self.folder.clock.now():%Y-%m-%dT%H:%M:%SZ}",
            self.generation,
        )
        with contextlib.suppress(OSError):
            write_plainly(self.folder.path / naming.HOLDER, msgspec.json.encode(holder))


def check_legal(record: ReplicaRecord, replica: str, action: Action) -> None:
    """Raise IllegalTransition unless the table of states allows `action` now."""
    if next_state(record.state, action) is None:
        legal = legal_commands(record.state, replica, record.identity.job)
        raise IllegalTransition(replica, str(record.state), str(action), legal)


def is_processing(folder: ReplicaFolder) -> bool:
    """Whether a live writer holds the lease of the current generation."""
    return is_byte_locked(folder.lock_path, folder.record().generation)


def holder_of(folder: ReplicaFolder) -> str:
    """Who took the lease last, for messages."""
    return _words(_holder(folder))


def _holder(folder: ReplicaFolder) -> Holder | None:
    try:
        data = (folder.path / naming.HOLDER).read_bytes()
        return msgspec.json.decode(data, type=Holder)
    except (OSError, msgspec.DecodeError):
        return None


def _words(holder: Holder | None) -> str:
    return "unknown" if holder is None else str(holder)


# --- taking over -----------------------------------------------------------------------------


def _next_free_byte(folder: ReplicaFolder, generation: int) -> ByteLock:
    """The lock of the next generation; of a later one where a take-over hangs on the next."""
    for number in range(generation + 1, generation + 1 + _GENERATIONS_SKIPPED_MAX):
        lock = ByteLock(folder.lock_path, number)
        for _ in range(_ATTEMPTS):
            if lock.acquire():
                return lock
            folder.clock.sleep(GUARD_POLL_S)
    raise ReplicaBusy(folder.name, holder_of(folder))


def _raise_generation(folder: ReplicaFolder, before: ReplicaRecord, generation: int) -> None:
    """Make `generation` the current one, durably, with the points that count by then.

    Converges whatever the old writer does meanwhile: the sweep takes away what it could still
    rename, and what it renamed before that is read again afterwards.
    """

    def check() -> None:
        current = folder.record().generation
        if current > generation:
            raise Fenced(folder.name, generation, current)

    current = before
    while True:
        raised = replace(current, generation=generation, points=_ids(folder, before))
        replace_checked(folder.record_path, encode_replica(raised), generation, check)
        killpoints.reach("generation raised")
        _sweep(folder, generation)
        current = folder.record()
        check()
        if current.generation == generation and current.points == _ids(folder, before):
            return


def _ids(folder: ReplicaFolder, before: ReplicaRecord) -> tuple[str, ...]:
    """Every point that counts under the old generation, so that it counts under the new one; one
    whose record cannot be read now keeps its place too."""
    scan = folder.scan_points(before)
    return tuple(
        sorted({point.id for point in scan.valid} | {damaged for damaged, _ in scan.damaged})
    )


def _sweep(folder: ReplicaFolder, generation: int) -> None:
    """Take away every name that a writer of an older generation could still rename into place: its
    temporaries and its ready layers."""
    for path in _unfinished(folder):
        owner = naming.temporary_generation(path.name)
        if owner is None:
            owner = naming.ready_candidate_generation(path.name)
        if owner is not None and owner < generation:
            remove_durably(path)


def _unfinished(folder: ReplicaFolder) -> Iterator[Path]:
    for pattern in (".*.new", "*/.*.new", "*/ready.*.partial.vhdx"):
        yield from sorted(folder.path.glob(pattern))


def remove_own_temporaries(lease: WriterLease) -> None:
    """Remove what a dead writer of this lease's generation, or an older one, left half written."""
    _sweep(lease.folder, lease.generation + 1)
