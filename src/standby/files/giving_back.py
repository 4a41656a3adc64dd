"""Large files removed without waiting for their space.

To free 280 MB takes ext4 on a device with discards 0.7 s, several times as long as a merge needs to
copy them. A file that is still open somewhere loses its name at once and its space at the last
close, so a thread has that.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from standby.errors import StandbyError
from standby.files.confinement import open_confined
from standby.files.durability import remove_durably

_close = os.close
_closing: list[threading.Thread] = []
_lock = threading.Lock()


def remove_large(path: Path) -> None:
    """`remove_durably` for a file of gigabytes: its name is gone when this returns, its space comes
    back soon after; `free_bytes` and the end of the process wait for that."""
    fd = _held(path)
    try:
        remove_durably(path)
    finally:
        if fd is not None:
            thread = threading.Thread(target=_close, args=(fd,), name="giving space back")
            with _lock:
                _closing[:] = [other for other in _closing if other.is_alive()]
                thread.start()
                _closing.append(thread)


def wait_for_space() -> None:
    """Return when all files removed so far have given their space back."""
    with _lock:
        threads = list(_closing)
    for thread in threads:
        thread.join()


def _held(path: Path) -> int | None:
    """A descriptor that keeps the file; None where it cannot be had, or would be in the way."""
    if sys.platform == "win32":  # an open file keeps its name there
        return None
    else:
        try:
            return open_confined(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, StandbyError):
            return None
