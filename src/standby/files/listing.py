"""Looking at folders that may not be readable: what is not there is one thing, what the system
keeps from us another. Path.exists, is_dir and glob call both "nothing", or raise an OSError,
depending on the version of Python."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

from standby.errors import DiskIO

_NO_SUCH = (21, 123, 1921)
"""What Windows says of a drive without a medium, a name that cannot be, a loop of links."""


def listed(folder: Path) -> list[Path]:
    """What lies in `folder`, in order of name; nothing where there is no such folder. Raises
    DiskIO where it cannot be listed."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise DiskIO(str(folder), "listing the folder", 0, 0, exc.strerror or str(exc)) from exc


def is_there(path: Path) -> bool:
    """Whether there is something at `path`. Raises DiskIO where the system does not say."""
    return _mode(path) is not None


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder. Raises DiskIO where the system does not say."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def is_file(path: Path) -> bool:
    """Whether `path` is a regular file. Raises DiskIO where the system does not say."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def is_taken(path: Path) -> bool:
    """Whether something is called `path`, be it a link that leads nowhere. Raises DiskIO where the
    system does not say."""
    return _mode(path, follow=False) is not None


def _mode(path: Path, *, follow: bool = True) -> int | None:
    try:
        return path.stat(follow_symlinks=follow).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        if exc.errno == errno.ELOOP or getattr(exc, "winerror", 0) in _NO_SUCH:
            return None
        raise DiskIO(str(path), "looking at it", 0, 0, exc.strerror or str(exc)) from exc
    except ValueError:  # a zero byte in the name
        return None
