"""Pages of a state that is not committed yet, written by the mover that finds them."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from standby import digesting
from standby.repository.database import Database, delete_doomed
from standby.repository.index import (
    Index,
    StoredPage,
    effective_index,
    leaves_array,
    overlaid,
    page_count,
    staged_pages,
    stored_pages,
)

FLUSH_PAGES = 64
"""Pages held in memory (2 MiB of leaves, 1 GiB of disk) before they are written: one durable
transaction costs some milliseconds, so at 64 it is noise beside reading the disk."""


class Mark(NamedTuple):
    """Everything below `offset` of the checkpoint is staged. ('', 0) when never set."""

    checkpoint_id: str
    offset: int


@dataclass(frozen=True, slots=True)
class StagedDisk:
    """What a staging holds, for whoever decides between going on and discarding."""

    disk: str
    session: str
    point_id: str
    virtual_size: int
    is_base: bool
    mark: Mark
    pages: int


class Staging:
    """The pages of one disk for one coming point.

    Made by `Repository.stage`. Pages become durable in batches, at `set_mark` and at `sync`; put
    again, a page replaces its earlier value. Thread-safe. Once another session stages the same
    disk, or the staging is committed or discarded, every call raises RepositoryError.
    """

    def __init__(
        self,
        database: Database,
        of: str,
        row: tuple[int, int, str, int, int | None],
        base: Index,
        mark: Mark,
    ) -> None:
        self._database = database
        self._of = of
        self._id, self._disk_id, self._session, self.virtual_size, self._base_sequence = row
        self._base = base
        self._base_rows = {int(page): row for row, page in enumerate(base[0])}
        self._mark = mark
        self._pending: dict[int, tuple[bytes | None, bytes | None]] = {}
        self._page_count = page_count(self.virtual_size)
        self._put_here: set[int] = set()

    @property
    def mark(self) -> Mark:
        """The last mark set, also by an earlier session that this one goes on from."""
        return self._mark

    def clear(self) -> None:
        """Drop every page put so far, by an earlier session too, and the mark.

        To be called when the mark of an earlier session does not hold (another checkpoint): a page
        that was staged then and is as in the base now would not be put again, and stay wrong.
        """
        with self._database.lock:
            with self._database.writing() as connection:
                self._check_owner(connection)
                clear_staging(connection, self._id)
                connection.execute(
                    "UPDATE stagings SET mark_checkpoint = '', mark_offset = 0 WHERE id = ?",
                    (self._id,),
                )
            self._pending.clear()
            self._put_here.clear()
            self._mark = Mark("", 0)

    def put(self, page_numbers: Sequence[int], leaves: NDArray[np.uint64]) -> None:
        """Stage the pages `page_numbers` with `leaves` (n, 4096); pages of zeros included, if the
        base has something else there. Pieces beyond the end of the disk have ZERO_LEAF."""
        rows = np.ascontiguousarray(leaves, dtype=np.uint64)
        if rows.shape != (len(page_numbers), digesting.LEAVES_PER_PAGE):
            raise ValueError(f"{len(page_numbers)} pages but leaves of shape {rows.shape}")
        if len(page_numbers) == 0:
            return
        if min(page_numbers) < 0 or max(page_numbers) >= self._page_count:
            raise ValueError(f"page {max(page_numbers)} of a disk with {self._page_count} pages")
        nodes = digesting.page_nodes(rows)
        is_zero = (rows == digesting.ZERO_LEAF).all(axis=1)
        stored = rows.astype("<u8", copy=False)
        with self._database.lock:
            for row, page in enumerate(page_numbers):
                if is_zero[row]:
                    self._pending[int(page)] = (None, None)
                else:
                    self._pending[int(page)] = (nodes[row].tobytes(), stored[row].tobytes())
            if len(self._pending) >= FLUSH_PAGES:
                self._flush(self._mark)

    def sync(self) -> None:
        """Return when everything put is on stable storage."""
        with self._database.lock:
            self._flush(self._mark)

    def set_mark(self, checkpoint_id: str, offset: int) -> None:
        """Record durably, together with every page put before, that the checkpoint is staged up
        to `offset`. Where the mark so far was of another checkpoint, what was staged under that one
        and not put again here is dropped: it is as in the base now, or would have been put."""
        with self._database.lock:
            self._flush(Mark(checkpoint_id, offset))

    def _flush(self, mark: Mark) -> None:
        if not self._pending and mark == self._mark:
            with self._database.reading() as connection:
                self._check_owner(connection)
            return
        with self._database.writing() as connection:
            self._check_owner(connection)
            for page, (node, data) in self._pending.items():
                self._write(connection, page, node, data)
            self._put_here.update(self._pending)
            if self._mark.checkpoint_id not in ("", mark.checkpoint_id):
                self._drop_older(connection)
            delete_doomed(connection)
            connection.execute(
                "UPDATE stagings SET mark_checkpoint = ?, mark_offset = ? WHERE id = ?",
                (*mark, self._id),
            )
        self._pending.clear()
        self._mark = mark

    def _write(
        self, connection: sqlite3.Connection, page: int, node: bytes | None, data: bytes | None
    ) -> None:
        """One page; nothing is stored for one that is as in the base."""
        connection.execute(
            "INSERT INTO doomed SELECT leaves_id FROM staged_pages"
            " WHERE staging_id = ? AND page = ? AND leaves_id IS NOT NULL",
            (self._id, page),
        )
        if node == self._base_node(page):
            connection.execute(
                "DELETE FROM staged_pages WHERE staging_id = ? AND page = ?", (self._id, page)
            )
            return
        leaves_id = None
        if data is not None:
            leaves_id = connection.execute(
                "INSERT INTO leaves (data) VALUES (?)", (data,)
            ).lastrowid
        connection.execute(
            "INSERT OR REPLACE INTO staged_pages VALUES (?, ?, ?, ?)",
            (self._id, page, node, leaves_id),
        )

    def _drop_older(self, connection: sqlite3.Connection) -> None:
        rows = connection.execute(
            "SELECT page, leaves_id FROM staged_pages WHERE staging_id = ?", (self._id,)
        ).fetchall()
        older = [(page, leaves_id) for page, leaves_id in rows if page not in self._put_here]
        connection.executemany(
            "DELETE FROM staged_pages WHERE staging_id = ? AND page = ?",
            [(self._id, page) for page, _ in older],
        )
        connection.executemany("DELETE FROM leaves WHERE id = ?", [(row[1],) for row in older])

    def _base_node(self, page: int) -> bytes | None:
        row = self._base_rows.get(page)
        return None if row is None else self._base[1][row].tobytes()

    def _check_owner(self, connection: sqlite3.Connection) -> None:
        row = connection.execute(
            "SELECT session FROM stagings WHERE id = ?", (self._id,)
        ).fetchone()
        if row is None:
            raise self._database.error(
                f"{self._of}: the staged digests were committed or discarded meanwhile"
            )
        if row[0] != self._session:
            raise self._database.error(
                f"{self._of}: session {row[0]} has taken the staged digests over"
            )

    def index(self) -> Index:
        """The index of the state that a commit would make: base and staged pages. Syncs first."""
        with self._database.lock:
            self._flush(self._mark)
            with self._database.reading() as connection:
                return staged_index(connection, self._id, self._base)

    def root(self) -> bytes:
        """The digest root (16 bytes) of the state that a commit would make. Syncs first."""
        return digesting.root_of_pages(self.virtual_size, *self.index())

    def leaves(self, page_numbers: Sequence[int]) -> NDArray[np.uint64]:
        """(n, 4096) leaves of these pages as a commit would make them. Syncs first."""
        pages = [int(page) for page in page_numbers]
        with self._database.lock:
            self._flush(self._mark)
            with self._database.reading() as connection:
                found: list[StoredPage] = []
                if self._base_sequence is not None:
                    found += stored_pages(connection, self._disk_id, self._base_sequence, pages)
                found += staged_pages(connection, self._id, pages)
                return leaves_array(self._database, self._of, pages, found)


def staged_index(connection: sqlite3.Connection, staging_id: int, base: Index) -> Index:
    """The index of `base` with the staged pages over it."""
    rows = connection.execute(
        "SELECT page, node FROM staged_pages WHERE staging_id = ? ORDER BY page", (staging_id,)
    ).fetchall()
    numbers = np.fromiter((row[0] for row in rows), np.int64, len(rows))
    return overlaid(base, numbers, [row[1] for row in rows])


def base_index(connection: sqlite3.Connection, disk_id: int, sequence: int | None) -> Index:
    """What a staging starts from; nothing when `sequence` is None (a complete new state)."""
    if sequence is None:
        return np.empty(0, np.int64), np.empty((0, 16), np.uint8)
    return effective_index(connection, disk_id, sequence)


def clear_staging(connection: sqlite3.Connection, staging_id: int) -> None:
    """Remove the staged pages and their leaves."""
    connection.execute(
        "INSERT INTO doomed SELECT leaves_id FROM staged_pages"
        " WHERE staging_id = ? AND leaves_id IS NOT NULL",
        (staging_id,),
    )
    delete_doomed(connection)
    connection.execute("DELETE FROM staged_pages WHERE staging_id = ?", (staging_id,))


def delete_staging(connection: sqlite3.Connection, staging_id: int) -> None:
    """Remove a staging and what only it refers to."""
    clear_staging(connection, staging_id)
    connection.execute("DELETE FROM stagings WHERE id = ?", (staging_id,))
