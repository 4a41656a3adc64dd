"""Checking a VHDX file and its chain completely, without changing a byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from standby.disk.chain import open_chain
from standby.disk.vhdx import structures
from standby.disk.vhdx.disk import VhdxDisk
from standby.disk.vhdx.geometry import (
    FULLY_PRESENT,
    PARTIALLY_PRESENT,
    STATE_MASK,
)
from standby.disk.vhdx.layer import Layer
from standby.disk.vhdx.opening import Image, open_locked
from standby.errors import DiskError
from standby.files import BlockFile

_BLOCKS = 1 << 14


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found. Findings are sentences that name check, offset and value."""

    findings: tuple[str, ...]
    """What makes the disk unusable or its content doubtful."""
    notes: tuple[str, ...]
    """What a writer left untidy and no reader minds: a damaged spare, space that nothing uses."""
    log_is_dirty: bool
    """The log holds changes; they were looked at as if replayed."""
    blocks: int
    """Payload blocks of the disk, of the file given (not of its parents)."""
    blocks_present: int
    """Those with space in the file."""
    blocks_partial: int
    """Those of them that the parent shows through."""
    layers: int
    """Files of the chain that were checked."""

    @property
    def is_ok(self) -> bool:
        """Whether there is nothing to complain of."""
        return not self.findings


def check_disk(
    path: Path, *, parents: Sequence[Path] | None = None, folders: Sequence[Path] = ()
) -> CheckReport:
    """Check headers, log, regions, metadata, every table entry, every bitmap and the chain.

    Never raises for what is wrong with the file: that is in the report. Memory: 8 bytes per
    present block. `parents` and `folders` as for `open_disk`.
    """
    try:
        image, _ = open_locked(path, writable=False, is_shallow=True)
    except DiskError as exc:
        return CheckReport((str(exc),), (), False, 0, 0, 0, 0)
    try:
        report = check_image(image)
    finally:
        image.file.close()
    if not report.is_ok:
        return report
    findings: list[str] = []
    layers = _check_chain(path, parents, folders, findings)
    return replace(report, findings=tuple(findings), layers=layers)


def check_image(image: Image) -> CheckReport:
    """The report on one open file, its parents left alone."""
    findings: list[str] = []
    notes: list[str] = []
    counts = (0, 0, 0)
    try:
        notes += _spares(image.view)
        counts = _check_layer(image, notes)
    except DiskError as exc:
        findings.append(str(exc))
    return CheckReport(tuple(findings), tuple(notes), image.is_dirty, *counts, 1)


def _spares(view: BlockFile) -> list[str]:
    """Damage of a structure that has a sound copy."""
    notes = []
    for place in structures.HEADER_OFFSETS:
        if structures.parse_header(view.read(place, structures.HEADER_SIZE)) is None:
            notes.append(f"{view.path}: the header at {place:#x} is damaged, the other one is used")
    for place in structures.REGION_TABLE_OFFSETS:
        data = view.read(place, structures.REGION_TABLE_SIZE)
        if structures.parse_region_table(str(view.path), data, place) is None:
            notes.append(
                f"{view.path}: the region table at {place:#x} is damaged, the other one is used"
            )
    return notes


def _check_layer(image: Image, notes: list[str]) -> tuple[int, int, int]:
    """(blocks, present, partial) of one file whose entries, bitmaps and space are in order."""
    layer = image.layer
    table, geometry = layer.table, layer.geometry
    table.check_overlaps()
    present = partial = 0
    for first in range(0, geometry.block_count, _BLOCKS):
        last = min(first + _BLOCKS, geometry.block_count)
        if table.is_empty(first, last):
            continue
        states = table.entries(first, last) & np.uint64(STATE_MASK)
        present += int((states >= FULLY_PRESENT).sum())
        in_part = np.flatnonzero(states == PARTIALLY_PRESENT)
        partial += in_part.size
        chunks = np.unique((in_part + first) // geometry.chunk_ratio)
        for chunk in chunks.tolist():
            layer.bitmap_place(int(chunk) * geometry.chunk_ratio)
    if image.metadata.is_fixed and present < geometry.block_count:
        notes.append(
            f"{image.file.path}: marked as fixed, but {geometry.block_count - present} of "
            f"{geometry.block_count} blocks have no space"
        )
    unused = _unused(image, layer, present)
    if unused > 0:
        notes.append(f"{image.file.path}: {unused} bytes of the file are used by nothing")
    return geometry.block_count, present, partial


def _unused(image: Image, layer: Layer, present: int) -> int:
    """Bytes of the file that belong to no structure."""
    used = structures.FIRST_FREE + image.headers.current.log_length
    used += sum(region.length for region in image.regions.all)
    used += present * layer.geometry.block_size
    used += len(layer.table.bitmap_offsets()) * structures.BITMAP_BLOCK
    return image.view.size - used


def _check_chain(
    path: Path, parents: Sequence[Path] | None, folders: Sequence[Path], findings: list[str]
) -> int:
    """The layers of the chain, each parent's file checked too."""
    try:
        with open_chain(path, parents=parents, folders=folders) as top:
            layers, disk = 1, top.parent
            while isinstance(disk, VhdxDisk):
                layers += 1
                try:
                    _check_layer(disk.image, [])
                except DiskError as exc:
                    findings.append(str(exc))
                disk = disk.parent
            return layers
    except DiskError as exc:
        findings.append(str(exc))
        return 1
