"""Where new blocks go: the end of the file, or space whose release is durable and punched out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from standby.disk.vhdx.geometry import FULLY_PRESENT, OFFSET_MASK, STATE_MASK
from standby.disk.vhdx.layer import Layer
from standby.files import BlockFile
from standby.units import MiB

_RUNS_MAX = 65536


class Space:
    """The free space of one file, as far as this session knows it: what earlier sessions released
    is not searched for (it is a hole already, where holes are wanted) unless `take_back` is asked
    to."""

    def __init__(self, layer: Layer) -> None:
        self._file = layer.file
        self._released: list[tuple[int, int]] = []
        self._reusable: list[tuple[int, int]] = []
        self._measure(layer)

    def _measure(self, layer: Layer) -> None:
        end = layer.file.size
        geometry = layer.geometry
        entry = layer.table.entry(geometry.block_count - 1)
        if entry & STATE_MASK >= FULLY_PRESENT:  # a file may end inside the last block
            end = max(end, (entry & OFFSET_MASK) + geometry.block_size)
        self._end = -(-end // MiB) * MiB

    @property
    def mark(self) -> int:
        """The file's end, for `restore`."""
        return self._end

    def restore(self, mark: int) -> None:
        """Give back what was taken at the end since `mark`, if the file can be cut there."""
        if self._end > mark:
            if self._file.size > mark:
                self._file.resize(mark)
            self._end = mark

    def take_at_end(self, length: int) -> int:
        """Offset of `length` new bytes; the file is not yet that long."""
        offset = self._end
        self._end += length
        return offset

    def take(self, length: int) -> int:
        """Offset of `length` bytes that read as zeros once the file is long enough."""
        while self._reusable:
            start, stop = self._reusable.pop()
            if stop - start >= length:
                if stop - start > length:
                    self._reusable.append((start + length, stop))
                return start
        return self.take_at_end(length)

    def release(self, offsets: npt.NDArray[np.int64], length: int) -> None:
        """Blocks of `length` bytes lost their last reference in memory."""
        if not offsets.size:
            return
        starts = np.sort(offsets)
        breaks = np.flatnonzero(np.diff(starts) != length) + 1
        firsts = starts[np.concatenate((np.zeros(1, dtype=np.int64), breaks))]
        lasts = starts[np.concatenate((breaks - 1, np.array([starts.size - 1]))).astype(np.int64)]
        self._released += zip(firsts.tolist(), (lasts + length).tolist(), strict=True)

    def take_back(self, layer: Layer, *, sparse: bool) -> None:
        """Cut off what nothing owns at the file's end, and offer again what nothing owns before:
        punched out if `sparse`; else whoever takes it writes zeros where no data goes. For a file
        whose table is as the last commit left it."""
        gaps = layer.table.unowned()
        if gaps and gaps[-1][1] == self._file.size:
            self._file.resize(gaps.pop()[0])
            self._measure(layer)
        for start, stop in reversed(gaps[:_RUNS_MAX]):
            if not sparse or self._file.punch(start, stop - start):
                self._reusable.append((start, stop))

    def take_released(self) -> list[tuple[int, int]]:
        """The (start, stop) ranges released so far: a commit's, to be given to `committed` or
        `keep_released` when it is over."""
        released, self._released = self._released, []
        return released

    def keep_released(self, released: list[tuple[int, int]]) -> None:
        """The commit failed: the next one tries again."""
        self._released = released + self._released

    def committed(self, released: list[tuple[int, int]], file: BlockFile | None) -> None:
        """The releases are durable: punch them out of `file` and offer them again; None: leave
        them as they are, and leave them alone."""
        if file is None:
            return
        for start, stop in released:
            if file.punch(start, stop - start) and len(self._reusable) < _RUNS_MAX:
                self._reusable.append((start, stop))
