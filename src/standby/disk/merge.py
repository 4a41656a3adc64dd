"""A differencing disk merged into its parent, so that at every instant the chain reads the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from standby import killpoints
from standby.disk import open_disk, vhdx
from standby.disk.pumping import Reporter
from standby.disk.vhdx import VhdxDisk
from standby.errors import DiskFull, DiskUnsupported, StandbyError
from standby.files import free_bytes, remove_large
from standby.ports import Progress
from standby.units import MiB, format_bytes

_SEGMENT = 256 * MiB
"""What is mapped at a time: 3 x 8 bytes for each run in it."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge of two files did."""

    base: Path
    """The file that has the child's content now."""
    copied: int
    """Bytes written to it."""


def merge_payload(
    child: VhdxDisk,
    base: VhdxDisk,
    *,
    progress: Progress | None = None,
    slice_bytes: int | None = None,
) -> int:
    """Write what `child` itself holds to `base`, its parent; the bytes of data written, all of it
    durable when this returns.

    `base` must be writable with `keep_data_write_guid`: only ranges that the child overlays are
    touched, so the child and all above it read the same throughout and still accept it. A kill at
    any point is mended by doing it again. The child's zero blocks become zeros of the base; a
    child that grew makes the base grow.

    Several times during the merge the base may need more space than there is; with `slice_bytes`
    the child (then writable, with `keep_data_write_guid` too) gives up its blocks each time that
    many bytes of them are durable in the base. Raises DiskUnsupported when the disks do not fit
    together, DiskFull when the base cannot grow: what was copied stays valid.
    """
    _check_pair(child, base, slice_bytes)
    if child.virtual_size > base.virtual_size:
        base.grow(child.virtual_size)
    reporter = Reporter(progress, child.virtual_size)
    copied = in_slice = slice_start = 0
    for start, stop in _segments(child, slice_bytes):
        count = _merge_segment(child, base, start, stop)
        copied += count
        in_slice += count
        if slice_bytes is not None and in_slice >= slice_bytes:
            _give_up(child, base, slice_start, stop)
            in_slice, slice_start = 0, stop
        reporter.reach(stop)
    base.flush()
    reporter.end()
    return copied


def space_needed(child: VhdxDisk, base: VhdxDisk) -> int:
    """Bytes by which merging `child` makes the file of `base` grow: the blocks that only the child
    has (bitmap blocks of a base that is a child itself not counted)."""
    size = base.block_size
    count = 0
    for start in range(0, child.virtual_size, _SEGMENT):
        stop = min(start + _SEGMENT, child.virtual_size)
        wanted = _blocks(child.mapped(start, stop), start, size)
        if start < base.virtual_size:
            wanted &= ~_blocks(base.mapped(start, min(stop, base.virtual_size)), start, size)
        count += int(wanted.sum())
    return count * size


def planned_merge(child: Path, *, folders: Sequence[Path] = ()) -> tuple[Path, int]:
    """(parent's file, bytes by which it would grow) of `merge_file`, which would refuse what this
    refuses; changes nothing."""
    with contextlib.closing(open_disk(child, folders=folders)) as disk:
        parent = disk.parent if isinstance(disk, VhdxDisk) else None
        if not isinstance(disk, VhdxDisk) or not isinstance(parent, VhdxDisk):
            raise DiskUnsupported(str(child), "merging a disk that has no VHDX parent")
        _refuse_others(child, parent.path)
        return parent.path, space_needed(disk, parent)


def merge_file(
    child: Path,
    *,
    folders: Sequence[Path] = (),
    sparse: bool = True,
    progress: Progress | None = None,
    slice_bytes: int | None = None,
) -> Merged:
    """Merge the differencing file `child` into its parent file and delete it.

    The parent ends with the child's content and identity (data-write GUID). A kill at any point
    leaves a child that opens and reads the same, and calling this again completes the merge:

    1. content into the parent, which keeps its GUID g0;
    2. the child accepts both g1, its own GUID, and g0 as its parent's, in one log entry;
    3. the parent's GUID becomes g1: same content, same identity;
    4. the child is deleted.

    The parent is looked for in the child's folder and `folders`. Refused (DiskUnsupported) while
    other files beside either of the two name one of them as their parent: the first would read
    something else afterwards, the others would lose theirs. Refused (DiskFull) when the parent
    would not fit, unless in slices. `sparse=False` punches no holes (RULES 13), so slices give
    nothing back.
    """
    with contextlib.closing(open_disk(child, folders=folders)) as chain:
        parent = chain.parent if isinstance(chain, VhdxDisk) else None
        if not isinstance(parent, VhdxDisk):
            raise DiskUnsupported(str(child), "merging a disk that has no VHDX parent")
        base_path = parent.path
        _refuse_others(child, base_path)
        with (
            vhdx.open_vhdx(
                base_path,
                writable=True,
                keep_data_write_guid=True,
                parent=parent.parent,
                sparse=sparse,
            ) as base,
            vhdx.open_vhdx(child, writable=True, keep_data_write_guid=True, sparse=sparse) as disk,
        ):
            _check_space(disk, base, slice_bytes)
            copied = merge_payload(disk, base, progress=progress, slice_bytes=slice_bytes)
            killpoints.reach("disk merge: content copied")
            pass_identity_on(disk, base)
    killpoints.reach("disk merge: identity passed on")
    remove_large(child)
    return Merged(base_path, copied)


