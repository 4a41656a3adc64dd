"""Saving the lookup table now and then beside all else: a killed process starts fast too."""

from __future__ import annotations

import threading
from collections.abc import Callable

NEW_MIN = 1 << 20
"""Pieces taken in between two saves, at the least: 4 GiB. A save writes 10 MB for them."""

SHARE = 8
"""And at least this part of what the table holds: saving writes at most 80 bytes for each piece."""


class TableSaver:
    """Decides when to save, and does so in a thread of its own, one at a time. Thread-safe."""

    def __init__(self, save: Callable[[], str]) -> None:
        """`save` saves and returns why it did not, '' when it did."""
        self._save = save
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._saved_at = 0

    def taken(self, added: int, entries: int) -> None:
        """Say that `added` pieces were taken in so far in all, and how many names the table holds;
        begins to save when that is worth it."""
        with self._lock:
            if added - self._saved_at < max(NEW_MIN, entries // SHARE):
                return
            if self._thread is not None and self._thread.is_alive():
                return
            self._saved_at = added
            self._thread = threading.Thread(target=self._save, name="save lookup table")
            self._thread.start()

    def end(self) -> None:
        """Return when nothing is being saved."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()
