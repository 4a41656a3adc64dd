"""What of a group of pages is to be scanned, and where plain files hold it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from standby import comparing
from standby.digesting import LEAVES_PER_PAGE, PAGE, PIECE
from standby.disk import RawDisk, VhdxDisk
from standby.disk.file_ranges import FileRanges
from standby.model.extent import Extent
from standby.ports import VirtualDisk

PageNumbers = npt.NDArray[np.int64]
Offsets = npt.NDArray[np.int64]


def file_ranges(disk: VirtualDisk, pages: PageNumbers) -> FileRanges | None:
    """Where plain files hold these pages (ascending); None: `read_into` has to be asked."""
    if not comparing.CAN_READ_FILES or not isinstance(disk, VhdxDisk | RawDisk):
        return None
    tables: list[FileRanges] = []
    for neighbours in np.split(pages, np.flatnonzero(np.diff(pages) != 1) + 1):
        start, stop = int(neighbours[0]) * PAGE, (int(neighbours[-1]) + 1) * PAGE
        found = disk.file_ranges(start, min(stop, disk.virtual_size))
        if found is None:
            return None
        tables.append(found)
    return FileRanges(np.concatenate([table.rows for table in tables]), tables[0].files)


class Windows:
    """The parts of pages that may have changed: everything, or the candidates."""

    def __init__(self, virtual_size: int, candidates: tuple[Extent, ...] | None) -> None:
        self._virtual_size = virtual_size
        self._candidates = None if candidates is None else _on_borders(candidates)

    def of(self, pages: PageNumbers) -> npt.NDArray[np.int64]:
        """(n, 3) rows of (offset, stop, index of the first piece among the pages' leaves), on
        pieces' borders but for the disk's end, ascending and disjoint."""
        starts = pages * PAGE
        stops = np.minimum(starts + PAGE, self._virtual_size)
        places = np.arange(len(pages), dtype=np.int64) * LEAVES_PER_PAGE
        if self._candidates is None:
            return np.stack((starts, stops, places), axis=1)
        low, high = self._candidates
        rows = [np.empty((0, 3), np.int64)]
        firsts, lasts = np.searchsorted(high, starts, "right"), np.searchsorted(low, stops)
        for index, place in enumerate(places.tolist()):
            few = slice(firsts[index], lasts[index])
            first = np.maximum(low[few], starts[index])
            last = np.minimum(high[few], stops[index])
            rows.append(np.stack((first, last, place + (first - starts[index]) // PIECE), axis=1))
        return np.concatenate(rows)


def _on_borders(candidates: tuple[Extent, ...]) -> tuple[Offsets, Offsets]:
    """Starts and stops of the candidates on pieces' borders, ascending and disjoint."""
    spans = np.array([(item.offset, item.stop) for item in candidates], np.int64).reshape(-1, 2)
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    starts, stops = spans[:, 0] // PIECE * PIECE, -(-spans[:, 1] // PIECE) * PIECE
    reach = np.maximum.accumulate(stops)
    starts[1:] = np.maximum(starts[1:], reach[:-1])
    is_new = starts < stops
    return starts[is_new], stops[is_new]
