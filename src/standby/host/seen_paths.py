"""A host's paths as another machine sees them: by a map of the host's folders to its own.

The longest folder that holds a file counts, whole components only; Windows paths (`C:\\…`,
`\\\\server\\share\\…`) are compared without regard to case, others with. What is seen there is
compared with what the host says of it before a byte is read or written.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from standby.errors import WrongDisk

_DRIVE = re.compile(r"[A-Za-z]:(?=[\\/]|$)")
_DEVICE = re.compile(r"(?:[\\/]{2}[?.]|\\\?\?)[\\/](UNC[\\/])?", re.IGNORECASE)
"""What programs put before a path so that Windows takes it as it is."""


@dataclass(frozen=True, slots=True)
class Place:
    """A path taken apart. `anchor` is '/', 'c:', '\\\\server\\share' or '' where it is relative;
    `parts` are as written, compared by `folded`."""

    is_windows: bool
    anchor: str
    parts: tuple[str, ...]

    @property
    def folded(self) -> tuple[str, ...]:
        """The parts as they are compared."""
        return tuple(part.lower() for part in self.parts) if self.is_windows else self.parts


def parsed_place(path: str) -> Place | None:
    """The path taken apart, '.' and doubled separators gone, and of a Windows path the dots and
    blanks at the ends of names, which Windows does not see either; None where '..' makes it
    unclear, or a colon names a stream of a file."""
    text = path
    if device := _DEVICE.match(text):
        text = ("\\\\" if device[1] else "") + text[device.end() :]
    if _DRIVE.match(text):
        is_windows, anchor, rest = True, text[:2].lower(), re.split(r"[\\/]", text[2:])
    elif text.startswith(("\\\\", "//")):
        words = [word for word in re.split(r"[\\/]", text) if word]
        is_windows, anchor, rest = True, "\\\\" + "\\".join(words[:2]).lower(), words[2:]
    else:
        is_windows, anchor, rest = False, "/" if text.startswith("/") else "", text.split("/")
    if ".." in rest or (is_windows and any(_is_unclear(part) for part in rest)):
        return None
    names = [part.rstrip(". ") for part in rest] if is_windows else rest
    return Place(is_windows, anchor, tuple(name for name in names if name not in ("", ".")))


def _is_unclear(part: str) -> bool:
    return ":" in part or (len(part) > 1 and not part.strip(". "))


def mapped_path(path: str, folders: Mapping[str, str]) -> str | None:
    """`path` of a host as a proxy sees it, by the longest of `folders` ({at the host: at the
    proxy}) that holds it; None when none does."""
    place = parsed_place(path)
    if place is None:
        return None
    best: tuple[int, str] | None = None
    for folder, seen_as in folders.items():
        held = parsed_place(folder)
        if held is None or (held.is_windows, held.anchor) != (place.is_windows, place.anchor):
            continue
        count = len(held.parts)
        if held.folded == place.folded[:count] and (best is None or count > best[0]):
            best = (count, seen_as)
    return None if best is None else _joined(best[1], place.parts[best[0] :])


def path_on_node(
    path: str, host: str, node: str, maps: Mapping[str, Mapping[str, str]]
) -> str | None:
    """`path` of a cluster as a proxy with these maps sees it: a node's own map (`prod/hv1`) counts
    before that of the whole host (`prod`) where both hold it equally long. `node` is '' for a host
    of no cluster; maps name nodes in lower case."""
    both = dict(maps.get(host, {}))
    if node:
        own = maps.get(f"{host}/{node.lower()}", {})
        places = {parsed_place(folder) for folder in own}
        both = {key: seen for key, seen in both.items() if not _is_one_of(key, places)}
        both |= own
    return mapped_path(path, both)


def _is_one_of(folder: str, places: Collection[Place | None]) -> bool:
    place = parsed_place(folder)
    return place is not None and any(
        other is not None and (other.anchor, other.folded) == (place.anchor, place.folded)
        for other in places
    )


@dataclass(frozen=True, slots=True)
class ExpectedDisk:
    """A disk in its host's words: `disk_id` is the virtual disk's GUID, lower case."""

    machine: str
    place: str
    disk_id: str
    virtual_size: int


def check_disk(expected: ExpectedDisk, path: str, disk_id: str, virtual_size: int) -> None:
    """WrongDisk unless the file at `path` has the id and the size that the host names."""
    found = disk_id.strip("{}").lower()
    if found != expected.disk_id:
        difference = f"its id is {found}, the host says {expected.disk_id}"
    elif virtual_size != expected.virtual_size:
        difference = f"it has {virtual_size} bytes, the host says {expected.virtual_size}"
    else:
        return
    raise WrongDisk(expected.machine, expected.place, path, difference)


def _joined(folder: str, parts: Sequence[str]) -> str:
    """The path below `folder`, in the manner of that folder."""
    place = parsed_place(folder)
    is_windows = place is not None and place.is_windows
    stem = folder.rstrip("\\/" if is_windows else "/")
    if not parts:
        return stem or folder
    if stem.endswith(":") and not is_windows and stem == folder:
        return stem + "/".join(parts)  # 'rootid:', which a path below a mover's root follows
    return ("\\" if is_windows else "/").join((stem, *parts))
