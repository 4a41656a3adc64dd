"""What a VHDX file says about itself."""

from __future__ import annotations

from dataclasses import dataclass

from standby.disk.vhdx.geometry import Geometry
from standby.disk.vhdx.headers import Headers
from standby.disk.vhdx.metadata import Metadata
from standby.disk.vhdx.structures import guid_text


@dataclass(frozen=True, slots=True)
class VhdxInfo:
    """Headers and metadata in words. GUIDs are lower-case text without braces."""

    virtual_size: int
    block_size: int
    logical_sector_size: int
    physical_sector_size: int
    has_parent: bool
    is_fixed: bool
    data_write_guid: str
    """Identity of what the guest sees; what children check."""
    file_write_guid: str
    """Identity of the file's bytes; changes with every writing session."""
    page83: str
    """Identity of the disk for the guest (SCSI VPD page 83)."""
    creator: str
    file_size: int
    log_is_dirty: bool
    """The log holds changes that are not in their place yet."""
    locator: dict[str, str]
    """Keys and values of the parent locator; empty without a parent."""


def info_of(
    headers: Headers, metadata: Metadata, geometry: Geometry, creator: str, *, is_dirty: bool
) -> VhdxInfo:
    """The values as they are now."""
    return VhdxInfo(
        virtual_size=geometry.virtual_size,
        block_size=geometry.block_size,
        logical_sector_size=geometry.logical_sector_size,
        physical_sector_size=metadata.physical_sector_size,
        has_parent=metadata.has_parent,
        is_fixed=metadata.is_fixed,
        data_write_guid=guid_text(headers.current.data_write_guid),
        file_write_guid=guid_text(headers.current.file_write_guid),
        page83=guid_text(metadata.page83),
        creator=creator,
        file_size=headers.file.size,
        log_is_dirty=is_dirty,
        locator=dict(metadata.locator),
    )
