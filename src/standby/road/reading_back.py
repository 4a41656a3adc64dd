"""Reading back what was acknowledged, through a second open of the file (RULES 9)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from standby.digesting import LEAVES_PER_PAGE, PAGE, PIECE, ZERO_LEAF
from standby.files import drop_cached
from standby.ports import VirtualDisk
from standby.road.extent_log import KIND_DATA, ExtentLog, Leaves, Rows
from standby.road.pages import (
    Mask,
    data_mask,
    open_layers,
    page_range,
    read_leaves,
    runs_of,
    zero_page,
)

NO_FLOOR = 1 << 62


@dataclass(slots=True)
class Findings:
    """What read-backs found and the log does not say yet. Extents in records before `position`
    were read; `corrections` are rows with the leaves of what bad pieces really hold."""

    position: int
    corrections: list[tuple[Rows, Leaves]] = field(default_factory=list)


@dataclass(slots=True)
class _PageResult:
    page_number: int
    bad: Mask
    leaves: Leaves


class ReadBack:
    """Remembers how far the log has been read back, and what was found to be wrong.

    `run` may be called from another thread than those that write and commit; `lock` is held while
    a batch is written, and under `held_still` a flush changes nothing, so that an open never sees
    half of either; `mark_unlogged(page, mask)` sets True the pieces of a page that have been
    written and not logged yet.
    """

    def __init__(
        self,
        path: Path,
        parents: Sequence[Path],
        log: ExtentLog,
        lock: threading.Lock,
        held_still: Callable[[], AbstractContextManager[None]],
        mark_unlogged: Callable[[int, Mask], None],
    ) -> None:
        self.floor = NO_FLOOR
        """Lowest offset that was found wrong: nothing above it counts as scanned."""
        self._path = path
        self._parents = tuple(parents)
        self._log = log
        self._lock = lock
        self._held_still = held_still
        self._mark_unlogged = mark_unlogged
        self._position = log.verified_position
        self._findings: Findings | None = None
        self._one_run = threading.Lock()

    def run(self, threads: int, device: bool) -> list[tuple[int, int]]:
        """(offset, length) of each run of pieces read back wrong since the last run."""
        with self._one_run:
            start, stop = self._position, self._log.end
            pages = self._log.pages(start, stop).tolist()
            results: list[_PageResult] = []
            if pages:
                if device:
                    drop_cached(self._path)
                with self._lock, self._held_still():
                    disk = open_layers((self._path, *self._parents))
                try:
                    results = self._checked_pages(disk, pages, start, stop, threads)
                finally:
                    disk.close()
            self._position = stop
            return self._found(results, stop) if pages else []

    def take_findings(self) -> Findings | None:
        """What the next group commit has to log; None when there is nothing. For the committing
        thread: pieces that were logged again since are left out."""
        with self._lock:
            findings, self._findings = self._findings, None
        if findings is None:
            return None
        kept: list[tuple[Rows, Leaves]] = []
        for rows, leaves in findings.corrections:
            page_number = int(rows[0, 0]) // PAGE
            newer = np.zeros(LEAVES_PER_PAGE, dtype=np.bool_)
            self._log.overlay(page_number, None, start=findings.position, mask=newer)
            first = (int(rows[0, 0]) - page_number * PAGE) // PIECE
            bad = np.zeros(LEAVES_PER_PAGE, dtype=np.bool_)
            bad[first : first + len(leaves)] = True
            for begin, end in runs_of(bad & ~newer).tolist():
                part = leaves[begin - first : end - first]
                kept.append((self._row(page_number, begin, end), part))
        findings.corrections = kept
        return findings

    def _checked_pages(
        self, disk: VirtualDisk, pages: list[int], start: int, stop: int, threads: int
    ) -> list[_PageResult]:
        def check(page_number: int) -> _PageResult | None:
            return self._check_page(disk, page_number, start, stop)

        if threads <= 1 or len(pages) == 1:
            found = [check(page) for page in pages]
        else:
            with ThreadPoolExecutor(threads, thread_name_prefix="read-back") as pool:
                found = list(pool.map(check, pages))
        return [result for result in found if result is not None]

    def _check_page(
        self, disk: VirtualDisk, page_number: int, start: int, stop: int
    ) -> _PageResult | None:
        expected, actual = zero_page(), zero_page()
        mask = np.zeros(LEAVES_PER_PAGE, dtype=np.bool_)
        self._log.overlay(page_number, expected, start=start, stop=stop, mask=mask)
        low, high = page_range(page_number, self._log.header.virtual_size)
        wanted = mask
        if bool((expected[mask] == ZERO_LEAF).any()):
            # Zeros are proven by the allocation where there is none: no need to read them.
            wanted = mask & (data_mask(disk, low, high) | (expected != ZERO_LEAF))
        read_leaves(disk, low, high, wanted, actual)
        bad = mask & (actual != expected)
        return _PageResult(page_number, bad, actual) if bad.any() else None

    def _found(self, results: list[_PageResult], stop: int) -> list[tuple[int, int]]:
        bad: list[tuple[int, int]] = []
        with self._lock:
            findings = self._findings or Findings(stop)
            findings.position = stop
            for result in results:
                newer = np.zeros(LEAVES_PER_PAGE, dtype=np.bool_)
                self._log.overlay(result.page_number, None, start=stop, mask=newer)
                # Read while newer content was being written: that is checked with its own record.
                self._mark_unlogged(result.page_number, newer)
                for first, last in runs_of(result.bad & ~newer).tolist():
                    row = self._row(result.page_number, first, last)
                    offset, length, _ = row[0].tolist()
                    bad.append((offset, length))
                    findings.corrections.append((row, result.leaves[first:last].copy()))
                    self.floor = min(self.floor, offset)
            self._findings = findings
        return bad

    def _row(self, page_number: int, first: int, last: int) -> Rows:
        """Pieces [first, last) of a page as a data row (1, 3)."""
        low = page_number * PAGE
        stop = min(low + last * PIECE, self._log.header.virtual_size)
        offset = low + first * PIECE
        return np.array([[offset, stop - offset, KIND_DATA]], dtype=np.int64)
