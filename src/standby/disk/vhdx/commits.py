"""Committing what was written to a VHDX file, and the session around it.

writer.py says in which order what reaches the file. A commit takes the changed pages and the file's
size as they are when it begins; its syncs may run without the lock, and what is changed meanwhile
belongs to the next commit. Another open of the file, made under the lock, sees what a crash at that
moment would leave.
"""

from __future__ import annotations

import threading

from standby import clock
from standby.disk.vhdx.geometry import OFFSET_MASK, Geometry
from standby.disk.vhdx.headers import Headers
from standby.disk.vhdx.layer import Layer
from standby.disk.vhdx.log_writer import PAGES_PER_ENTRY, LogWriter
from standby.disk.vhdx.space import Space
from standby.disk.vhdx.structures import ZERO_GUID
from standby.errors import DiskFull, DiskIO, DiskUnsupported
from standby.files import BlockFile

_TABLE_PAGES_MAX = 100
"""Changed table pages before a commit comes by itself: they must fit into one entry."""
_CHANGED_PAGES_MAX = 2048
"""Changed pages in all (8 MiB, at most 32 MiB of pinned windows) before a commit does."""


class Commits:
    """The half of a writer that knows what is changed and makes it safe."""

    def __init__(
        self,
        layer: Layer,
        headers: Headers,
        *,
        keep_data_write_guid: bool,
        sparse: bool,
        is_new: bool,
    ) -> None:
        """`is_new`: the file was made in this session and carries its GUIDs already."""
        header = headers.current
        if not header.log_length:
            raise DiskUnsupported(str(layer.file.path), "writing to a file without a log")
        self.layer = layer
        self.headers = headers
        self.sparse = sparse
        self._keep = keep_data_write_guid
        self._file: BlockFile = layer.file
        self._log = LogWriter(layer.file, header.log_offset, header.log_length)
        self._log_begun = False
        self._file_begun = self._data_begun = is_new
        self._space = Space(layer)
        self._new_bitmaps: set[int] = set()
        self._pending: dict[int, bytes] = {}
        self._unsynced = False
        self._synced_size = layer.file.size
        self._judged = (0, 0)
        self._failure = ""
        self.lock = threading.RLock()
        """Held by every method; given up for the syncs of a commit that others write beside."""
        self._is_committing = False
        self._commit_over = threading.Condition(self.lock)

    @property
    def geometry(self) -> Geometry:
        """Sizes of the disk."""
        return self.layer.geometry

    # --- session ---

    def take_back(self) -> None:
        """Use again what a writer that was killed left in the file and nothing owns. Before the
        first change; a file with a region of a kind that we do not know is left as it is."""
        with self.lock:
            assert not self._log_begun
            if self.layer.table.regions.are_known:
                self._space.take_back(self.layer, sparse=self.sparse)
                self._synced_size = self._file.size

    def begin(self, *, data: bool) -> None:
        """Before the first change, and the first change of `data`: log and headers (2.2.2)."""
        if self._failure:
            raise DiskIO(
                str(self._file.path), "write", 0, 0, f"an earlier change failed: {self._failure}"
            )
        changes: dict[str, bytes] = {}
        if not self._log_begun:
            changes["log_guid"] = clock.new_uuid().bytes_le
            self._log.begin(changes["log_guid"])
            self._sync()
        if not self._file_begun:
            changes["file_write_guid"] = clock.new_uuid().bytes_le
        if data and not self._data_begun and not self._keep:
            changes["data_write_guid"] = clock.new_uuid().bytes_le
        if changes:
            try:
                self.headers.update(**changes)
            except BaseException as exc:  # the headers may name this log: it must not be begun anew
                self._failure = str(exc) or type(exc).__name__
                raise
        self._log_begun = self._file_begun = True
        self._data_begun = self._data_begun or data

    def set_data_write_guid(self, guid: bytes) -> None:
        """Give the data an identity; later changes in this session keep it."""
        with self.lock:
            self.commit()
            self.begin(data=False)
            self.headers.update(data_write_guid=guid)
            self._data_begun = True

    def _sync(self, *, beside: bool = False) -> None:
        """Sync what is written by now; `beside`: without the lock meanwhile."""
        size = self._file.size
        self._unsynced = False
        if beside:
            self.lock.release()
        try:
            self._file.sync()
        except BaseException:
            self._unsynced = True
            raise
        finally:
            if beside:
                self.lock.acquire()
        self._synced_size = size

    # --- commit ---

    def bound(self) -> None:
        """Commit when more pages changed than one commit should carry."""
        changed = self.layer.pages.changed
        if len(changed) <= _TABLE_PAGES_MAX or len(changed) == self._judged[0]:
            return
        self._judged = (len(changed), self._table_pages())
        if len(changed) > _CHANGED_PAGES_MAX or self._judged[1] > _TABLE_PAGES_MAX:
            self.commit()

    def _table_pages(self) -> int:
        start = self.layer.table.offset
        stop = start + 8 * self.geometry.slot_count
        return sum(1 for page in self.layer.pages.changed if start <= page < stop)

    def commit(self, *, beside: bool = False) -> None:
        """Return when everything written so far survives a crash. With `beside`, called without
        the lock, other threads may change the disk during the syncs; that counts from the next
        commit on, which waits for this one.

        DiskFull leaves the changes in memory, and a later call tries again; after any other
        failure the file is as it was at the last commit, and this object refuses to go on.
        """
        with self.lock:
            self._await_commit()
            if not (self._unsynced or self.layer.pages.changed or self._pending):
                return
            self.begin(data=False)
            self._is_committing = True
            try:
                self._commit(beside)
            except DiskFull:
                raise
            except BaseException as exc:
                self._failure = str(exc) or type(exc).__name__
                raise
            finally:
                self._is_committing = False
                self._commit_over.notify_all()

    def _await_commit(self) -> None:
        """Wait, the lock given up however often it is held, until no commit is under way."""
        while self._is_committing:
            self._commit_over.wait()

    def _commit(self, beside: bool) -> None:
        pages = self.layer.pages
        self._put_in_place()
        contents = pages.take_changed()
        bitmaps, self._new_bitmaps = self._new_bitmaps, set()
        released = self._space.take_released()
        size = self._file.size
        self._judged = (0, 0)
        try:
            in_new = [page for page in contents if page & OFFSET_MASK in bitmaps]
            for page in in_new:
                self._file.write(contents[page], page)
            if self._unsynced or in_new or size != self._synced_size:
                self._sync(beside=beside)
                self._log.settle()
            for page in in_new:
                del contents[page]
            if contents:
                self._write_entries(contents, size, beside)
        except BaseException:
            pages.settle(are_safe=False)
            self._new_bitmaps |= bitmaps
            self._space.keep_released(released)
            raise
        self._put_in_place()
        pages.settle(are_safe=True)  # a page that leaves the cache is read from its place
        self._space.committed(released, self._file if self.sparse else None)

    def _write_entries(self, logged: dict[int, bytes], size: int, beside: bool) -> None:
        """Log pages and sync: bitmaps first, all else in the last entry. The file needs `size`
        bytes for what they name."""
        table = self.layer.table
        first = [page for page in logged if not table.is_in_region(page)]
        last = [page for page in logged if table.is_in_region(page)]
        spare = max(0, PAGES_PER_ENTRY - len(last))
        cut = max(0, len(first) - spare)
        groups = [first[i : min(i + PAGES_PER_ENTRY, cut)] for i in range(0, cut, PAGES_PER_ENTRY)]
        groups.append(first[cut:] + last)
        waiting: dict[int, bytes] = {}
        for group in groups:
            contents = [(page, logged[page]) for page in group]
            if not self._log.has_room(len(group)):
                self._sync()
                self._pending.update(waiting)
                waiting.clear()
                self._put_in_place()
                self._sync()
                self._log.settle()
            self._log.append(contents, self._synced_size, size)
            waiting.update(contents)
        self._sync(beside=beside)
        self._pending.update(waiting)

    def _put_in_place(self) -> None:
        """Write committed pages where they belong. They are durable with the next sync."""
        for offset in sorted(self._pending):
            self._file.write(self._pending[offset], offset)
            del self._pending[offset]

    def close(self) -> None:
        """Commit and leave an empty log: the file needs nothing but itself. After a failed commit
        the log stays as it is, for the next open to replay."""
        with self.lock:
            self._await_commit()
            if self._failure or not self._log_begun:
                return
            self.commit()
            self._put_in_place()
            self._sync()
            self.headers.update(log_guid=ZERO_GUID)
            self._log_begun = False
