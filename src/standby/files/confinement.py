"""Opening nothing but what lies below given folders (RULES 20).

A service mover opens nothing outside of its configured folders, whatever a path, a parent
locator or a vm.toml says. From `confine` on every open, rename, link, removal and
mkdir of this package walks from the folder's descriptor component by component without following
links, and acts relative to the descriptor it arrived at: what is exchanged for a link behind the
walk's back cannot lead it out. Windows has no such calls: there the real path is looked at just
before, and someone who exchanges folders for junctions in that instant is not kept out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from standby.errors import PathRefused

_confined: tuple[Path, ...] = ()


def confine(folders: Sequence[Path]) -> None:
    """From now on, and for the life of this process, open nothing but what lies below `folders`,
    and reach it through no link; () lifts that (for tests). Links above the folders are whoever's
    who configured them. Everything else raises PathRefused."""
    global _confined
    _confined = tuple(plain_absolute(folder) for folder in folders)


def plain_absolute(path: Path) -> Path:
    """`path` absolute, '.' and '..' taken off by name: below a confined folder there are no links
    that could make that another file."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - `resolve` follows links


def check_links(folder: Path, path: Path) -> None:
    """Raise PathRefused where a component of `path` below `folder` is a link, or something that is
    no folder has one below it; what is missing is nobody's harm."""
    place = folder
    parts = path.relative_to(folder).parts
    for number, part in enumerate(parts, start=1):
        place = place / part
        try:
            status = place.lstat()
        except FileNotFoundError:
            return
        except OSError as exc:
            raise PathRefused(str(place), exc.strerror or str(exc)) from exc
        if _is_link(status):
            raise PathRefused(str(place), "is a link")
        if number < len(parts) and not _is_folder(status):
            raise PathRefused(str(place), "is no folder")


def check_confined(path: Path) -> None:
    """Raise PathRefused where `path` lies outside of what this process may open, or behind a link:
    for files that others (SQLite, QEMU) open."""
    if _confined:
        check_links(_folder_of(path)[0], plain_absolute(path))


def _folder_of(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The confined folder that `path` lies in, and the components below it."""
    if "\0" in str(path):
        raise PathRefused(str(path).replace("\0", "?"), "holds a NUL")
    plain = plain_absolute(path)
    for folder in _confined:
        if plain == folder or plain.is_relative_to(folder):
            return folder, plain.relative_to(folder).parts
    raise PathRefused(str(path), "lies outside of the folders this mover may open")


def _is_link(status: os.stat_result) -> bool:
    reparse = getattr(status, "st_file_attributes", 0) & 0x400  # junctions and the like
    return stat.S_ISLNK(status.st_mode) or bool(reparse)


def _is_folder(status: os.stat_result) -> bool:
    return stat.S_ISDIR(status.st_mode)


def open_confined(path: Path, flags: int, mode: int = 0o600) -> int:
    """`os.open`, within the confinement."""
    with at_folder(path) as (name, folder):
        if folder is None:
            return os.open(name, flags, mode)
        try:
            return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), mode, dir_fd=folder)
        except OSError as exc:
            if exc.errno == errno.ELOOP:
                raise PathRefused(str(path), "is a link") from exc
            raise


@contextlib.contextmanager
def at_folder(path: Path) -> Iterator[tuple[str, int | None]]:
    """What to give an *at call: (name, descriptor of its folder); (path, None) where this process
    is not confined, and on Windows, where the real path was looked at."""
    if not _confined:
        yield str(path), None
        return
    folder, parts = _folder_of(path)
    if sys.platform == "win32":
        check_links(folder, plain_absolute(path))
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(os.path.realpath(folder)):
            raise PathRefused(str(path), "leads through a link")
        yield str(path), None
    else:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        fd = os.open(folder, flags)
        try:
            for part in parts[:-1]:
                try:
                    below = os.open(part, flags | os.O_NOFOLLOW, dir_fd=fd)
                except OSError as exc:
                    if exc.errno in (errno.ELOOP, errno.ENOTDIR):
                        raise PathRefused(
                            str(path), f"{part} on the way to it is a link, or no folder"
                        ) from exc
                    raise
                os.close(fd)
                fd = below
            yield parts[-1] if parts else ".", fd
        finally:
            os.close(fd)