# --- the payload -----------------------------------------------------------------------------


def _check_pair(child: VhdxDisk, base: VhdxDisk, slice_bytes: int | None) -> None:
    problem = ""
    if not base.writable:
        problem = "a parent opened read-only"
    elif slice_bytes is not None and not child.writable:
        problem = "slices with a child opened read-only"
    elif child.logical_sector_size != base.logical_sector_size:
        problem = f"sectors of {child.logical_sector_size} over {base.logical_sector_size} bytes"
    elif child.virtual_size < base.virtual_size:
        problem = f"a child of {child.virtual_size} over a parent of {base.virtual_size} bytes"
    if problem:
        raise DiskUnsupported(str(child.path), f"merging into {base.path}: {problem}")


def _segments(child: VhdxDisk, slice_bytes: int | None) -> Iterator[tuple[int, int]]:
    """Ranges of whole blocks of the child, of at most about `slice_bytes`."""
    step = _SEGMENT
    if slice_bytes is not None:
        step = max(min(step, slice_bytes) // child.block_size, 1) * child.block_size
    for start in range(0, child.virtual_size, step):
        yield start, min(start + step, child.virtual_size)


def _merge_segment(child: VhdxDisk, base: VhdxDisk, start: int, stop: int) -> int:
    rows, zeros = child.held(start, stop)
    for offset, length in zeros.tolist():
        base.zero(offset, length)
    base.copy_runs(rows, child.file)
    return int(rows[:, 1].sum())


def _give_up(child: VhdxDisk, base: VhdxDisk, start: int, stop: int) -> None:
    """Let the base show in [start, stop) of the child, once it holds that durably."""
    base.flush()
    killpoints.reach("merge: slice copied")
    child.forget(start, stop - start)
    child.flush()
    killpoints.reach("merge: slice given up")


def _blocks(rows: npt.NDArray[np.int64], start: int, size: int) -> npt.NDArray[np.bool_]:
    """Which blocks of `size` from the one with `start` on the rows touch, in one segment."""
    origin = start // size
    marks = np.zeros(_SEGMENT // size + 2, dtype=np.int64)
    np.add.at(marks, rows[:, 0] // size - origin, 1)
    np.subtract.at(marks, (rows[:, 0] + rows[:, 1] - 1) // size + 1 - origin, 1)
    touched: npt.NDArray[np.bool_] = np.cumsum(marks) > 0
    return touched


# --- two files -------------------------------------------------------------------------------


def pass_identity_on(child: VhdxDisk, base: VhdxDisk) -> None:
    """Give the base the child's GUID, once it has the child's content. The child accepts the base
    before and after, and at every instant between."""
    before, after = base.data_write_guid, child.data_write_guid
    if before == after:
        return
    locator = child.info.locator
    child.set_parent_locator(
        after,
        locator.get("relative_path", f".\\{base.path.name}"),
        locator.get("absolute_win32_path"),
        before,
    )
    child.flush()
    killpoints.reach("disk merge: child accepts both")
    base.set_data_write_guid(after)


def _refuse_others(child: Path, base: Path) -> None:
    """Refuse when another file in either folder stands on one of the two."""
    mine = {path: vhdx.read_info(path).data_write_guid for path in (child, base)}
    found = []
    for folder in {child.parent.resolve(), base.parent.resolve()}:
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() not in (".vhdx", ".avhdx") or not path.is_file():
                continue
            if any(path.samefile(own) for own in mine):
                continue
            if _names_one(path, mine):
                found.append(path.name)
    if found:
        raise DiskUnsupported(
            str(child),
            f"merging into {base} while {', '.join(found)} may stand on one of the two",
            "Merge or remove those first",
        )


def _names_one(path: Path, mine: dict[Path, str]) -> bool:
    try:
        info = vhdx.read_info(path)
    except StandbyError:  # not a VHDX, or too damaged to stand on anything
        return False
    if not info.has_parent:
        return False
    linkages = {info.locator.get(key, "").strip("{}").lower() for key in _LINKAGES}
    if linkages & set(mine.values()):
        return True
    names = {info.locator.get(key, "").rpartition("\\")[2].lower() for key in _PATHS}
    return bool(names & {own.name.lower() for own in mine})


_LINKAGES = ("parent_linkage", "parent_linkage2")
_PATHS = ("relative_path", "absolute_win32_path", "volume_path")


def _check_space(child: VhdxDisk, base: VhdxDisk, slice_bytes: int | None) -> None:
    if slice_bytes is not None:
        return
    available = free_bytes(base.path.parent)
    # At most: all of the child's file is blocks, and the base has none of them.
    blocks = child.file.size // child.block_size
    if available >= blocks * max(child.block_size, base.block_size):
        return
    needed = space_needed(child, base)
    if needed > available:
        raise DiskFull(
            f"{base.path} (merging {child.path} adds {format_bytes(needed)}; with slices, the "
            "child gives space back meanwhile)",
            needed,
            available,
        )
