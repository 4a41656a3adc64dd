"""Which file is a differencing disk's parent, and opening the whole chain.

A parent locator comes from whoever owned the file (RULES 20): what it names is looked for only
inside the child's own folder and the folders the caller permits, walked component by component
without following links, and nothing but a regular file is opened. Chains are walked by a loop, with
a limit, and no file twice (device and inode are compared, not names).
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from standby.disk.vhdx.disk import VhdxDisk
from standby.disk.vhdx.opening import Image, open_locked
from standby.disk.vhdx.structures import guid_text
from standby.disk.vhdx.writer import Writer
from standby.errors import DiskError, ParentRefused
from standby.files import File

DEPTH_MAX = 256
"""Layers of a chain, the child included."""


@dataclass(frozen=True, slots=True)
class Found:
    """A parent's path and the identity of the file seen there."""

    path: Path
    device: int
    inode: int


def open_chain(
    path: Path,
    *,
    writable: bool = False,
    parents: Sequence[Path] | None = None,
    folders: Sequence[Path] = (),
    keep_data_write_guid: bool = False,
    sparse: bool = True,
) -> VhdxDisk:
    """The disk in `path` with everything below it, parents read-only; closing it closes them.

    `parents`, nearest first, are the caller's own paths and are not restricted; without them each
    parent is found by `find_parent`. Raises ParentRefused when one is missing, may not be opened,
    is not the file that the child was made over, or is there twice.
    """
    with contextlib.ExitStack() as undo:
        top, lock = open_locked(path, writable=writable)
        undo.callback(top.file.close)
        if lock is not None:
            undo.callback(lock.release)
        images = [top]
        seen = {_identity(top)}
        for parent_path, image in _parents_of(top, path, parents, folders):
            undo.callback(image.file.close)
            if _identity(image) in seen:
                raise ParentRefused(str(path), str(parent_path), "is in the chain twice (a cycle)")
            seen.add(_identity(image))
            images.append(image)
        disk: VhdxDisk | None = None
        for image in reversed(images[1:]):
            disk = VhdxDisk(image, parent=disk, owns_parent=True)
        writer = None
        if writable:
            writer = Writer(
                top.layer,
                top.headers,
                keep_data_write_guid=keep_data_write_guid,
                sparse=sparse,
                is_new=False,
            )
        result = VhdxDisk(top, parent=disk, owns_parent=True, writer=writer, lock=lock)
        undo.pop_all()
        return result


def _parents_of(
    top: Image, path: Path, parents: Sequence[Path] | None, folders: Sequence[Path]
) -> Iterator[tuple[Path, Image]]:
    """The parents' images, nearest first, each checked against its child."""
    child, child_path, depth = top, path, 1
    given = None if parents is None else list(parents)
    while child.metadata.has_parent:
        if depth == DEPTH_MAX:
            raise ParentRefused(str(path), str(child_path), f"is more than {DEPTH_MAX} layers down")
        if given is None:
            found = find_parent(child_path, child.metadata.locator, folders)
            image = _open_parent(child_path, found.path, found)
            parent_path = found.path
        elif given:
            parent_path = given.pop(0)
            image = _open_parent(child_path, parent_path, None)
        else:
            raise ParentRefused(str(child_path), _names(child.metadata.locator), "was not given")
        try:
            check_parent(child_path, child, parent_path, image)
        except BaseException:
            image.file.close()
            raise
        yield parent_path, image
        child, child_path, depth = image, parent_path, depth + 1
    if given:
        raise ParentRefused(str(child_path), str(given[0]), "given, but the disk has no parent")


def _open_parent(child: Path, path: Path, found: Found | None) -> Image:
    try:
        image, _ = open_locked(path, writable=False)
    except DiskError as exc:
        raise ParentRefused(str(child), str(path), str(exc)) from exc
    if found is not None and _identity(image) != (found.device, found.inode):
        image.file.close()
        raise ParentRefused(str(child), str(path), "was exchanged while it was being opened")
    return image


