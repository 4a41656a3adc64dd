"""The target's global cache: content by its keyed name, shared by all sources (FORMAT.md).

One process has a cache folder open for writing. Everything in it is a hint: an entry that is lost
or damaged costs the bytes of one literal resend, never a wrong byte, because content is handed out
only after its name was computed from it again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import blake3

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import ConfigurationError, StandbyError
from standby.files import ByteLock, make_folder_durably
from standby.ports import Progress
from standby.wan import names
from standby.wan.appending import OpenSegment
from standby.wan.checking import CheckReport, check_cache
from standby.wan.counting import CacheStatus, Counters, cache_status
from standby.wan.disk_content import DiskReaders
from standby.wan.indexing import drop_changed, index_disk
from standby.wan.limits import Limits
from standby.wan.loading import load, save
from standby.wan.locations import NamePieces, NewTable
from standby.wan.namespace import Namespace, Pin
from standby.wan.populating import PopulateReport, Told, populate
from standby.wan.saving import TableSaver
from standby.wan.segments import Found, Shelf, is_content
from standby.wan.surveying import LOCK_NAME, tell
from standby.wan.writing import Intake, Warn

__all__ = ["GlobalCache", "Limits", "Namespace", "Pin", "fingerprint"]

KEY_BYTES = 32
_CONTEXT = b"standby global cache: namespace"


def fingerprint(key: bytes) -> bytes:
    """What names a tenant's namespace on disk: it tells nothing of the key."""
    if len(key) != KEY_BYTES:
        raise ConfigurationError(
            "tenant key", f"{len(key)} bytes", f"A tenant key has {KEY_BYTES} bytes"
        )
    return blake3.blake3(_CONTEXT, key=key).digest(16)


class GlobalCache:
    """An open cache. Thread-safe; `close` it, or use it as a context manager."""

    def __init__(
        self,
        folder: Path,
        limits: Limits,
        *,
        new_table: NewTable | None = None,
        name_pieces: NamePieces = names.names,
        clock: Clock = SYSTEM_CLOCK,
        warn: Warn = lambda text: None,
    ) -> None:
        """Open the cache in `folder`, or begin one there. Raises DiskBusy where another process has
        it, DiskIO and DiskFull where the folder cannot be made.

        What was sealed is found by its footer; a segment that was open is read up to its last sound
        record and gone on with. A file of which nothing can be used is removed, and told. With a
        `new_table` of the caller's nothing is saved at `close`.
        """
        limits.segment_size()
        self.folder = folder
        self.limits = limits
        self.shelf = Shelf(limits.facts_bytes)
        self.counters = Counters()
        self.disks = DiskReaders()
        self.name_pieces = name_pieces
        self.index_saved = False
        """Whether `close` saved the table."""
        self._warn = warn
        self._saver = TableSaver(self._save)
        self._namespaces: dict[bytes, Namespace] = {}
        self._lock = threading.Lock()
        self._is_closed = False
        make_folder_durably(folder)
        self._file_lock = ByteLock(folder / LOCK_NAME)
        self._file_lock.acquire_or_raise("another process uses the cache")
        try:
            loaded = load(folder, self.shelf, limits.index_bytes, new_table)
            self.table = loaded.table
            self.problems = tuple(loaded.problems)
            for text in loaded.problems:
                warn(f"the global cache in {folder}: {text}")
            self.intake = Intake(
                folder,
                self.shelf,
                self.table,
                limits,
                clock=clock,
                warn=warn,
                counters=self.counters,
                told=self._begun,
            )
            self._resume(loaded.open_ones)
            self._tell()
        except BaseException:
            self.shelf.close()
            self._file_lock.release()
            raise

    def _resume(self, open_ones: list[Found]) -> None:
        for found in open_ones:
            try:
                opened = OpenSegment.resume(found)
                if is_content(found.segment):
                    self.intake.resume(opened)
                else:
                    self.intake.seal_entries(opened)
            except StandbyError as exc:
                self._warn(f"the global cache in {self.folder}: {exc}")
                self.intake.drop(found.segment)

    # --- using ---

    def namespace(self, key: bytes) -> Namespace:
        """The part of the cache that belongs to a tenant's key (32 bytes)."""
        mark = fingerprint(key)
        with self._lock:
            found = self._namespaces.get(mark)
            if found is None:
                found = self._namespaces[mark] = Namespace(self, key, mark)
            return found

    def clear(self, key: bytes | None = None) -> int:
        """Remove everything, or what belongs to a key; how many segments. Transfers under way get
        misses."""
        return self.intake.drop_all(None if key is None else fingerprint(key))

    def verify(
        self, keys: Iterable[bytes] = (), progress: Progress | None = None, *, drop: bool = True
    ) -> CheckReport:
        """Read everything, name what is bad, and `drop` it. Names are compared where the tenant's
        key is among `keys` or in use already. Others may use the cache meanwhile."""
        for key in keys:
            self.namespace(key)
        return check_cache(self, self._key_of, progress, drop=drop)

    def _key_of(self, mark: bytes) -> bytes | None:
        known = self._namespaces.get(mark)
        return None if known is None else known.key

    def populate(
        self,
        key: bytes,
        disks: Iterable[Path],
        *,
        folders: Sequence[Path] = (),
        in_place: bool = False,
        told: Told | None = None,
    ) -> PopulateReport:
        """Take in what disk files hold, or, `in_place`, point into them. Others may use the cache
        meanwhile."""
        part = self.namespace(key)
        return populate(self, part, disks, folders=folders, in_place=in_place, told=told)

    def index_disk(self, key: bytes, path: Path, progress: Progress | None = None) -> int:
        """Make what a closed VHDX file holds itself known without copying it; how many pieces got
        an entry. Raises DiskError where it cannot be read."""
        return index_disk(self, self.namespace(key), path, progress)

    def drop_changed(self) -> int:
        """Drop the entries into disk files that are gone or changed; how many segments."""
        return drop_changed(self)

    def flush(self) -> None:
        """Return when everything taken in so far is on stable storage, as far as that works."""
        self.intake.flush()
        self._tell()

    def _begun(self) -> None:
        """A segment was begun."""
        self._tell()
        self._saver.taken(self.counters["added"], self.table.entries)

    def _save(self) -> str:
        return save(self.folder, self.shelf, self.table)

    def _tell(self) -> None:
        tell(self.folder, self.status())

    def status(self) -> CacheStatus:
        """What the cache takes, holds and has done since it was opened."""
        return cache_status(
            self.folder,
            self.shelf,
            entries=self.table.entries,
            limit_bytes=self.limits.limit_bytes,
            mode="sampled" if self.table.is_sampled else "full",
            memory_bytes=self.table.memory_bytes + self.shelf.facts_bytes,
            memory_max_bytes=self.limits.index_bytes + self.limits.facts_bytes,
            index_bytes=self.limits.index_bytes,
            stopped_by=self.intake.stopped_by,
            problems=self.problems,
            counts=self.counters.all(),
        )

    def close(self) -> None:
        """Make what was taken in stable and give the folder up; a second call does nothing."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        try:
            self.intake.close()
            self._tell()
            self._saver.end()
            self.index_saved = self._save() == ""
        finally:
            self.disks.close()
            self.shelf.close()
            self._file_lock.release()

    def __enter__(self) -> GlobalCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
