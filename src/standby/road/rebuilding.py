"""Reading whole points: their leaves, their root, and digests made anew from them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from standby.digesting import (
    PAGE,
    DigestChain,
    DigestFile,
    DigestWriter,
    page_nodes,
    root_of_pages,
)
from standby.errors import DiskCorrupt, PointDamaged, StandbyError
from standby.model.extent import Kind
from standby.model.point import PointDisk, RestorePoint
from standby.ports import Progress, VirtualDisk
from standby.road.baseline import open_digests
from standby.road.pages import (
    Leaves,
    data_mask,
    open_layers,
    page_range,
    proved_leaves,
    read_leaves,
    zero_page,
)
from standby.road.points import disk_of, replicated_disks
from standby.road.records import inner_path
from standby.road.replica import ReplicaFolder

_T = TypeVar("_T")
_Numbers = npt.NDArray[np.int64]
_Nodes = npt.NDArray[np.uint8]


def rebuild_digests(
    folder: ReplicaFolder, point_id: str, disk_id: str = "", *, complete: bool = False
) -> None:
    """Read a point again and write its digests anew, of one disk or of all.

    Raises PointDamaged when the root is not the recorded one: then the content is damaged, and
    only `repair` from elsewhere helps. `complete` (or a point whose files are a base alone) writes
    all of it; else pages that differ from the point below it, whose digests must be sound.
    """
    point = folder.point(point_id)
    for disk in replicated_disks(point):
        if disk_id in ("", disk.disk_id):
            _rebuild(folder, point, disk, complete)


def mend_digests(
    folder: ReplicaFolder, point: RestorePoint, disk: PointDisk, check: Callable[[], None]
) -> list[str]:
    """Write the damaged ones among the digests that describe this disk at the point anew, from the
    disk files: the ids of their points. `check` is called before each is looked at.

    Leaves are believed when they make the node that the root proves; where that is lost, when the
    whole disk has the root in the point's record. Raises PointDamaged when the disk has not.
    """
    mended = []
    for other in folder.points():
        part = disk_of(other, disk.disk_id)
        if part is None or not _is_under(part, disk):
            continue
        check()
        try:
            if _mend(folder, other, part):
                mended.append(other.id)
        except PointDamaged:
            if other.id == point.id:
                raise
    return mended


def _is_under(part: PointDisk, disk: PointDisk) -> bool:
    """Whether all layers of `part` are layers of `disk`, too."""
    files = tuple(layer.file for layer in disk.chain)
    return tuple(layer.file for layer in part.chain) == files[-len(part.chain) :]


def _mend(folder: ReplicaFolder, point: RestorePoint, disk: PointDisk) -> bool:
    """Whether the point's own digests of the disk were damaged, and are written anew."""
    try:
        with digests_of(folder, point, disk):
            pass  # the index has the recorded root: its nodes are right
    except StandbyError:
        try:
            _rebuild(folder, point, disk, complete=False)
        except PointDamaged:
            raise
        except StandbyError:  # those below are not to be had
            _rebuild(folder, point, disk, complete=True)
        return True
    path = folder.digests_path(point.id, disk.disk_id)
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(DigestFile.open(path))
        if not any(_is_lost(old, number) for number in old.page_numbers.tolist()):
            return False
        opened = open_layers(folder.chain_paths(point, disk.disk_id))
        stack.callback(opened.close)
        writer = stack.enter_context(DigestWriter(path, old.virtual_size, old.is_complete))
        for place, number in enumerate(old.page_numbers.tolist()):
            if not _is_lost(old, number):
                writer.add(number, old.leaves(number))
                continue
            leaves = proved_leaves(opened, number, old.nodes[place].tobytes())
            if leaves is None:
                raise PointDamaged(
                    folder.name,
                    point.id,
                    str(path),
                    f"the leaves of page {number} are damaged, and so is the disk there",
                )
            writer.add(number, leaves)
        old.close()
        writer.finish(old.root)
    return True


def _is_lost(digests: DigestFile, page_number: int) -> bool:
    try:
        digests.leaves(page_number)
    except StandbyError:
        return True
    return False


def digests_of(folder: ReplicaFolder, point: RestorePoint, disk: PointDisk) -> DigestChain:
    paths = folder.digest_paths(point.id, disk.disk_id)
    return open_digests(paths, disk.virtual_size, bytes.fromhex(disk.root))


