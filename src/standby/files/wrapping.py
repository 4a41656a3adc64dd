"""An `OSError` of the file system as an error of the tree."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from standby.errors import DiskFull, DiskIO, StandbyError


def wrapped(path: Path, operation: str, offset: int, length: int, exc: OSError) -> StandbyError:
    """`exc` of an operation on `path`: DiskFull where there is no room, else DiskIO."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        try:
            available = shutil.disk_usage(path.parent).free
        except OSError:
            available = 0
        return DiskFull(str(path), length, available)
    return DiskIO(str(path), operation, offset, length, exc.strerror or str(exc))
