"""Virtual disk files as the host describes them, and their chains.

The parent of a file is what the host says (`GetVirtualHardDiskSettingData`), never what a locator
says. A chain's files are asked for in rounds: all that the VMs' settings name at once, then parents
that nobody named, which only chains made by hand have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from standby.errors import HostCallFailed
from standby.host.hyperv.asking import Asking
from standby.host.hyperv.embedded import parse_instance
from standby.host.hyperv.rows import DISKS, FileAnswer
from standby.host.seen_paths import parsed_place

VHD, VHDX, VHD_SET = 2, 3, 4
DIFFERENCING = 4
ROUNDS_MAX = 64
"""A chain of more layers than Hyper-V makes ends the asking, and is refused where it is used."""


@dataclass(frozen=True, slots=True)
class DiskFile:
    """A virtual disk file. `disk_id` is the virtual disk's own GUID in lower case (the page-83 id
    that the guest sees, equal through a chain, repeated by copies)."""

    path: str
    format: int
    type: int
    virtual_size: int
    logical_sector_size: int
    physical_sector_size: int
    disk_id: str
    parent: str = ""


def folded(path: str) -> str:
    """The path as two names of one file have it in common: Windows compares without case."""
    place = parsed_place(path)
    if place is None:
        return path.lower()
    return "\\".join((place.anchor, *place.folded))


def disk_file(path: str, answer: FileAnswer) -> DiskFile:
    """The file that the answer describes; ValueError where it describes none."""
    if answer.code != 0:
        raise ValueError(f"GetVirtualHardDiskSettingData returned {answer.code}")
    found = parse_instance(answer.text or "", "Msvm_VirtualHardDiskSettingData")
    kind = found.number("Type")
    parent = found.text("ParentPath")
    if kind == DIFFERENCING and not parent:
        raise ValueError("it is a differencing disk, and the host names no parent")
    return DiskFile(
        path=path,
        format=found.number("Format"),
        type=kind,
        virtual_size=found.number("MaxInternalSize"),
        logical_sector_size=found.number("LogicalSectorSize") or 512,
        physical_sector_size=found.number("PhysicalSectorSize") or 4096,
        disk_id=found.text("VirtualDiskId").strip("{}").lower(),
        parent=parent if kind == DIFFERENCING else "",
    )


@dataclass(slots=True)
class Files:
    """What is known of a host's disk files, by `folded` path; `problems` are the files that the
    host could not describe, with what it said."""

    known: dict[str, DiskFile]
    problems: dict[str, str]

    def file(self, path: str) -> DiskFile:
        """The file; ValueError with what is wrong with it."""
        key = folded(path)
        if key in self.known:
            return self.known[key]
        raise ValueError(self.problems.get(key, "the host was not asked about it"))

    def chain(self, path: str) -> tuple[DiskFile, ...]:
        """The file and its parents, newest first; ValueError naming the file that is missing, or
        where the parents run in a circle."""
        found: list[DiskFile] = []
        seen = set()
        while path:
            if folded(path) in seen or len(found) >= ROUNDS_MAX:
                raise ValueError(f"the parents of {found[0].path} have no end")
            seen.add(folded(path))
            try:
                found.append(self.file(path))
            except ValueError as exc:
                raise ValueError(f"{path}: {exc}") from exc
            path = found[-1].parent
        return tuple(found)


def read_files(
    door: Asking, paths: Iterable[str], known: Mapping[str, DiskFile] | None = None
) -> Files:
    """The files of these paths and all their parents. One script, and one more for each level of
    parents that `paths` and `known` do not name."""
    files = Files(dict(known or {}), {})
    wanted = _unknown(files, paths)
    for _ in range(ROUNDS_MAX):
        if not wanted:
            break
        request = {"files": [{"id": key, "path": path} for key, path in wanted.items()]}
        answer = door.run(DISKS, request)
        for step in answer.steps:
            if step.id in wanted:
                _take(files, step.id, wanted[step.id], step.value, step.error)
        for key in wanted:
            if key not in files.known:
                files.problems.setdefault(key, "the host did not answer about it")
        wanted = _unknown(files, [files.known[key].parent for key in wanted if key in files.known])
    return files


def _unknown(files: Files, paths: Iterable[str]) -> dict[str, str]:
    return {
        key: path
        for path in paths
        if path and (key := folded(path)) not in files.known and key not in files.problems
    }


def _take(
    files: Files, key: str, path: str, answer: FileAnswer | None, error: HostCallFailed | None
) -> None:
    if answer is None:
        files.problems[key] = str(error)
        return
    try:
        files.known[key] = disk_file(path, answer)
    except ValueError as exc:
        files.problems[key] = str(exc)