def root_read(
    disk: VirtualDisk, size: int, threads: int, progress: Progress | None
) -> tuple[bytes, int]:
    """The root of what the disk holds, and the bytes read for it."""
    numbers: list[int] = []
    nodes: list[bytes] = []
    total = 0
    for page_number, leaves, count in read_pages(disk, size, threads, progress):
        total += count
        numbers.append(page_number)
        nodes.append(page_nodes(leaves.reshape(1, -1)).tobytes())
    table = np.frombuffer(b"".join(nodes), dtype=np.uint8).reshape(-1, 16)
    return root_of_pages(size, *_without_zeros(np.array(numbers, dtype=np.int64), table)), total


def _without_zeros(numbers: _Numbers, nodes: _Nodes) -> tuple[_Numbers, _Nodes]:
    zero = page_nodes(zero_page().reshape(1, -1))[0]
    kept = (nodes != zero).any(axis=1)
    return numbers[kept], np.ascontiguousarray(nodes[kept])


def read_pages(
    disk: VirtualDisk, size: int, threads: int = 2, progress: Progress | None = None
) -> Iterator[tuple[int, Leaves, int]]:
    """(page number, leaves, bytes read) of every page of which anything is stored, ascending."""

    def read(page_number: int) -> tuple[int, Leaves, int]:
        start, stop = page_range(page_number, size)
        leaves = zero_page()
        wanted = data_mask(disk, start, stop)
        count = read_leaves(disk, start, stop, wanted, leaves)
        return page_number, leaves, count

    pages = sorted(stored_pages(disk, size))
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="digests") as pool:
        for place, result in enumerate(mapped_in_order(pool, read, pages), start=1):
            if progress is not None and (place % 16 == 0 or place == len(pages)):
                progress(place * PAGE, len(pages) * PAGE)
            yield result


def mapped_in_order(
    pool: ThreadPoolExecutor, function: Callable[[int], _T], items: Sequence[int]
) -> Iterator[_T]:
    """pool.map with a bounded number of results waiting, however many items there are."""
    for start in range(0, len(items), 64):
        yield from pool.map(function, items[start : start + 64])


def stored_pages(disk: VirtualDisk, size: int) -> set[int]:
    """Numbers of the pages of which anything is stored."""
    found: set[int] = set()
    for extent in disk.extents(0, min(size, disk.virtual_size)):
        if extent.kind is Kind.DATA and extent.length:
            found.update(range(extent.offset // PAGE, (extent.stop - 1) // PAGE + 1))
    return found


def _rebuild(folder: ReplicaFolder, point: RestorePoint, disk: PointDisk, complete: bool) -> None:
    chain = folder.chain_paths(point, disk.disk_id)
    path = folder.digests_path(point.id, disk.disk_id)
    is_complete = complete or len(chain) == 1
    with contextlib.ExitStack() as stack:
        older = None if is_complete else _digests_below(folder, point, disk)
        if older is not None:
            stack.callback(older.close)
        opened = stack.enter_context(contextlib.closing(open_layers(chain)))
        numbers: list[int] = []
        nodes: list[bytes] = []
        writer = stack.enter_context(DigestWriter(path, disk.virtual_size, is_complete))
        pending = older.page_numbers.tolist() if older is not None else []
        for page_number, leaves, _ in read_pages(opened, disk.virtual_size):
            node = page_nodes(leaves.reshape(1, -1)).tobytes()
            numbers.append(page_number)
            nodes.append(node)
            while pending and pending[0] < page_number:
                writer.add(pending.pop(0), zero_page())
            if pending and pending[0] == page_number:
                pending.pop(0)
            if older is None or (older.leaves(page_number) != leaves).any():
                writer.add(page_number, leaves)
        for page_number in pending:
            writer.add(page_number, zero_page())
        table = np.frombuffer(b"".join(nodes), dtype=np.uint8).reshape(-1, 16)
        found = root_of_pages(
            disk.virtual_size, *_without_zeros(np.array(numbers, dtype=np.int64), table)
        )
        if found.hex() != disk.root:
            raise PointDamaged(
                folder.name,
                point.id,
                str(chain[0]),
                f"its content has the digest root {found.hex()}, {disk.root} was committed",
            )
        writer.finish(found)


def _digests_below(
    folder: ReplicaFolder, point: RestorePoint, disk: PointDisk
) -> DigestChain | None:
    """The digests of the point whose chain is this disk's without its newest layer."""
    wanted = tuple(layer.file for layer in disk.chain[1:])
    for other in folder.points():
        part = disk_of(other, disk.disk_id)
        if part is not None and tuple(layer.file for layer in part.chain) == wanted:
            return digests_of(folder, other, part)
    raise DiskCorrupt(
        str(inner_path(folder.path, disk.chain[0].file)),
        "no restore point below has the rest of its chain",
        0,
        point.id,
    )
