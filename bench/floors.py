"""What this machine allows: the same bytes read, hashed, copied by plain system calls.

Two threads, buffers that stay in the cache, no format, no comparison, no protocol. A floor has no
allocation of its own in its loop; xxhash and the system calls run without the GIL.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import xxhash

CHUNK = 512 << 10
"""Bytes a call: fits the L2 cache with room to spare, large enough that Python's share is small."""

Range = tuple[int, int, int]
"""(source offset, target offset, length)."""


def data_ranges(path: Path) -> list[Range]:
    """All of a file that is not a hole, at its own place, in chunks."""
    found = []
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        position = 0
        while position < end:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:  # ENXIO: holes to the end
                break
            position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, start, position - start))
    return in_chunks(found)


def in_chunks(ranges: Sequence[Range]) -> list[Range]:
    """The same ranges cut into pieces of CHUNK bytes."""
    return [
        (source + done, target + done, min(CHUNK, length - done))
        for source, target, length in ranges
        for done in range(0, length, CHUNK)
    ]


def total(ranges: Sequence[Range]) -> int:
    """Bytes of all ranges."""
    return sum(length for _, _, length in ranges)


def _on_threads(
    ranges: Sequence[Range], threads: int, work: Callable[[Range, memoryview], None]
) -> None:
    """Call `work(range, buffer)` for each range; a thread takes 32 neighbours at a time."""
    groups: queue.SimpleQueue[Sequence[Range]] = queue.SimpleQueue()
    for first in range(0, len(ranges), 32):
        groups.put(ranges[first : first + 32])
    failures: list[BaseException] = []

    def loop() -> None:
        buffer = memoryview(bytearray(CHUNK))
        try:
            while True:
                for item in groups.get_nowait():
                    work(item, buffer)
        except queue.Empty:
            return
        except BaseException as exc:
            failures.append(exc)

    workers = [threading.Thread(target=loop) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]


def read_and_hash(path: Path, ranges: Sequence[Range], threads: int = 2) -> int:
    """Read the ranges and hash each with xxh3; returns a mix of the hashes."""
    seen: list[int] = []
    fd = os.open(path, os.O_RDONLY)

    def work(item: Range, buffer: memoryview) -> None:
        offset, _, length = item
        view = buffer[:length]
        if os.preadv(fd, [view], offset) != length:
            raise OSError(f"short read at {offset} of {path}")
        seen.append(xxhash.xxh3_64_intdigest(view))

    try:
        _on_threads(ranges, threads, work)
    finally:
        os.close(fd)
    mixed = 0
    for digest in seen:
        mixed ^= digest
    return mixed


def copy_ranges(
    source: Path, target: Path, ranges: Sequence[Range], threads: int = 2, size: int = 0
) -> None:
    """Copy the ranges into `target`, made if it is missing and at least `size` bytes long
    afterwards; synced before return."""
    fd = os.open(source, os.O_RDONLY)
    out = os.open(target, os.O_WRONLY | os.O_CREAT, 0o600)

    def work(item: Range, buffer: memoryview) -> None:
        offset, place, length = item
        view = buffer[:length]
        if os.preadv(fd, [view], offset) != length or os.pwrite(out, view, place) != length:
            raise OSError(f"short read or write at {offset} of {source}")

    try:
        if os.fstat(out).st_size < size:
            os.ftruncate(out, size)
        _on_threads(ranges, threads, work)
        os.fdatasync(out)
    finally:
        os.close(fd)
        os.close(out)
