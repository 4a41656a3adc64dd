"""What this machine allows: the same bytes read, hashed, copied by plain system calls.

Two threads, buffers that stay in the cache, no format, no comparison, no protocol. A floor has no
allocation of its own in its loop; xxhash and the system calls run without the GIL.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import xxhash

from standby import digesting

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


# --- the whole road --------------------------------------------------------------------------

SLOTS, SLOT_SIZE = 3, 16 << 20
"""As the road's own shared memory."""

READ_BACK = 256 << 20
"""Bytes written before they are read back, as in a group commit."""


class WholeRoad:
    """What a first session does with every byte, by plain calls in two processes: read and hashed
    into shared memory in one, written, synced, read back and hashed again in the other."""

    def __init__(self, control: Any, memory: SharedMemory) -> None:
        self._control = control
        self._memory = memory

    def run(self, source: Path, target: Path, ranges: Sequence[Range]) -> float:
        """Seconds for the ranges of `source`, written to `target` at the same offsets."""
        written: queue.SimpleQueue[list[tuple[Range, bytes]]] = queue.SimpleQueue()
        failures: list[BaseException] = []
        out = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        begun = time.perf_counter()
        checker = threading.Thread(target=_check, args=(target, written, failures))
        checker.start()
        self._control.send((source, ranges))
        waiting: list[tuple[Range, bytes]] = []
        while (filled := self._control.recv()) is not None:
            slot, group = filled
            position = slot * SLOT_SIZE
            for (_, place, length), _ in group:
                if os.pwrite(out, self._memory.buf[position : position + length], place) != length:
                    raise OSError(f"short write at {place} of {target}")
                position += length
            self._control.send(slot)
            waiting += group
            if total([item for item, _ in waiting]) >= READ_BACK:
                written.put(waiting)
                waiting = []
        os.fdatasync(out)
        written.put(waiting)
        written.put([])
        checker.join()
        os.close(out)
        if failures:
            raise failures[0]
        return time.perf_counter() - begun


def _check(
    target: Path,
    written: queue.SimpleQueue[list[tuple[Range, bytes]]],
    failures: list[BaseException],
) -> None:
    try:
        fd = os.open(target, os.O_RDONLY)
        buffer = memoryview(bytearray(CHUNK))
        while group := written.get():
            for (_, place, length), leaves in group:
                view = buffer[:length]
                if os.preadv(fd, [view], place) != length:
                    raise OSError(f"short read at {place} of {target}")
                if digesting.leaves(view).tobytes() != leaves:
                    raise OSError(f"what was written at {place} of {target} is not there")
        os.close(fd)
    except BaseException as exc:
        failures.append(exc)


def _read_side(control: Any, name: str) -> None:
    memory = SharedMemory(name)
    while (asked := control.recv()) is not None:
        source, ranges = asked
        fd = os.open(source, os.O_RDONLY)
        free = list(range(SLOTS))
        for first in range(0, len(ranges), SLOT_SIZE // CHUNK):
            while control.poll() or not free:
                free.append(control.recv())
            slot = free.pop(0)
            position, group = slot * SLOT_SIZE, []
            for item in ranges[first : first + SLOT_SIZE // CHUNK]:
                view = memory.buf[position : position + item[2]]
                if os.preadv(fd, [view], item[0]) != item[2]:
                    raise OSError(f"short read at {item[0]} of {source}")
                group.append((item, digesting.leaves(view).tobytes()))
                position += item[2]
                del view
            control.send((slot, group))
        while len(free) < SLOTS:
            free.append(control.recv())
        control.send(None)
        os.close(fd)
    memory.close()


@contextlib.contextmanager
def whole_road() -> Iterator[WholeRoad]:
    """The road's second process, until the block ends."""
    context = multiprocessing.get_context("spawn")
    memory = SharedMemory(create=True, size=SLOTS * SLOT_SIZE)
    ours, theirs = context.Pipe()
    reader = context.Process(target=_read_side, args=(theirs, memory.name), daemon=True)
    reader.start()
    theirs.close()
    try:
        yield WholeRoad(ours, memory)
        ours.send(None)
        reader.join()
    finally:
        memory.close()
        memory.unlink()