def check_parent(child_path: Path, child: Image, parent_path: Path, parent: Image) -> None:
    """Raise ParentRefused unless `parent` is what the child was made over: the identity of its
    data, and the size of its sectors."""
    have = parent.headers.current.data_write_guid
    accepted = child.metadata.linkages
    if have not in accepted:
        wanted = " or ".join(guid_text(value) for value in accepted)
        raise ParentRefused(
            str(child_path),
            str(parent_path),
            f"its data identity is {guid_text(have)}, the child was made over {wanted}: "
            "it is another disk, or was written to since",
        )
    ours, theirs = child.metadata.logical_sector_size, parent.metadata.logical_sector_size
    if ours != theirs:
        raise ParentRefused(
            str(child_path), str(parent_path), f"has sectors of {theirs} bytes, the child {ours}"
        )


def _identity(image: Image) -> tuple[int, int]:
    if isinstance(image.file, File):
        status = os.fstat(image.file.fd)
        return status.st_dev, status.st_ino
    return -1, id(image.file)


# --- finding -----------------------------------------------------------------------------------


def find_parent(child: Path, locator: dict[str, str], folders: Sequence[Path] = ()) -> Found:
    """The parent file that a locator names, by its relative path, else by its absolute one; the
    volume path is never used. Raises ParentRefused with what was tried."""
    home = child.resolve().parent
    roots = [home, *(folder.resolve() for folder in folders)]
    tried = []
    for key in ("relative_path", "absolute_win32_path"):
        text = locator.get(key)
        if text is None:
            continue
        try:
            if key == "relative_path":
                return _inside(_relative(home, text), roots)
            return _inside(_absolute(text), roots[1:])
        except _NotHereError as exc:
            tried.append(f"{text!r} {exc}")
    reason = "; ".join(tried) or "the locator names no path that is used"
    raise ParentRefused(str(child), _names(locator), reason)


class _NotHereError(Exception):
    """Why a path of the locator does not lead to a file."""


def _names(locator: dict[str, str]) -> str:
    return locator.get("relative_path") or locator.get("absolute_win32_path") or "?"


def _relative(home: Path, text: str) -> Path:
    """`text` from `home` on, `..` taken off by name (no link is followed later either)."""
    as_windows = PureWindowsPath(text)
    if as_windows.drive or as_windows.root or PurePosixPath(text).is_absolute():
        raise _NotHereError("is not a relative path")
    parts = list(home.parts)
    for part in as_windows.parts:
        if part == "..":
            if len(parts) == 1:
                raise _NotHereError("leads above the root")
            parts.pop()
        elif part != ".":
            parts.append(part)
    return Path(*parts)


def _absolute(text: str) -> Path:
    """An absolute path of this machine's own kind."""
    plain = text.removeprefix("\\\\?\\")
    if sys.platform == "win32":
        path = PureWindowsPath(plain)
        if len(path.drive) != 2 or not path.root:
            raise _NotHereError("is not an absolute path on a drive")
    else:
        plain = plain.replace("\\", "/")
        path = PurePosixPath(plain)
        if not path.is_absolute() or plain.startswith("//"):
            raise _NotHereError("is not an absolute path of this machine")
    if ".." in path.parts:
        raise _NotHereError("holds '..'")
    return Path(path)


def _inside(path: Path, roots: Sequence[Path]) -> Found:
    """The regular file at `path`, reached from one of `roots` without a link on the way."""
    for root in roots:
        if path != root and path.is_relative_to(root):
            return _walk(root, path)
    raise _NotHereError("lies outside the permitted folders")


def _walk(root: Path, path: Path) -> Found:
    parts = path.relative_to(root).parts
    if any("\0" in part for part in parts):
        raise _NotHereError("is not a file name")
    place = root
    for index, part in enumerate(parts):
        place = place / part
        try:
            status = place.lstat()
        except OSError as exc:
            raise _NotHereError(f"cannot be opened: {exc.strerror}") from exc
        is_last = index == len(parts) - 1
        if stat.S_ISLNK(status.st_mode):
            raise _NotHereError(f"leads through a symbolic link ({place})")
        if is_last and not stat.S_ISREG(status.st_mode):
            raise _NotHereError("is not a regular file")
        if not is_last and not stat.S_ISDIR(status.st_mode):
            raise _NotHereError(f"leads through something that is no folder ({place})")
    return Found(place, status.st_dev, status.st_ino)
