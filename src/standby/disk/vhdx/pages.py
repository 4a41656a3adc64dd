"""A bounded cache of the parts of a file that hold its BAT and sector bitmaps."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from standby.disk.vhdx.structures import PAGE
from standby.files import BlockFile
from standby.units import KiB

Bytes = npt.NDArray[np.uint8]

WINDOW = 16 * KiB
_WINDOWS_MAX = 512
"""8 MiB: the table of a disk of one million blocks stays in memory, the one of a 64 TiB disk of
1 MiB blocks (513 MiB) does not."""


class PageCache:
    """Windows of 16 KiB, the least recently used go first; those with changed pages stay.

    What is changed here reaches the file only through `page` and the caller's hands. Views may be
    taken from several threads; changes exclude each other.
    """

    def __init__(self, file: BlockFile) -> None:
        self._file = file
        self._windows: OrderedDict[int, Bytes] = OrderedDict()
        self._lock = threading.Lock()
        self.changed: set[int] = set()
        """File offsets of the pages that differ from the file and no commit has taken."""
        self._leaving: set[int] = set()
        """Those that a commit has taken: until it is over the file may have them otherwise."""

    def _window(self, number: int) -> Bytes:
        with self._lock:
            window = self._windows.get(number)
            if window is not None:
                self._windows.move_to_end(number)
                return window
        start = number * WINDOW
        window = np.zeros(WINDOW, dtype=np.uint8)
        stored = min(WINDOW, self._file.size - start)
        if stored > 0:
            self._file.read_into(window[:stored], start)
        with self._lock:
            return self._keep(number, window)

    def _keep(self, number: int, window: Bytes) -> Bytes:
        window = self._windows.setdefault(number, window)
        self._windows.move_to_end(number)
        if len(self._windows) > _WINDOWS_MAX:
            pinned = {page // WINDOW for page in self.changed | self._leaving}
            for oldest in list(self._windows):
                if oldest not in pinned and oldest != number:
                    del self._windows[oldest]
                if len(self._windows) <= _WINDOWS_MAX * 7 // 8:
                    break
        return window

    def read(self, offset: int, length: int) -> Bytes:
        """`length` bytes from `offset`, for reading only: a view where they lie in one window."""
        number, start = divmod(offset, WINDOW)
        if start + length <= WINDOW:
            return self._window(number)[start : start + length]
        parts = []
        while length:
            take = min(length, WINDOW - start)
            parts.append(self._window(number)[start : start + take])
            length -= take
            number, start = number + 1, 0
        return np.concatenate(parts)

    def write(self, offset: int, data: Bytes) -> None:
        """Change bytes; their pages count as changed."""
        done = 0
        while done < data.size:
            number, start = divmod(offset + done, WINDOW)
            take = min(data.size - done, WINDOW - start)
            window = self._window(number)
            with self._lock:
                first = (number * WINDOW + start) // PAGE
                last = (number * WINDOW + start + take - 1) // PAGE
                self.changed.update(page * PAGE for page in range(first, last + 1))
                window = self._windows.setdefault(number, window)
            window[start : start + take] = data[done : done + take]
            done += take

    def first_change(self, start: int, stop: int) -> int:
        """File offset of the first changed page that reaches into [start, stop), else `stop`."""
        with self._lock:
            known = self.changed | self._leaving
            inside = (page for page in known if start < page + PAGE and page < stop)
            return max(start, min(inside, default=stop))

    def page(self, offset: int) -> bytes:
        """The 4096 bytes of the page at `offset`."""
        return self.read(offset, PAGE).tobytes()

    def begin_zero(self, offset: int, length: int) -> None:
        """Take a range of whole windows, new in the file, as zeros without reading it."""
        with self._lock:
            for number in range(offset // WINDOW, (offset + length) // WINDOW):
                self._windows.pop(number, None)
                self._keep(number, np.zeros(WINDOW, dtype=np.uint8))

    def take_changed(self) -> dict[int, bytes]:
        """The changed pages, in order, with their content now: a commit's. What is changed from
        here on belongs to the next one."""
        with self._lock:
            self._leaving, self.changed = self.changed, set()
        return {offset: self.page(offset) for offset in sorted(self._leaving)}

    def settle(self, *, are_safe: bool) -> None:
        """The commit that took pages is over: they are in their places, or changed as before."""
        with self._lock:
            if not are_safe:
                self.changed |= self._leaving
            self._leaving = set()
