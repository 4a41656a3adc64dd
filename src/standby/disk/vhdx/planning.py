"""What one step of a write is going to do, decided before anything is changed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from standby.disk.vhdx.space import Space


class Plan:
    """What one step of a write is going to do."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self.runs: list[tuple[int, int, int]] = []
        """(file offset, start, stop) of the data, joined where they follow each other."""
        self.changes: list[tuple[int, int, int, int, int, bool]] = []
        """(block, state, file offset, first sector, last sector, is new)."""
        self.bitmaps: dict[int, int] = {}
        """New bitmap blocks by chunk."""
        self.blank: list[tuple[int, int]] = []
        """Parts of new blocks that no data covers."""
        self.new_stop = 0

    def take(self, block_size: int, inside: int, stop: int) -> int:
        """File offset of a new block whose [inside, stop) is going to be written."""
        place = self._space.take(block_size)
        self.new_stop = max(self.new_stop, place + block_size)
        if inside:
            self.blank.append((place, place + inside))
        if stop < block_size:
            self.blank.append((place + stop, place + block_size))
        return place

    def add_run(self, place: int, start: int, stop: int) -> None:
        """Data [start, stop) goes to `place`."""
        if self.runs:
            before, first, last = self.runs[-1]
            if before + last - first == place and last == start:
                self.runs[-1] = (before, first, stop)
                return
        self.runs.append((place, start, stop))


def set_bits(row: npt.NDArray[np.uint8], first: int, last: int) -> None:
    """Set the bits [first, last), least significant first; first < last."""
    begin, end = first // 8, (last - 1) // 8
    low = 0xFF << first % 8 & 0xFF
    high = 0xFF >> 7 - (last - 1) % 8
    if begin == end:
        row[begin] |= low & high
        return
    row[begin] |= low
    row[begin + 1 : end] = 0xFF
    row[end] |= high
