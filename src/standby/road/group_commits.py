"""Group commits of a partial disk: what was received becomes acknowledged (RULES 7).

A commit runs in three steps: `take` what was received so far; sync the disk, which covers at least
that; log it. Receiving may go on beside the second and third: what comes then is the next
commit's, and of the ranges it is written into none is closed by this one. One commit runs at a
time.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from standby import killpoints
from standby.clock import Clock
from standby.disk.vhdx import VhdxDisk
from standby.road.extent_log import ExtentLog, Leaves, Rows, mark_pieces
from standby.road.pages import Mask
from standby.road.reading_back import Findings
from standby.units import GiB, MiB

COMMIT_BYTES = 256 * MiB
COMMIT_INTERVAL_S = 5.0
"""RULES 7: what one commit covers at most. A kill costs at most the commit under way and as much
again, in work to repeat."""

WINDOW = GiB
"""Ranges are opened by GiB, so a transfer in order syncs the log once more per GiB and a resume
reads at most some GiB again."""
_WINDOWS_AHEAD_MAX = 64


@dataclass(slots=True)
class Taken:
    """What one group commit acknowledges."""

    batches: list[tuple[Rows, Leaves]]
    windows: set[int]
    """Where the batches were written."""
    mark: int = -1


@dataclass(slots=True)
class _Received:
    """Batches that no commit has taken."""

    batches: list[tuple[Rows, Leaves]] = field(default_factory=list)
    size: int = 0
    mark: int = -1


class GroupCommits:
    """What is received and not acknowledged yet, and the ranges that are open for it.

    One thread receives (`open_windows`, `add`, `mark`, `take`), one commits (`commit`).
    """

    def __init__(self, disk: VhdxDisk, log: ExtentLog, clock: Clock) -> None:
        self.lock = threading.Lock()
        """Held while a batch is written and becomes pending."""
        self._disk = disk
        self._log = log
        self._clock = clock
        self._virtual_size = log.header.virtual_size
        self._received = _Received()
        self._committing: list[tuple[Rows, Leaves]] = []
        self._taken_at = clock.monotonic()
        self._one_commit = threading.Lock()
        self._log_lock = threading.Lock()  # from the first record staged to the sync of the last
        self._windows_lock = threading.Lock()  # the three below; taken last, held for no sync
        self._open = _windows_of(log.open_ranges)
        self._used: set[int] = set()
        self._ahead = 1

    # --- receiving -------------------------------------------------------------------------

    def add(self, rows: Rows, leaves: Leaves) -> None:
        """A batch is about to be written, under `lock`, into windows that are open."""
        self._received.batches.append((rows.copy(), np.array(leaves, dtype=np.uint64)))
        self._received.size += int(rows[:, 1].sum())

    def mark(self, offset: int) -> None:
        """Everything below `offset` has been scanned and, where it changed, received."""
        self._received.mark = offset

    def is_due(self) -> bool:
        """Whether the next commit should begin (RULES 7)."""
        if not self._received.batches:
            return False
        waited = self._clock.monotonic() - self._taken_at
        return self._received.size >= COMMIT_BYTES or waited >= COMMIT_INTERVAL_S

    def open_windows(self, rows: Rows) -> None:
        """Have every window that `rows` write into open in the synced log. Each miss since the
        last commit opens twice as many windows ahead, so a scattered transfer syncs seldom."""
        first = rows[:, 0] // WINDOW
        last = (rows[:, 0] + rows[:, 1] - 1) // WINDOW
        wanted: set[int] = set()
        for start, stop in set(zip(first.tolist(), last.tolist(), strict=True)):
            wanted.update(range(start, stop + 1))
        with self._windows_lock:
            self._used |= wanted  # from here on no commit closes them
            if wanted <= self._open:
                return
        with self._log_lock:
            with self._windows_lock:
                missing = wanted - self._open
                newest = max(missing, default=-1)
                count = -(-self._virtual_size // WINDOW)
                ahead = range(newest, min(newest + self._ahead, count)) if missing else ()
                self._ahead = min(2 * self._ahead, _WINDOWS_AHEAD_MAX)
                missing = (missing | set(ahead)) - self._open
            self._log.append_open(_ranges_of(missing, self._virtual_size))
            self._log.sync()
            with self._windows_lock:
                self._open |= missing

    def all_closed(self) -> None:
        """The log says that no range is open."""
        with self._windows_lock:
            self._open.clear()

    def mark_unlogged(self, page_number: int, mask: Mask) -> None:
        """Mark the pieces of a page that were written and are not logged; under `lock`."""
        for rows, _ in (*self._received.batches, *self._committing):
            mark_pieces(rows, page_number, mask)

    # --- committing ------------------------------------------------------------------------

    def take(self) -> Taken:
        """All that was received, for a commit; what comes later is not in it. For the thread that
        receives, after the commit before has ended."""
        with self.lock:
            received, self._received = self._received, _Received()
            self._committing = received.batches
            self._taken_at = self._clock.monotonic()
        with self._windows_lock:
            used, self._used = self._used, set()
        return Taken(received.batches, used, received.mark)

    def commit(
        self, taken: Taken, take_findings: Callable[[], Findings | None], floor: Callable[[], int]
    ) -> int:
        """Make what was taken stable, then say so in the log; bytes acknowledged by it.

        `take_findings` gives what read-backs found since the last commit, `floor` the lowest
        offset they ever found wrong. After an error nothing may be committed any more.
        """
        with self._one_commit:
            findings = take_findings()
            if not taken.batches and findings is None and taken.mark < 0:
                return 0
            if taken.batches:
                self._disk.flush()
                killpoints.reach("extent log commit: disk flushed")
            with self._log_lock:
                acknowledged = self._log_all(taken, findings, floor())
            with self.lock:
                self._committing = []
            killpoints.reach("extent log commit")
            return acknowledged

    def _log_all(self, taken: Taken, findings: Findings | None, floor: int) -> int:
        log = self._log
        if findings is not None:
            # What a piece really holds goes in before anything newer that replaces it.
            for rows, leaves in findings.corrections:
                log.append(rows, leaves)
            log.append_verified(findings.position)
        for rows, leaves in _joined(taken.batches):
            log.append(rows, leaves)
        if taken.mark >= 0 or floor < log.mark:
            log.append_mark(min(taken.mark if taken.mark >= 0 else log.mark, floor))
        if taken.batches:
            with self._windows_lock:
                # What is written beside this commit lies in windows used since: they stay open, at
                # every moment, and whoever finds another one closed here waits for this sync.
                self._open = taken.windows | self._used
                self._ahead = 1
                log.append_only_open(_ranges_of(self._open, self._virtual_size))
        return log.sync()

    def wait(self) -> None:
        """Wait for the commit under way."""
        with self._one_commit:
            pass


class Committer:
    """A thread for commits beside receiving, one at a time."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._last: Future[None] | None = None

    def begin(self, commit: Callable[[], None]) -> None:
        """Run `commit`, once `wait` has been called since the last one."""
        assert self._last is None
        self._last = self._pool.submit(commit)

    def check(self) -> None:
        """Raise what the last commit raised, if it has ended."""
        if self._last is not None and self._last.done():
            self.wait()

    def wait(self) -> None:
        """Return when no commit is under way; raises what the last one raised."""
        if self._last is not None:
            self._last.result()
            self._last = None

    def close(self) -> None:
        """End the thread, after the commit under way."""
        self._pool.shutdown(wait=True)


