"""Virtual disk files: VHDX and raw images behind one interface."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from standby.disk.chain import open_chain
from standby.disk.raw import RawDisk
from standby.disk.vhdx.disk import VhdxDisk
from standby.disk.vhdx.structures import IDENTIFIER_SIGNATURE
from standby.errors import DiskUnsupported
from standby.files import File

__all__ = ["RawDisk", "VhdxDisk", "detected_format", "open_disk"]

_VHDX_SUFFIXES = frozenset({".vhdx", ".avhdx"})
_FOOTER_SIZE = 512
_OTHERS = {b"conectix": "VHD", b"cxsparse": "VHD", b"KDMV": "VMDK", b"QFI\xfb": "qcow2"}
"""Signatures that must not be taken for the first bytes of a raw disk."""


def detected_format(path: Path) -> str:
    """'vhdx' or 'raw', by the file's signature. A file named like a VHDX that has not its signature
    is still 'vhdx' (and will be refused); another known format is DiskUnsupported."""
    with File(path) as file:
        start = file.read(0, min(8, file.size))
        footer = file.read(max(0, file.size - _FOOTER_SIZE), min(8, file.size))
    if start == IDENTIFIER_SIGNATURE:
        return "vhdx"
    for signature, name in _OTHERS.items():
        if start.startswith(signature) or (name == "VHD" and footer == signature):
            raise DiskUnsupported(
                str(path), f"the format {name}", "Convert the disk to VHDX with its own tools"
            )
    return "vhdx" if path.suffix.lower() in _VHDX_SUFFIXES else "raw"


def open_disk(
    path: Path,
    *,
    writable: bool = False,
    parents: Sequence[Path] | None = None,
    folders: Sequence[Path] = (),
    format: str | None = None,
) -> VhdxDisk | RawDisk:
    """The disk in `path`, by the file's signature unless `format` ('vhdx', 'raw') says.

    A differencing disk is opened with its chain, the parents read-only: those given, nearest
    first, else by the locators, which lead only inside each file's own folder and `folders`.
    Raises DiskCorrupt, DiskUnsupported, ParentRefused, DiskBusy, DiskIO.
    """
    chosen = detected_format(path) if format is None else format
    if chosen == "vhdx":
        return open_chain(path, writable=writable, parents=parents, folders=folders)
    if chosen != "raw":
        raise DiskUnsupported(str(path), f"the format {chosen}", "Say vhdx or raw")
    return RawDisk(path, writable=writable)
