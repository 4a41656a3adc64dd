"""Exit code 11: virtual disk files, and paths that may not be opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from standby.errors.base import Retry, StandbyError
from standby.units import format_bytes


@dataclass(eq=False)
class DiskError(StandbyError):
    """Anything wrong with a virtual disk file."""

    exit_code: ClassVar[int] = 11


@dataclass(eq=False)
class DiskCorrupt(DiskError):
    """A check of the format failed: the file is damaged, hostile, or not of that format."""

    path: str
    check: str
    offset: int
    value: str
    hint: str = ""

    def message(self) -> str:
        tail = f". {self.hint}" if self.hint else ""
        return f"{self.path}: {self.check} (at offset {self.offset:#x}: {self.value}){tail}"


@dataclass(eq=False)
class DiskUnsupported(DiskError):
    """The file is sound but asks for something this release does not do."""

    path: str
    feature: str
    hint: str = ""

    def message(self) -> str:
        return f"{self.path}: {self.feature} is not supported" + (
            f". {self.hint}" if self.hint else ""
        )


@dataclass(eq=False)
class ParentRefused(DiskError):
    """A differencing disk's parent is missing, is another one, or may not be opened."""

    path: str
    parent: str
    reason: str

    def message(self) -> str:
        return f"{self.path}: parent {self.parent}: {self.reason}"


@dataclass(eq=False)
class DiskBusy(DiskError):
    """Another process has the file open in a way that excludes us."""

    retry: ClassVar[Retry] = Retry.LATER
    path: str
    reason: str

    def message(self) -> str:
        return f"{self.path}: in use: {self.reason}"


@dataclass(eq=False)
class DiskIO(DiskError):
    """The operating system refused or cut short a read or write."""

    retry: ClassVar[Retry] = Retry.LATER
    path: str
    operation: str
    offset: int
    length: int
    reason: str

    def message(self) -> str:
        if not self.length:
            return f"{self.path}: {self.operation} failed: {self.reason}"
        return (
            f"{self.path}: {self.operation} of {self.length} bytes at offset {self.offset:#x} "
            f"failed: {self.reason}"
        )


@dataclass(eq=False)
class DiskRange(DiskError):
    """A read or write outside the disk, or not on a sector border."""

    path: str
    offset: int
    length: int
    size: int

    def message(self) -> str:
        return (
            f"{self.path}: range {self.offset:#x}+{self.length} lies outside the disk of "
            f"{self.size} bytes or is not whole sectors"
        )


@dataclass(eq=False)
class DiskFull(DiskError):
    """The file system of `path` has no room for what has to be written: at least `needed` bytes, 0
    where nobody knows; `available` are free."""

    retry: ClassVar[Retry] = Retry.LATER
    path: str
    needed: int
    available: int

    def message(self) -> str:
        needed = f"at least {format_bytes(self.needed)} needed, " if self.needed else ""
        kept = ""
        if self.needed and self.available >= self.needed:
            kept = " but not for this user (a quota, or what is kept for root)"
        return (
            f"{self.path}: no space left: {needed}{format_bytes(self.available)} free{kept}. Make "
            "room on that file system, then repeat: a job's session goes on from what was received"
        )


@dataclass(eq=False)
class PathRefused(DiskError):
    """A path leads, or may lead, out of the folders that a mover may open (RULES 20)."""

    path: str
    reason: str

    def message(self) -> str:
        return f"{self.path}: refused by the mover: {self.reason}"
