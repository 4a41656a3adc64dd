"""How a proxy sees a Hyper-V host's files, and whether what it sees is the disk that is meant.

A proxy's `paths` name a host (`prod`) or a node of a cluster (`prod/hv1`): a node's own map counts
before the whole host's where both are as long. The longest folder that holds a file counts, whole
components, without regard to case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from standby.errors import WrongDisk
from standby.host.seen_paths import mapped_path, parsed_place


def seen_path(path: str, host: str, node: str, maps: Mapping[str, Mapping[str, str]]) -> str | None:
    """`path` of the host as the proxy with these maps sees it on that node ('' for a host of no
    cluster); None when it does not."""
    best: tuple[int, int, str] | None = None
    names = (host, f"{host}/{node}") if node else (host,)
    for rank, name in enumerate(names):
        for folder, seen_as in maps.get(name, {}).items():
            seen = mapped_path(path, {folder: seen_as})
            held = parsed_place(folder)
            if seen is None or held is None:
                continue
            if best is None or (len(held.parts), rank) > best[:2]:
                best = (len(held.parts), rank, seen)
    return None if best is None else best[2]


@dataclass(frozen=True, slots=True)
class ExpectedDisk:
    """A disk in its host's words: `disk_id` is the virtual disk's GUID, lower case."""

    machine: str
    place: str
    disk_id: str
    virtual_size: int


def check_disk(expected: ExpectedDisk, path: str, disk_id: str, virtual_size: int) -> None:
    """WrongDisk unless the file at `path` has the id and the size that the host names; asked before
    a byte of content is read or written."""
    found = disk_id.strip("{}").lower()
    if found != expected.disk_id:
        difference = f"its id is {found}, the host says {expected.disk_id}"
    elif virtual_size != expected.virtual_size:
        difference = f"it has {virtual_size} bytes, the host says {expected.virtual_size}"
    else:
        return
    raise WrongDisk(expected.machine, expected.place, path, difference)
