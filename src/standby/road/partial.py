"""A partial disk: a point's layer while a transfer fills it, resumable after any kill.

Three things move together: the VHDX file, its extent log, and the ranges that the log declares
*open*. Before anything is written, the range that will hold it is open in the synced log; after a
group commit (disk flush, then log records, then log sync; group_commits.py) what was written until
it began is acknowledged, and ranges that hold nothing newer are closed in the same moment. So
after a kill at any line every byte of the file is either described by a record or lies in an open
range, and a resume reads just those ranges again: what they really hold enters the log too, and
the baseline never differs from the file (RULES 7, 8).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from standby import killpoints
from standby.clock import SYSTEM_CLOCK, Clock
from standby.digesting import LEAVES_PER_PAGE, PAGE, PIECE, DigestWriter
from standby.disk.vhdx import VhdxDisk, read_info
from standby.errors import DiskCorrupt, DiskIO, ProtocolError
from standby.files import Buffer, start_writeback
from standby.ports import Progress
from standby.road import resuming
from standby.road.baseline import Baseline, open_digests
from standby.road.extent_log import KIND_DATA, ExtentLog, Leaves, Rows, checked_rows
from standby.road.group_commits import GroupCommits, Taken
from standby.road.pages import open_layers, proved_leaves, zero_page
from standby.road.reading_back import ReadBack


@dataclass(frozen=True, slots=True)
class PartialSpec:
    """What a transfer into one disk builds on.

    `parent_chain` is newest first and empty for a new base; `digests` describe the parent's state,
    newest first; `copy_from` is the chain whose content, cut or extended with zeros, a new base
    starts from (RULES 14). `parent_on_host` is the parent's path as the host sees it, for locators.
    `point_id` names a new partial; a resumed one keeps its own.
    """

    disk_id: str
    point_id: str
    generation: int
    checkpoint_id: str
    virtual_size: int
    logical_sector_size: int = 512
    physical_sector_size: int = 4096
    page83: str = ""
    parent_chain: tuple[Path, ...] = ()
    digests: tuple[Path, ...] = ()
    copy_from: tuple[Path, ...] = ()
    parent_root: bytes = b""
    parent_on_host: str = ""


@dataclass(frozen=True, slots=True)
class SealedDisk:
    """A finished layer, closed clean and stable, ready to be committed as part of a point.

    `size` and `data_write_guid` are the file's as it was left; `root` is the digest root of the
    whole disk at this point; `digests_path` is complete for a base and holds the pages that differ
    from the parent's for a child. `changed` is the bytes in which the disk differs from the
    parent's state, or from zeros, whichever sessions brought them; None where a base began with
    what was at the target already.
    """

    disk_id: str
    point_id: str
    partial_path: Path
    size: int
    data_write_guid: str
    root: bytes
    digests_path: Path
    changed: int | None = None


class PartialDisk:
    """One disk of a point in the making.

    One thread receives; what it has taken a second one may commit, and a third one read back, at
    the same time.
    """

    def __init__(
        self, folder: Path, spec: PartialSpec, disk: VhdxDisk, log: ExtentLog, clock: Clock
    ) -> None:
        self.folder = folder
        self.spec = spec
        self.point_id = log.header.point_id
        self.disk = disk
        self.log = log
        parent = None
        if spec.parent_chain:
            parent = open_digests(spec.digests, spec.virtual_size, spec.parent_root)
        self.baseline = Baseline(parent, log, self._proved)
        self._commits = GroupCommits(disk, log, clock)
        self._failure = ""
        self._read_back = ReadBack(
            self.path,
            spec.parent_chain,
            log,
            self._commits.lock,
            disk.held_still,
            self._commits.mark_unlogged,
        )

    # --- opening ---------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        folder: Path,
        spec: PartialSpec,
        *,
        sparse: bool = True,
        clock: Clock = SYSTEM_CLOCK,
        progress: Progress | None = None,
    ) -> PartialDisk:
        """The disk's partial file in `folder` (the disk's own), new or resumed.

        A partial file of our generation is continued after its open ranges have been read again;
        one of an older generation, which its writer may still have open, is copied into a new file
        (a clone where the file system can, else what is logged, piece by piece where its leaf is
        right) and removed; one that fits no longer (another parent, size or disk) is removed.
        Raises Fenced when there is one of a newer generation. `progress` reports local copying.
        """
        return resuming.open_partial(cls, folder, spec, sparse, clock, progress)

    @property
    def path(self) -> Path:
        """The partial VHDX file."""
        return resuming.partial_path(self.folder, self.point_id, self.log.header.generation)

    @property
    def acknowledged_bytes(self) -> int:
        """Bytes of disk in the log; a range logged twice counts twice."""
        return self.log.logged_bytes

    @property
    def resume_mark(self) -> int:
        """Below it, the present checkpoint has been scanned and is acknowledged."""
        return self.log.mark

    # --- receiving -------------------------------------------------------------------------

    def receive(self, rows: Rows, leaves: Leaves, payload: Buffer) -> None:
        """Write one batch: rows (k, 3) int64 offset, length, kind (1 data, 0 zero), ascending;
        leaves of all data pieces and bytes of all data rows, in order. Buffers may be reused
        after the call. It counts after the next `group_commit`."""
        self._check_health()
        table = checked_rows(rows, len(leaves), self.spec.virtual_size)
        view = memoryview(payload).cast("B")
        data_bytes = int(table[table[:, 2] == KIND_DATA, 1].sum())
        if len(view) != data_bytes:
            raise ProtocolError(
                "source mover", f"a batch of {data_bytes} data bytes came with {len(view)}"
            )
        if not len(table):
            return
        with self._failing_for_good():
            self._commits.open_windows(table)
        with self._commits.lock, self._failing_for_good():  # else what was not written is logged
            self._commits.add(table, leaves)
            position = 0
            for offset, length, kind in table.tolist():
                if kind == KIND_DATA:
                    self.disk.write(offset, view[position : position + length])
                    position += length
                else:
                    self.disk.zero(offset, length)
            start_writeback(self.disk.file)

    def mark(self, offset: int) -> None:
        """Everything below `offset` has been scanned and, where it changed, received; counts
        after the next `group_commit`."""
        self._commits.mark(offset)

    def should_commit(self) -> bool:
        """True when a group commit is due (RULES 7)."""
        return self._commits.is_due()

    def group_commit(self) -> int:
        """Make everything received stable, then say so in the log; bytes acknowledged by it."""
        return self.commit(self.take())

    def take(self) -> Taken:
        """What was received so far, for a `commit` that is to follow, in any thread and with no
        other between; receiving goes on beside it. For the receiving thread."""
        self._check_health()
        return self._commits.take()

    def commit(self, taken: Taken) -> int:
        """The group commit of what was taken; bytes acknowledged by it. What is received meanwhile
        belongs to the next one. An error makes the whole disk refuse to go on."""
        self._check_health()
        with self._failing_for_good():
            return self._commits.commit(
                taken, self._read_back.take_findings, lambda: self._read_back.floor
            )

    def read_back(self, threads: int = 2, device: bool = False) -> list[tuple[int, int]]:
        """Read what was acknowledged and not yet read back through a second, read-only open of
        the file and its chain; (offset, length) of each run of pieces that is not what was logged.

        From the page cache, or with `device` after a sync and a drop of the cached pages. Of a
        bad piece what it really holds is logged with the next group commit, so that a resume
        finds it; the caller has it sent again."""
        return self._read_back.run(threads, device)

    def reread_open_ranges(self) -> None:
        """Log what the file really holds wherever the log does not know; for opening."""
        lowest = resuming.reread(self.disk, self.log, self.baseline)
        if lowest < self.log.mark:
            self.log.append_mark(lowest)
        self.log.append_close()
        self.log.sync()
        self._commits.all_closed()

    def root(self) -> bytes:
        """The digest root of everything acknowledged, on top of the parent's state."""
        return self.baseline.root(self.spec.virtual_size)

    # --- ending ----------------------------------------------------------------------------

    def seal(self) -> SealedDisk:
        """Commit what is pending, close the file clean, write its digests; ready for a point."""
        self.group_commit()
        with self._commits.lock:
            self.disk.close()
        root, changed = self._write_digests()
        info = read_info(self.path)
        self._close_metadata()
        return SealedDisk(
            self.spec.disk_id,
            self.point_id,
            self.path,
            info.file_size,
            info.data_write_guid,
            root,
            self.digests_path,
            None if not self.spec.parent_chain and self.log.header.copy_of else changed,
        )

    @property
    def digests_path(self) -> Path:
        """Where `seal` writes the digests."""
        return resuming.digests_path(self.folder, self.point_id, self.log.header.generation)

    def close(self) -> None:
        """Close and keep everything acknowledged for a resume; pending batches are dropped, what
        they wrote is read again by it. A second call does nothing."""
        self._failure = self._failure or "closed"
        self._commits.wait()
        with contextlib.ExitStack() as stack:
            stack.callback(self._close_metadata)
            with self._commits.lock:
                self.disk.close()

    def discard(self) -> None:
        """Close and remove the file, its log and its digests."""
        self.close()
        resuming.remove_partial(self.folder, self.point_id, self.log.header.generation)

    def _close_metadata(self) -> None:
        self.baseline.close()
        self.log.close()
        self._failure = self._failure or "closed"

    def _write_digests(self) -> tuple[bytes, int]:
        """Write the digests of what this point changes (all of it for a base); the root, and the
        bytes that it changes."""
        is_base = not self.spec.parent_chain
        all_numbers = [np.empty(0, dtype=np.int64)]
        all_nodes = [np.empty((0, 16), dtype=np.uint8)]
        changed = 0
        with DigestWriter(self.digests_path, self.spec.virtual_size, complete=is_base) as writer:
            for numbers, leaves, nodes in self.baseline.touched():
                all_numbers.append(numbers)
                all_nodes.append(nodes)
                differs = (nodes != self.baseline.parent_nodes(numbers)).any(axis=1)
                for place in np.flatnonzero(differs).tolist():
                    page_leaves = zero_page() if leaves is None else leaves[place]
                    changed += self._changed_bytes(int(numbers[place]), page_leaves)
                    writer.add(int(numbers[place]), page_leaves)
            root = self.baseline.joined_root(
                self.spec.virtual_size, np.concatenate(all_numbers), np.concatenate(all_nodes)
            )
            killpoints.reach("digests written")
            writer.finish(root)
        return root, changed

    def _changed_bytes(self, page_number: int, leaves: Leaves) -> int:
        """Bytes of the page's pieces that are others than the parent's."""
        pieces = np.flatnonzero(leaves != self.baseline.parent_leaves(page_number))
        whole = len(pieces) * PIECE
        end = (page_number * LEAVES_PER_PAGE + int(pieces[-1]) + 1) * PIECE if whole else 0
        return whole - max(0, end - self.spec.virtual_size)

    def _proved(self, page_number: int, node: bytes) -> Leaves:
        """The parent's leaves of a page whose own are damaged, from the disk, which `node` proves:
        the root of the digests does not add up without it."""
        with contextlib.closing(open_layers(self.spec.parent_chain)) as below:
            leaves = proved_leaves(below, page_number, node)
        if leaves is None:
            raise DiskCorrupt(
                str(self.spec.parent_chain[0]),
                f"page {page_number} is not what was committed, and its leaves are damaged too",
                page_number * PAGE,
                node.hex(),
                "See `standby replica verify`",
            )
        return leaves

    @contextlib.contextmanager
    def _failing_for_good(self) -> Iterator[None]:
        """After a failed write or sync nothing that this object says later could be believed: the
        system may even have dropped what it could not write. A fresh open reads what is there."""
        try:
            yield
        except BaseException as exc:
            self._failure = f"unusable after an error ({exc or type(exc).__name__})"
            raise

    def _check_health(self) -> None:
        if self._failure:
            raise DiskIO(str(self.path), "write", 0, 0, f"the partial disk is {self._failure}")
