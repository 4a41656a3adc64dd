"""The repository as movers and the backup server use it: states, pages, commits."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from standby import digesting
from standby.repository import retiring, verifying
from standby.repository.database import REBUILD, Database, delete_doomed
from standby.repository.index import Index, adds_up, effective_index, leaves_array, stored_pages
from standby.repository.staging import (
    Mark,
    StagedDisk,
    Staging,
    base_index,
    delete_staging,
    staged_index,
)


@dataclass(frozen=True, slots=True)
class DiskState:
    """One disk at one point. `root` is the digest root (16 bytes, RULES 5); `sequence` numbers
    the replica's points in the order of their commits."""

    point_id: str
    root: bytes
    virtual_size: int
    sequence: int


class Repository:
    """A folder with the digests and points of any number of replicas.

    Several processes may use one repository at once: readers never wait, writers take turns.
    Thread-safe. Every method may raise RepositoryError: the file is damaged (the message says
    what, and that it can be rebuilt), RepositoryBusy or DiskFull.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Open the repository in the folder `path`; `create` makes it where it is missing."""
        self.path = path
        self._database = Database(path, create=create)

    def relax(self) -> None:
        """For a mover that only stages: no transaction waits for the device. A staging that lost
        its end in a power cut is a staging with an older mark, and one that is gone is computed
        again, so nothing depends on it; on a disk that is busy with a replica's data each wait
        cost a third of a second."""
        self._database.relax()

    def close(self) -> None:
        """Close; a second call does nothing. What a `Staging` has not synced is lost."""
        self._database.close()

    def __enter__(self) -> Repository:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- states ------------------------------------------------------------------------------

    def state(self, replica: str, disk: str) -> DiskState | None:
        """The newest committed state of the disk; None when there is none."""
        return self.states(replica).get(disk)

    def states(self, replica: str) -> dict[str, DiskState]:
        """The newest committed state of each disk."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT d.name, s.point_id, s.root, s.virtual_size, MAX(s.sequence)"
                " FROM replicas r JOIN disks d ON d.replica_id = r.id"
                " JOIN states s ON s.disk_id = d.id WHERE r.name = ? GROUP BY d.id ORDER BY d.name",
                (replica,),
            ).fetchall()
        return {row[0]: DiskState(*row[1:]) for row in rows}

    def points(self, replica: str) -> list[str]:
        """Ids of the points with a state here, oldest commit first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT s.point_id FROM replicas r JOIN disks d ON d.replica_id = r.id"
                " JOIN states s ON s.disk_id = d.id WHERE r.name = ?"
                " GROUP BY s.point_id ORDER BY MAX(s.sequence)",
                (replica,),
            ).fetchall()
        return [row[0] for row in rows]

    def replicas(self) -> list[str]:
        """Names of the replicas with a state or a staging here."""
        with self._database.reading() as connection:
            return [r[0] for r in connection.execute("SELECT name FROM replicas ORDER BY name")]

    # --- pages -------------------------------------------------------------------------------

    def index(self, replica: str, disk: str, point_id: str | None = None) -> Index:
        """(page numbers (n,) int64 ascending, nodes (n, 16) uint8) of the pages that are not zero,
        in the newest state or the one of `point_id`. Checked against the state's root."""
        with self._database.reading() as connection:
            disk_id, state = self._known_state(connection, replica, disk, point_id)
            index = effective_index(connection, disk_id, state.sequence)
        if not adds_up(state.virtual_size, index, state.root):
            raise self._database.error(
                f"{_of(replica, disk)}: the digest pages of point {state.point_id} do not add up"
                f" to its root {state.root.hex()}: the index is damaged. {REBUILD}"
            )
        return index

    def leaves(
        self,
        replica: str,
        disk: str,
        page_numbers: Sequence[int] | NDArray[np.int64],
        point_id: str | None = None,
    ) -> NDArray[np.uint64]:
        """(n, 4096) uint64 leaves of these pages, ZERO_LEAF where the page is zero, in the newest
        state or the one of `point_id`. Each page is checked against its node."""
        pages = [int(page) for page in page_numbers]
        with self._database.reading() as connection:
            disk_id, state = self._known_state(connection, replica, disk, point_id)
            found = stored_pages(connection, disk_id, state.sequence, pages)
            return leaves_array(self._database, _of(replica, disk), pages, found)

    # --- staging -----------------------------------------------------------------------------

    def stage(
        self,
        replica: str,
        disk: str,
        session: str,
        point_id: str,
        virtual_size: int,
        base: bool,
    ) -> Staging:
        """Where the pages of the coming point are put: changes on top of the newest state
        (`base`), or the complete new state.

        An earlier staging of the same point, size and base is gone on from if it has a mark; any
        other one of this disk is discarded. Who finds a mark of another checkpoint calls `clear`.
        """
        of = _of(replica, disk)
        with self._database.writing() as connection:
            disk_id = _make_disk(connection, replica, disk)
            sequence = None
            if base:
                _, state = self._known_state(connection, replica, disk, None)
                sequence = state.sequence
                if virtual_size < state.virtual_size:
                    raise self._database.error(
                        f"{of}: shrank from {state.virtual_size} to {virtual_size} bytes; changes"
                        " cannot be staged on top of a larger state, stage the complete one"
                    )
            row = connection.execute(
                "SELECT id, mark_checkpoint, mark_offset FROM stagings WHERE disk_id = ?"
                " AND point_id = ? AND virtual_size = ? AND base_sequence IS ?"
                " AND mark_checkpoint != ''",
                (disk_id, point_id, virtual_size, sequence),
            ).fetchone()
            if row is not None:
                staging_id, mark = row[0], Mark(row[1], row[2])
                connection.execute(
                    "UPDATE stagings SET session = ? WHERE id = ?", (session, staging_id)
                )
            else:
                _discard(connection, disk_id)
                mark = Mark("", 0)
                staging_id = connection.execute(
                    "INSERT INTO stagings (disk_id, session, point_id, virtual_size, base_sequence)"
                    " VALUES (?, ?, ?, ?, ?)",
                    (disk_id, session, point_id, virtual_size, sequence),
                ).lastrowid
            index = base_index(connection, disk_id, sequence)
        return Staging(
            self._database, of, (staging_id, disk_id, session, virtual_size, sequence), index, mark
        )

    def staged(self, replica: str) -> list[StagedDisk]:
        """What is staged and neither committed nor discarded, in order of disk."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT d.name, g.session, g.point_id, g.virtual_size, g.base_sequence,"
                " g.mark_checkpoint, g.mark_offset,"
                " (SELECT count(*) FROM staged_pages p WHERE p.staging_id = g.id)"
                " FROM replicas r JOIN disks d ON d.replica_id = r.id"
                " JOIN stagings g ON g.disk_id = d.id WHERE r.name = ? ORDER BY d.name",
                (replica,),
            ).fetchall()
        return [
            StagedDisk(name, session, point, size, base is not None, Mark(checkpoint, offset), n)
            for name, session, point, size, base, checkpoint, offset, n in rows
        ]

    def discard(self, replica: str, disk: str | None = None) -> None:
        """Drop what is staged, of one disk or of all."""
        with self._database.writing() as connection:
            rows = connection.execute(
                "SELECT d.id FROM replicas r JOIN disks d ON d.replica_id = r.id"
                " WHERE r.name = ? AND d.name = ifnull(?, d.name)",
                (replica, disk),
            ).fetchall()
            for (disk_id,) in rows:
                _discard(connection, disk_id)

    def commit(self, replica: str, point_id: str, disks: Mapping[str, bytes]) -> None:
        """Make what is staged for `point_id` the newest state, of all `disks` (disk: root) at
        once. Repeating it is harmless. RepositoryError, and nothing changed, where a disk has
        nothing staged, its staged root differs, or its newest state is another one by now."""
        with self._database.writing() as connection:
            (sequence,) = connection.execute(
                "SELECT 1 + ifnull(max(s.sequence), 0) FROM replicas r"
                " JOIN disks d ON d.replica_id = r.id JOIN states s ON s.disk_id = d.id"
                " WHERE r.name = ?",
                (replica,),
            ).fetchone()
            for disk, root in disks.items():
                self._commit_disk(connection, replica, disk, point_id, root, sequence)

    def _commit_disk(
        self,
        connection: sqlite3.Connection,
        replica: str,
        disk: str,
        point_id: str,
        root: bytes,
        sequence: int,
    ) -> None:
        of = _of(replica, disk)
        disk_id = _make_disk(connection, replica, disk)
        newest = self._newest(connection, disk_id)
        row = connection.execute(
            "SELECT id, virtual_size, base_sequence FROM stagings"
            " WHERE disk_id = ? AND point_id = ?",
            (disk_id, point_id),
        ).fetchone()
        if row is None:
            if newest is not None and (newest.point_id, newest.root) == (point_id, root):
                return
            raise self._database.error(f"{of}: nothing is staged for point {point_id}")
        staging_id, virtual_size, base_sequence = row
        newest_sequence = None if newest is None else newest.sequence
        if base_sequence not in (None, newest_sequence):
            raise self._database.error(
                f"{of}: the digests of point {point_id} are staged on top of state"
                f" {base_sequence}, but the newest is {newest_sequence}; discard them"
            )
        if connection.execute(
            "SELECT 1 FROM states WHERE disk_id = ? AND point_id = ?", (disk_id, point_id)
        ).fetchone():
            raise self._database.error(f"{of}: point {point_id} is committed already")
        base = base_index(connection, disk_id, base_sequence)
        index = staged_index(connection, staging_id, base)
        staged_root = digesting.root_of_pages(virtual_size, *index)
        if staged_root != root:
            raise self._database.error(
                f"{of}: the digests staged for point {point_id} have root {staged_root.hex()},"
                f" but the point has {root.hex()}; discard them, the next session reads the disk"
                " and compares"
            )
        if newest_sequence is not None and base_sequence is None:
            _stage_differences(connection, disk_id, staging_id, newest_sequence, index)
        connection.execute(
            "INSERT INTO pages SELECT ?, page, ?, node, leaves_id FROM staged_pages"
            " WHERE staging_id = ?",
            (disk_id, sequence, staging_id),
        )
        connection.execute(
            "INSERT INTO states VALUES (?, ?, ?, ?, ?)",
            (disk_id, sequence, point_id, root, virtual_size),
        )
        connection.execute("DELETE FROM staged_pages WHERE staging_id = ?", (staging_id,))
        connection.execute("DELETE FROM stagings WHERE id = ?", (staging_id,))

    # --- the end of points -------------------------------------------------------------------

    def drop_points(self, replica: str, keep: Collection[str]) -> None:
        """Forget the points that are not in `keep`, and the pages that only they need. The newest
        point stays in any case: it is what the next one builds on."""
        with self._database.writing() as connection:
            retiring.drop_points(connection, replica, keep)

    def forget(self, replica: str) -> None:
        """Drop everything about the replica; nothing happens if there is nothing."""
        with self._database.writing() as connection:
            retiring.forget(connection, replica)

    def verify(self) -> list[str]:
        """Read and check everything: one line per problem, none when the repository is sound.
        Reads all pages: about 2 GiB per TiB of replicated data."""
        return verifying.problems(self._database)

    # --- look-ups ----------------------------------------------------------------------------

    def _newest(self, connection: sqlite3.Connection, disk_id: int) -> DiskState | None:
        row = connection.execute(
            "SELECT point_id, root, virtual_size, sequence FROM states WHERE disk_id = ?"
            " ORDER BY sequence DESC LIMIT 1",
            (disk_id,),
        ).fetchone()
        return None if row is None else DiskState(*row)

    def _known_state(
        self, connection: sqlite3.Connection, replica: str, disk: str, point_id: str | None
    ) -> tuple[int, DiskState]:
        row = connection.execute(
            "SELECT d.id, s.point_id, s.root, s.virtual_size, s.sequence FROM replicas r"
            " JOIN disks d ON d.replica_id = r.id JOIN states s ON s.disk_id = d.id"
            " WHERE r.name = ? AND d.name = ? AND s.point_id = ifnull(?, s.point_id)"
            " ORDER BY s.sequence DESC LIMIT 1",
            (replica, disk, point_id),
        ).fetchone()
        if row is None:
            what = f"point {point_id} is not known here" if point_id else "no point is known here"
            raise self._database.error(f"{_of(replica, disk)}: {what}")
        return row[0], DiskState(*row[1:])


def _of(replica: str, disk: str) -> str:
    return f"replica {replica}, disk {disk}"


def _make_disk(connection: sqlite3.Connection, replica: str, disk: str) -> int:
    """The disk's row id, made where it is missing."""
    connection.execute("INSERT OR IGNORE INTO replicas (name) VALUES (?)", (replica,))
    connection.execute(
        "INSERT OR IGNORE INTO disks (replica_id, name) SELECT id, ? FROM replicas WHERE name = ?",
        (disk, replica),
    )
    row = connection.execute(
        "SELECT d.id FROM disks d JOIN replicas r ON r.id = d.replica_id"
        " WHERE r.name = ? AND d.name = ?",
        (replica, disk),
    ).fetchone()
    return int(row[0])