@contextlib.contextmanager
def cause_first(committer: Committer) -> Iterator[None]:
    """After a failed commit receiving fails too: what the commit raised is the error then."""
    try:
        yield
    except Exception:
        committer.wait()
        raise


def _joined(batches: list[tuple[Rows, Leaves]]) -> list[tuple[Rows, Leaves]]:
    """Batches that follow each other in ascending order as one, in few and whole records."""
    joined: list[tuple[Rows, Leaves]] = []
    start = 0
    for place in range(1, len(batches) + 1):
        if place < len(batches):
            before = batches[place - 1][0][-1]
            if int(batches[place][0][0, 0]) >= int(before[0] + before[1]):
                continue
        group = batches[start:place]
        joined.append(
            (
                np.concatenate([rows for rows, _ in group]),
                np.concatenate([part for _, part in group]),
            )
        )
        start = place
    return joined


def _windows_of(ranges: list[tuple[int, int]]) -> set[int]:
    windows: set[int] = set()
    for start, stop in ranges:
        windows.update(range(start // WINDOW, -(-stop // WINDOW)))
    return windows


def _ranges_of(windows: set[int], virtual_size: int) -> list[tuple[int, int]]:
    """Windows as few (start, stop) byte ranges."""
    ranges: list[tuple[int, int]] = []
    for window in sorted(windows):
        start, stop = window * WINDOW, min((window + 1) * WINDOW, virtual_size)
        if ranges and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], stop)
        else:
            ranges.append((start, stop))
    return ranges
