"""How a folder is mounted, where that decides whether files there can be trusted: SMB on Linux.

The kernel's defaults are right (cache=strict, strictsync, byte-range locks at the server). What a
loosely mounted share shows may be old, or said to be synced when it is not (mount.cifs(8)).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SMB = ("cifs", "smb3")
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system that is mounted: where, of what kind, with which options."""

    place: str
    kind: str
    options: tuple[str, ...]


def mount_findings(path: Path, table: str | None = None) -> list[str]:
    """What makes the mount that `path` is on unfit for disks, each with its remedy; nothing for
    another file system than SMB. `table` is the text of /proc/self/mountinfo, default this
    process's own; without one (other systems) nothing is known, and nothing found."""
    if table is None:
        if sys.platform != "linux":
            return []
        try:
            table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
    mount = mount_of(os.path.realpath(path), table)
    if mount is None or mount.kind not in _SMB:
        return []
    return [f"{mount.place} is mounted with {text}" for text in _loose(mount.options)]


def mount_of(path: str, table: str) -> Mount | None:
    """The mount that holds the absolute `path`; the last of several at one place, which hides the
    others."""
    best: Mount | None = None
    for mount in _mounts(table):
        stem = mount.place.rstrip("/")
        is_above = path == mount.place or path.startswith(f"{stem}/")
        if is_above and (best is None or len(mount.place) >= len(best.place)):
            best = mount
    return best


def _mounts(table: str) -> Iterator[Mount]:
    for line in table.splitlines():
        before, found, after = line.partition(" - ")
        own, rest = before.split(" "), after.split(" ")
        if found and len(own) >= 6 and len(rest) >= 3:
            options = (*own[5].split(","), *rest[2].split(","))
            yield Mount(_plain(own[4]), rest[0], options)


def _plain(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def _loose(options: tuple[str, ...]) -> Iterator[str]:
    if "cache=loose" in options:
        yield "cache=loose, which shows old content: mount it with cache=strict"
    if "nostrictsync" in options:
        yield "nostrictsync, so that nothing is ever synced: leave it out"
    if "nobrl" in options:
        yield "nobrl, so that locks hold on this machine only: leave it out"
    version = next((item[5:] for item in options if item.startswith("vers=")), "")
    if version.partition(".")[0] in ("1", "2"):
        yield f"vers={version}: mount it with vers=3.1.1, or 3.0 at least"