def _discard(connection: sqlite3.Connection, disk_id: int) -> None:
    row = connection.execute("SELECT id FROM stagings WHERE disk_id = ?", (disk_id,)).fetchone()
    if row is not None:
        delete_staging(connection, row[0])


def _stage_differences(
    connection: sqlite3.Connection, disk_id: int, staging_id: int, newest: int, index: Index
) -> None:
    """Turn a complete staging (its `index`) into what differs from the state `newest`: pages that
    are equal are shared with it, pages that are gone become zero."""
    connection.execute(
        "DELETE FROM staged_pages WHERE staging_id = ? AND node IS NULL", (staging_id,)
    )
    old_numbers, old_nodes = effective_index(connection, disk_id, newest)
    numbers, nodes = index
    _, old_rows, rows = np.intersect1d(
        old_numbers, numbers, assume_unique=True, return_indices=True
    )
    same = numbers[rows[(old_nodes[old_rows] == nodes[rows]).all(axis=1)]]
    for page in same.tolist():
        connection.execute(
            "INSERT INTO doomed SELECT leaves_id FROM staged_pages"
            " WHERE staging_id = ? AND page = ?",
            (staging_id, page),
        )
        connection.execute(
            "DELETE FROM staged_pages WHERE staging_id = ? AND page = ?", (staging_id, page)
        )
    delete_doomed(connection)
    connection.executemany(
        "INSERT INTO staged_pages VALUES (?, ?, NULL, NULL)",
        [
            (staging_id, page)
            for page in np.setdiff1d(old_numbers, numbers, assume_unique=True).tolist()
        ],
    )
