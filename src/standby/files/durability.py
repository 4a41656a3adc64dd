"""Changes that survive a power cut: files replaced whole, renames, removals, folders."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from standby import clock
from standby.errors import StandbyError
from standby.files.confinement import at_folder, check_confined, open_confined
from standby.files.listing import is_folder
from standby.files.positioned import File
from standby.files.wrapping import wrapped


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (creations, renames, removals) stable. Windows does so itself."""
    if sys.platform == "win32":
        return
    fd = open_confined(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes) -> None:
    """Replace `path` by a file of `data`, whole or not at all: write beside it, sync, rename,
    sync the folder."""
    with replaced_durably(path, path.with_name(f".{path.name}.{clock.new_token(4)}.new")) as file:
        file.write(data, 0)


@contextlib.contextmanager
def replaced_durably(path: Path, temporary: Path) -> Iterator[File]:
    """An empty file `temporary`, beside `path`, to be written; it is `path` once the block ends,
    and gone when that fails."""
    try:
        with File(temporary, create=True) as file:
            yield file
            file.sync()
        rename_durably(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError, StandbyError):
            remove_plainly(temporary)
        raise


def rename_durably(old: Path, new: Path) -> None:
    """Rename within a file system, replacing `new`, and make that stable."""
    try:
        with at_folder(old) as (old_name, old_folder), at_folder(new) as (new_name, new_folder):
            os.replace(old_name, new_name, src_dir_fd=old_folder, dst_dir_fd=new_folder)
        sync_folder(new.parent)
        if old.parent != new.parent:
            sync_folder(old.parent)
    except OSError as exc:
        raise wrapped(new, "rename", 0, 0, exc) from exc


def rename_to_new(old: Path, new: Path) -> bool:
    """Rename within a file system unless `new` exists, and make that stable; False where it does.

    A kill in between may leave both names for the one file; calling again removes the old one.
    """
    try:
        if sys.platform == "win32":
            check_confined(old)
            check_confined(new)
            old.rename(new)
        else:
            with at_folder(old) as (old_name, old_folder), at_folder(new) as (new_name, new_folder):
                try:
                    os.link(
                        old_name,
                        new_name,
                        src_dir_fd=old_folder,
                        dst_dir_fd=new_folder,
                        follow_symlinks=False,
                    )
                except FileExistsError:
                    if not old.samefile(new):
                        raise
                except OSError as exc:
                    if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                        raise
                    if new.exists():  # no links in this file system: not atomic, but the best
                        return False
                    os.replace(old_name, new_name, src_dir_fd=old_folder, dst_dir_fd=new_folder)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(old_name, dir_fd=old_folder)
        sync_folder(new.parent)
        if old.parent != new.parent:
            sync_folder(old.parent)
    except FileExistsError:
        return False
    except OSError as exc:
        raise wrapped(new, "rename", 0, 0, exc) from exc
    return True


def remove_durably(path: Path) -> None:
    """Remove a file, if it is there, and make that stable."""
    try:
        with at_folder(path) as (name, folder), contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        sync_folder(path.parent)
    except OSError as exc:
        raise wrapped(path, "remove", 0, 0, exc) from exc


def make_folder_durably(path: Path) -> None:
    """Make `path` and its missing parents, stable each in its own parent."""
    if is_folder(path):
        check_confined(path)
        return
    make_folder_durably(path.parent)
    make_folder_plainly(path)
    try:
        sync_folder(path.parent)
    except OSError as exc:
        raise wrapped(path, "make folder", 0, 0, exc) from exc


def make_folder_plainly(path: Path) -> None:
    """Make `path` in a folder that is there; after a power cut it may be gone again, until that
    folder is synced."""
    try:
        with at_folder(path) as (name, folder):
            try:
                os.mkdir(name, 0o700, dir_fd=folder)
            except FileExistsError:
                if not path.is_dir():
                    raise
    except OSError as exc:
        raise wrapped(path, "make folder", 0, 0, exc) from exc


def remove_plainly(path: Path) -> None:
    """Remove a file, within the confinement; after a power cut it may be there again."""
    with at_folder(path) as (name, folder):
        os.unlink(name, dir_fd=folder)


def write_plainly(path: Path, data: bytes) -> None:
    """Replace what a small file holds, neither durably nor at once: for what is only shown."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
    fd = open_confined(path, flags | getattr(os, "O_CLOEXEC", 0))
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
