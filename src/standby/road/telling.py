"""What the target holds of one disk, told without touching it: for `job plan --scan`.

The digests of the newest point where they describe it, else the file itself (an unfinished
transfer, a seed, the disk of a VM that is to be mapped, one whose digests are damaged), read page
by page as it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from standby.digesting import LEAVES_PER_PAGE, PAGE, DigestChain
from standby.disk import open_disk
from standby.disk.vhdx import read_info
from standby.errors import (
    DiskCorrupt,
    DiskIO,
    LinkError,
    PointDamaged,
    ProtocolError,
    StandbyError,
)
from standby.model.extent import Kind
from standby.ports import VirtualDisk
from standby.road import resuming
from standby.road.baseline import open_digests
from standby.road.pages import Leaves, data_mask, open_layers, page_range, read_leaves, zero_page
from standby.road.points import disk_of, newest_with
from standby.road.replica import ReplicaFolder
from standby.road.surveying import lasting_points
from standby.wire.link import Link
from standby.wire.messages import (
    Attach,
    Finish,
    Finished,
    GetIndex,
    GetLeaves,
    Index,
)
from standby.wire.messages import (
    Leaves as LeavesMessage,
)

GET_LEAVES_MAX = 64
"""Pages asked for at once: 2 MiB of leaves."""


class HeldDisk:
    """Leaves of the disk as the target holds it, cut or extended with zeros to `virtual_size`."""

    def __init__(
        self,
        held: DigestChain | VirtualDisk | None,
        virtual_size: int,
        described: Callable[[], VirtualDisk] | None = None,
    ) -> None:
        """`described` opens the disk that digests are of, to be read where they are damaged."""
        self._held = held
        self._described = described
        self._size = virtual_size
        self._buffer = memoryview(bytearray(PAGE))

    def page_numbers(self) -> np.ndarray:
        """(n,) int64 ascending: every page that may hold anything but zeros."""
        last = -(-self._size // PAGE)
        if self._held is None:
            return np.empty(0, np.int64)
        if isinstance(self._held, DigestChain):
            numbers = self._held.page_numbers
            return numbers[numbers < last]
        stop = min(self._size, self._held.virtual_size)
        pages: set[int] = set()
        for extent in self._held.extents(0, stop):
            if extent.kind is Kind.DATA:
                pages.update(range(extent.offset // PAGE, -(-extent.stop // PAGE)))
        return np.array(sorted(pages), np.int64)

    def leaves(self, page_number: int) -> Leaves:
        """(4096,) uint64 of one page."""
        if self._held is None:
            return zero_page()
        start, stop = page_range(page_number, min(self._size, self._held.virtual_size))
        if start >= stop:
            return zero_page()
        leaves = zero_page()
        if isinstance(self._held, DigestChain):
            pieces = -(-(stop - start) // 4096)
            try:
                leaves[:pieces] = self._held.leaves(page_number)[:pieces]
                return leaves
            except (DiskCorrupt, DiskIO):
                if self._described is None:
                    raise
                self.close()
                self._held = self._described()
        mask = data_mask(self._held, start, stop)
        found = zero_page()
        read_leaves(self._held, start, stop, mask, found, self._buffer)
        leaves[mask] = found[mask]
        return leaves

    def close(self) -> None:
        """Close what is open; a second call does nothing."""
        held, self._held = self._held, None
        if held is not None:
            held.close()


def held_disk(folder: ReplicaFolder, disk_id: str, virtual_size: int) -> HeldDisk:
    """What a session would find of the disk: its unfinished transfer, else the newest point's
    state; nothing where there is neither."""
    home = folder.disk_path(disk_id)
    newest = newest_with(lasting_points(folder), disk_id) if folder.exists() else None
    disk = disk_of(newest, disk_id) if newest is not None else None
    chain = folder.chain_paths(newest, disk_id) if newest is not None else ()
    for candidate in resuming.candidates(home):
        path = resuming.partial_path(home, candidate.point_id, candidate.generation)
        if candidate.is_usable and _follows(path, chain, virtual_size):
            has_parent = read_info(path).has_parent
            layers = (path, *chain) if has_parent else (path,)
            return HeldDisk(open_disk(path, parents=list(layers[1:])), virtual_size)
    if newest is None or disk is None:
        return HeldDisk(None, virtual_size)
    root = bytes.fromhex(disk.root)
    described = partial(open_layers, chain)
    try:
        digests = open_digests(folder.digest_paths(newest.id, disk_id), disk.virtual_size, root)
    except (DiskCorrupt, DiskIO, PointDamaged):  # a session computes them again
        return HeldDisk(described(), virtual_size)
    return HeldDisk(digests, virtual_size, described)


def _follows(path: Path, chain: Sequence[Path], virtual_size: int) -> bool:
    """Whether the session would go on with the unfinished file: it is of this size, and a child of
    the newest layer or of none; or, with no point below it, copy from it."""
    try:
        info = read_info(path)
        if info.virtual_size != virtual_size and (chain or info.has_parent):
            return False
        if not info.has_parent:
            return True
        linkage = info.locator.get("parent_linkage", "").strip("{}").lower()
        return bool(chain) and read_info(chain[0]).data_write_guid == linkage
    except StandbyError:
        return False


def tell(held: HeldDisk, task: str, link: Link) -> None:
    """Answer for `held` on a data link until the source has seen enough. Nodes are told as zero
    bytes: whoever only counts compares leaves."""
    message, _ = link.receive()
    if not isinstance(message, Attach) or message.task != task:
        raise ProtocolError(link.peer, f"expected task {task}, got {message}")
    while True:
        message, _ = link.receive()
        if isinstance(message, GetIndex):
            numbers = held.page_numbers()
            link.send(Index(len(numbers)), numbers, np.zeros((len(numbers), 16), np.uint8))
        elif isinstance(message, GetLeaves):
            if not 0 < len(message.pages) <= GET_LEAVES_MAX or min(message.pages) < 0:
                raise ProtocolError(link.peer, f"leaves of {len(message.pages)} pages asked for")
            leaves = np.stack([held.leaves(page) for page in message.pages])
            link.send(LeavesMessage(len(message.pages)), leaves)
        elif isinstance(message, Finish):
            link.send(Finished(0, 0))
            return
        else:
            raise ProtocolError(link.peer, f"unexpected {type(message).__name__}")


class ToldLeaves:
    """The other end of `tell`: the target's leaves as a baseline of `source_proxy`."""

    def __init__(self, task: str, link: Link) -> None:
        self._link = link
        link.send(Attach(task))
        link.send(GetIndex())
        message, payload = link.receive()
        if not isinstance(message, Index) or len(payload) != message.count * 24:
            raise ProtocolError(link.peer, "no index of the right length")
        numbers = np.frombuffer(bytes(payload), np.int64, message.count)
        self._index = numbers, np.zeros((message.count, 16), np.uint8)

    def index(self) -> tuple[np.ndarray, np.ndarray]:
        """Page numbers, and nodes that say nothing."""
        return self._index

    def leaves(self, page_numbers: Sequence[int]) -> np.ndarray:
        """(n, 4096) uint64; one caller at a time."""
        found = [
            self._asked([int(page) for page in page_numbers[first : first + GET_LEAVES_MAX]])
            for first in range(0, len(page_numbers), GET_LEAVES_MAX)
        ]
        return np.concatenate(found) if found else np.empty((0, LEAVES_PER_PAGE), np.uint64)

    def _asked(self, page_numbers: list[int]) -> np.ndarray:
        self._link.send(GetLeaves(page_numbers))
        message, payload = self._link.receive()
        count = len(page_numbers)
        if not isinstance(message, LeavesMessage) or len(payload) != count * LEAVES_PER_PAGE * 8:
            raise ProtocolError(self._link.peer, "leaves of a wrong length")
        return np.frombuffer(bytes(payload), np.uint64).reshape(count, LEAVES_PER_PAGE)

    def finish(self) -> None:
        """Let the other end go; the link is as it was before."""
        self._link.send(Finish())
        message, _ = self._link.receive()
        if not isinstance(message, Finished):
            raise LinkError(self._link.peer, f"unexpected {type(message).__name__}")
