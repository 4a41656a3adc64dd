"""A restore point's commit record: points/<id>.json on the target (RULES 12)."""

from __future__ import annotations

from dataclasses import dataclass

from standby.model.machine import Machine
from standby.model.replica import LayerFile


@dataclass(frozen=True, slots=True)
class PointDisk:
    """One disk at a point. `chain` is newest layer first, base last; `root` is hex of the digest
    root (RULES 5); `identity` the source files' identity at the checkpoint; `excluded` disks are
    listed without files."""

    disk_id: str
    place: str
    virtual_size: int
    logical_sector_size: int
    physical_sector_size: int
    root: str
    chain: tuple[LayerFile, ...]
    tracker_id: str = ""
    identity: str = ""
    excluded: bool = False


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """All disks of a VM at one instant. `id` sorts by time: YYYYMMDDTHHMMSSZ-xxxx.

    `parent` is the id of the point before it, '' for the first. `taken_at` is the UTC time of the
    checkpoint (ISO 8601), `consistency` one of offline, application, crash. `state_files` maps
    small files (UEFI variables …) to base64 of their bytes; `firmware_note` says what is missing.
    `changed_bytes` is what this point carried.
    """

    format: int
    id: str
    parent: str
    generation: int
    taken_at: str
    committed_at: str
    consistency: str
    session: str
    machine: Machine
    disks: tuple[PointDisk, ...]
    state_files: dict[str, str]
    firmware_note: str = ""
    changed_bytes: int = 0
