"""Moving much data through few buffers: windows of a disk worth reading, read ahead by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from standby.model.extent import Kind
from standby.ports import Progress, VirtualDisk
from standby.units import KiB, MiB

PIECE = 4 * KiB
WINDOW = 2 * MiB
"""What one thread handles at a time: one task costs some 50 µs of Python, 2 MiB about 500 µs of
memory traffic. Of 256 KiB to 4 MiB, 2 MiB cost the least processor time to compare, and within a
tenth of the least to convert."""

_REPORT_EVERY = 64 * MiB

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(
    tasks: Iterable[T],
    work: Callable[[T, memoryview], R],
    *,
    workers: int,
    buffer_size: int = WINDOW,
) -> Iterator[R]:
    """`work(task, buffer)` of each task, in order, computed ahead in `workers` threads.

    The buffer a result was made with stays untouched until the next result is asked for. Memory:
    (workers + 1) buffers. No workers: the caller's thread does it all. An exception of `work`
    comes out in its place; the rest is dropped.
    """
    if workers <= 0:
        buffer = memoryview(bytearray(buffer_size))
        for task in tasks:
            yield work(task, buffer)
        return
    free = deque(memoryview(bytearray(buffer_size)) for _ in range(workers + 1))
    pending: deque[tuple[Future[R], memoryview]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="read ahead") as pool:
        try:
            for task in tasks:
                buffer = free.popleft()
                pending.append((pool.submit(work, task, buffer), buffer))
                if not free:
                    future, buffer = pending.popleft()
                    yield future.result()
                    free.append(buffer)
            while pending:
                future, _ = pending.popleft()
                yield future.result()
        finally:
            for future, _ in pending:
                future.cancel()


def data_windows(disk: VirtualDisk) -> Iterator[tuple[int, int]]:
    """(first, stop) of what has to be read: per aligned window of the disk, from its first DATA
    extent to its last, widened to 4 KiB pieces. Holes between them are read too: many small
    extents cost more than the zeros."""
    size = disk.virtual_size
    held: tuple[int, int] | None = None
    for extent in disk.extents():
        if extent.kind != Kind.DATA:
            continue
        position = extent.offset
        while position < extent.stop:
            end = min(extent.stop, (position // WINDOW + 1) * WINDOW)
            first = position & -PIECE
            last = min(-(-end // PIECE) * PIECE, size)
            if held is not None and held[0] // WINDOW == first // WINDOW:
                held = (held[0], last)
            else:
                if held is not None:
                    yield held
                held = (first, last)
            position = end
    if held is not None:
        yield held


class Reporter:
    """Calls a Progress now and then, and once at the end with everything done."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._reported = 0

    def reach(self, done: int) -> None:
        """Say that `done` bytes are done."""
        if self._progress is not None and done - self._reported >= _REPORT_EVERY:
            self._reported = done
            self._progress(done, self._total)

    def end(self) -> None:
        """Say that all is done."""
        if self._progress is not None:
            self._progress(self._total, self._total)
