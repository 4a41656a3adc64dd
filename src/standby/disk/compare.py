"""Where two disks differ, whatever their formats and layers."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from standby.comparing import differing_extents
from standby.disk.pumping import PIECE, WINDOW, Reporter, data_windows, read_ahead
from standby.model.extent import Extent, Kind, coalesced
from standby.ports import Progress, VirtualDisk


def compare_disks(
    a: VirtualDisk, b: VirtualDisk, *, progress: Progress | None = None, threads: int = 2
) -> Iterator[Extent]:
    """Runs of 4 KiB pieces in which the guest sees different bytes: in order, coalesced, DATA.

    A shorter disk counts as followed by zeros; that the sizes differ is the caller's to judge.
    What is hole or zero in both is not read. `threads` read and compare 2 MiB at a time; memory
    is bounded by their buffers. Raises DiskIO and DiskCorrupt as reading does.
    """
    return coalesced(
        _differences(a, b, Reporter(progress, max(a.virtual_size, b.virtual_size)), threads)
    )


def _differences(
    a: VirtualDisk, b: VirtualDisk, reporter: Reporter, threads: int
) -> Iterator[Extent]:
    size = max(a.virtual_size, b.virtual_size)
    others = threading.local()

    def work(window: tuple[int, int], buffer: memoryview) -> tuple[int, list[list[int]]]:
        first, stop = window
        if not hasattr(others, "buffer"):
            others.buffer = memoryview(bytearray(WINDOW))
        ours, theirs = buffer[: stop - first], others.buffer[: stop - first]
        _read_padded(a, first, ours)
        _read_padded(b, first, theirs)
        return first, differing_extents(ours, theirs).tolist()

    workers = threads if threads > 1 else 0
    for start, runs in read_ahead(_either(a, b), work, workers=workers):
        for first, last in runs:
            offset = start + first * PIECE
            yield Extent(offset, min(start + last * PIECE, size) - offset, Kind.DATA)
        reporter.reach(start)
    reporter.end()


def _either(a: VirtualDisk, b: VirtualDisk) -> Iterator[tuple[int, int]]:
    """Windows in which at least one of the disks has data."""
    ours, theirs = data_windows(a), data_windows(b)
    left, right = next(ours, None), next(theirs, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left[0] // WINDOW < right[0] // WINDOW):
            assert left is not None
            yield left
            left = next(ours, None)
        elif left is None or right[0] // WINDOW < left[0] // WINDOW:
            yield right
            right = next(theirs, None)
        else:
            yield min(left[0], right[0]), max(left[1], right[1])
            left, right = next(ours, None), next(theirs, None)


def _read_padded(disk: VirtualDisk, offset: int, view: memoryview) -> None:
    held = max(0, min(len(view), disk.virtual_size - offset))
    if held:
        disk.read_into(offset, view[:held])
    if held < len(view):
        view[held:] = bytes(len(view) - held)
