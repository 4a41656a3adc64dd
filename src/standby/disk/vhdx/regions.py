"""The region table: where the BAT and the metadata are."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from standby.disk.vhdx.structures import (
    BAT_REGION,
    FIRST_FREE,
    METADATA_REGION,
    REGION_TABLE_OFFSETS,
    REGION_TABLE_SIZE,
    Header,
    Region,
    guid_text,
    parse_region_table,
)
from standby.errors import DiskCorrupt, DiskUnsupported
from standby.files import BlockFile
from standby.units import MiB


@dataclass(frozen=True, slots=True)
class Regions:
    """All regions in the table's order, and the two that every VHDX has."""

    all: tuple[Region, ...]
    bat: Region
    metadata: Region

    @property
    def are_known(self) -> bool:
        """Whether there are no others: another may mean space elsewhere in the file."""
        return all(region in (self.bat, self.metadata) for region in self.all)


def read_regions(file: BlockFile, header: Header) -> Regions:
    """The regions by the first table, or by the second when the first is damaged; DiskCorrupt when
    they are misplaced. Read through the log."""
    path = str(file.path)
    if file.size < REGION_TABLE_OFFSETS[-1] + REGION_TABLE_SIZE:
        raise DiskCorrupt(
            path, "the file ends in the region tables", file.size, f"{file.size} bytes"
        )
    for table_offset in REGION_TABLE_OFFSETS:
        data = file.read(table_offset, REGION_TABLE_SIZE)
        found = parse_region_table(path, data, table_offset)
        if found is not None:
            return _checked(path, found, table_offset, header, file.size)
    raise DiskCorrupt(
        path,
        "both region tables are damaged (signature or checksum)",
        REGION_TABLE_OFFSETS[0],
        data[:8].hex(),
    )


def _checked(
    path: str, regions: tuple[Region, ...], table: int, header: Header, file_size: int
) -> Regions:
    known: dict[bytes, Region] = {}
    for index, region in enumerate(regions):
        place = table + 16 + 32 * index
        if region.kind in known:
            raise DiskCorrupt(path, "a region is listed twice", place, guid_text(region.kind))
        known[region.kind] = region
        if region.is_required and region.kind not in (BAT_REGION, METADATA_REGION):
            raise DiskUnsupported(
                path, f"required region {guid_text(region.kind)} (at offset {place:#x})"
            )
        if region.offset % MiB or region.offset < FIRST_FREE:
            raise DiskCorrupt(
                path,
                "region offset is not a multiple of 1 MiB from 1 MiB on",
                place + 16,
                f"{region.offset:#x}",
            )
        if region.length % MiB or not region.length:
            raise DiskCorrupt(
                path,
                "region length is not a positive multiple of 1 MiB",
                place + 24,
                f"{region.length:#x}",
            )
        if region.stop > file_size:
            raise DiskCorrupt(
                path,
                "a region lies outside the file",
                place + 16,
                f"{region.offset:#x}+{region.length:#x} in {file_size:#x} bytes",
            )
    for kind, name in ((BAT_REGION, "BAT"), (METADATA_REGION, "metadata")):
        if kind not in known:
            raise DiskCorrupt(path, f"no {name} region", table + 16, f"{len(regions)} entries")
    _check_disjoint(path, regions, header)
    return Regions(regions, known[BAT_REGION], known[METADATA_REGION])


def _check_disjoint(path: str, regions: tuple[Region, ...], header: Header) -> None:
    taken = [(region.offset, region.stop, guid_text(region.kind)) for region in regions]
    taken.append((header.log_offset, header.log_offset + header.log_length, "the log"))
    taken = sorted(part for part in taken if part[1] > part[0])
    for before, after in pairwise(taken):
        if after[0] < before[1]:
            raise DiskCorrupt(
                path, f"regions overlap: {before[2]} and {after[2]}", after[0], f"{before[1]:#x}"
            )
