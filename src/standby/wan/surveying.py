"""What a cache folder holds, seen from outside: it may be in use, nothing is locked or changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from standby.errors import ConfigurationError, StandbyError
from standby.files import File, is_byte_locked, write_plainly
from standby.units import MiB
from standby.wan.counting import COUNTED, CacheStatus, cache_status
from standby.wan.segment_file import SegmentDamaged
from standby.wan.segments import Shelf, read_segment, segment_paths

STATUS_NAME = "status.json"
LOCK_NAME = ".lock"
_STATUS_MAX = 16 * MiB


@dataclass(frozen=True, slots=True)
class Survey:
    """A cache as its files are now. What only the process that has it open can know (its limits,
    mode, memory, counts) is as that told last: when it opened the cache, began a segment, flushed
    or closed."""

    is_in_use: bool
    is_told: bool
    """Whether any process has told anything yet that can be read."""
    status: CacheStatus


def survey(folder: Path) -> Survey:
    """The cache in `folder`; ConfigurationError where there is none."""
    if not (folder / LOCK_NAME).exists():
        raise ConfigurationError(
            str(folder), "holds no cache", "Name the folder of a global cache, or populate one"
        )
    told = last_told(folder)
    shelf = Shelf(MiB)
    problems = []
    for number, path in segment_paths(folder):
        try:
            found = read_segment(path, number)
        except (SegmentDamaged, StandbyError) as exc:
            if path.exists():  # not one that went while we looked
                problems.append(f"{path.name}: {exc}")
            continue
        shelf.add(found.segment)
    status = cache_status(
        folder,
        shelf,
        entries=told.entries if told else 0,
        limit_bytes=told.limit_bytes if told else 0,
        mode=told.mode if told else "",
        memory_bytes=told.memory_bytes if told else 0,
        memory_max_bytes=told.memory_max_bytes if told else 0,
        index_bytes=told.index_bytes if told else 0,
        stopped_by=told.stopped_by if told else "",
        problems=tuple(problems),
        counts=told.counts if told else dict.fromkeys(COUNTED, 0),
    )
    return Survey(is_byte_locked(folder / LOCK_NAME), told is not None, status)


def last_told(folder: Path) -> CacheStatus | None:
    """What the last process said of the cache; None where that cannot be had."""
    try:
        with File(folder / STATUS_NAME) as file:
            data = file.read(0, min(file.size, _STATUS_MAX))
        return msgspec.json.decode(data, type=CacheStatus)
    except (StandbyError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def tell(folder: Path, status: CacheStatus) -> None:
    """Write for `survey` what only this process knows; that it cannot be written is no matter."""
    try:
        write_plainly(folder / STATUS_NAME, msgspec.json.encode(status))
    except (OSError, StandbyError):
        pass
