"""Children of nodes of the digest tree as they travel, and what a target has to say of them.

`GetNodes` asks for the children of some nodes of one level, `Nodes` has them: for each node 8 bytes
with a bit for each child that is not zero, behind all of those the children themselves. So what is
zero on both sides costs a bit, and a difference of one piece in a terabyte some five kilobytes: 64
nodes of each level, and 64 leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from standby import digesting
from standby.digesting import FANOUT, LEAVES_PER_PAGE, PIECE, ZERO_LEAF
from standby.errors import ProtocolError
from standby.road.baseline import Baseline

Numbers = npt.NDArray[np.int64]
Children = npt.NDArray[Any]
"""(n, 64, 16) uint8 nodes, or (n, 64) uint64 leaves."""

BLOCK_LEVEL, PAGE_LEVEL, TOP_LEVEL = 1, 2, 5
NODES_MAX = 4096
PAGES_MAX = 64
"""Pages whose leaves one question may need: 2 MiB of them."""


def zero_child(level: int) -> Any:
    """A child of a node of `level` that is zero."""
    if level == BLOCK_LEVEL:
        return ZERO_LEAF
    return np.frombuffer(digesting.zero_node(level - 1), np.uint8)


def is_zero(level: int, nodes: Children) -> npt.NDArray[np.bool_]:
    """Which of the nodes (..., 16) of `level` are zero."""
    found: npt.NDArray[np.bool_] = (nodes == zero_child(level + 1)).all(axis=-1)
    return found


def packed_children(level: int, children: Children) -> tuple[bytes, bytes]:
    """Those of nodes of `level` as they travel: the bits, and what they say is there."""
    is_there = children != zero_child(level)
    if level > BLOCK_LEVEL:
        is_there = is_there.any(axis=2)
    bits = np.packbits(is_there, axis=1, bitorder="little")
    return bits.tobytes(), np.ascontiguousarray(children[is_there]).tobytes()


def unpacked_children(level: int, count: int, payload: memoryview | bytes, peer: str) -> Children:
    """What `packed_children` made of the children of `count` nodes; ProtocolError else."""
    size = 8 if level == BLOCK_LEVEL else 16
    bits = np.frombuffer(payload[: 8 * count], np.uint8)
    if len(bits) != 8 * count:
        raise ProtocolError(peer, f"nodes of {count} parents in {len(payload)} bytes")
    is_there = np.unpackbits(bits.reshape(-1, 8), axis=1, bitorder="little").astype(np.bool_)
    rest = payload[8 * count :]
    if len(rest) != size * int(is_there.sum()):
        raise ProtocolError(peer, f"{int(is_there.sum())} nodes in {len(rest)} bytes")
    children: Children
    if level == BLOCK_LEVEL:
        children = np.full((count, FANOUT), ZERO_LEAF, np.uint64)
        children[is_there] = np.frombuffer(rest, np.uint64)
    else:
        children = np.tile(zero_child(level), (count, FANOUT, 1))
        children[is_there] = np.frombuffer(rest, np.uint8).reshape(-1, 16)
    return children


class TreeAnswers:
    """What a target says of the tree of one disk that it holds. Nodes above leaves' are computed
    once: a source asks for what is below a node before it sends anything there."""

    def __init__(self, baseline: Baseline, virtual_size: int, peer: str) -> None:
        self._baseline = baseline
        self._virtual_size = virtual_size
        self._peer = peer
        self._levels: dict[int, tuple[Numbers, npt.NDArray[np.uint8]]] = {}

    def children(self, level: int, numbers: Sequence[int]) -> tuple[bytes, bytes]:
        """The payload for these nodes of `level`; ProtocolError where there are none such, or too
        many."""
        self._check(level, numbers)
        asked = np.array(numbers, np.int64)
        if level > PAGE_LEVEL:
            return packed_children(level, self._above(level - 1, asked))
        pages = asked if level == PAGE_LEVEL else asked // FANOUT
        leaves = {page: self._baseline.leaves(page) for page in np.unique(pages).tolist()}
        if level == PAGE_LEVEL:
            found = np.stack([digesting.block_nodes(leaves[page]) for page in pages.tolist()])
            return packed_children(level, found)
        places = (asked % FANOUT * FANOUT).tolist()
        groups = [
            leaves[page][place : place + FANOUT]
            for page, place in zip(pages.tolist(), places, strict=True)
        ]
        return packed_children(level, np.stack(groups))

    def _check(self, level: int, numbers: Sequence[int]) -> None:
        if not BLOCK_LEVEL <= level <= TOP_LEVEL:
            raise ProtocolError(self._peer, f"nodes of level {level} asked for")
        most = PAGES_MAX if level == PAGE_LEVEL else NODES_MAX
        count = -(-self._virtual_size // (PIECE * FANOUT**level))
        is_there = 0 < len(numbers) <= most and min(numbers) >= 0 and max(numbers) < count
        if level == BLOCK_LEVEL and len({number // FANOUT for number in numbers}) > PAGES_MAX:
            is_there = False
        if not is_there:
            raise ProtocolError(
                self._peer, f"{len(numbers)} nodes of level {level} asked for, which has {count}"
            )

    def _above(self, level: int, parents: Numbers) -> Children:
        """(n, 64, 16): the nodes of `level`, pages or above, below these parents."""
        numbers, nodes = self._level(level)
        found = np.tile(zero_child(level + 1), (len(parents), FANOUT, 1))
        for row, parent in enumerate(parents.tolist()):
            low, high = np.searchsorted(numbers, (parent * FANOUT, (parent + 1) * FANOUT)).tolist()
            found[row, numbers[low:high] % FANOUT] = nodes[low:high]
        return found

    def _level(self, level: int) -> tuple[Numbers, npt.NDArray[np.uint8]]:
        if level not in self._levels:
            if level == PAGE_LEVEL:
                self._levels[level] = self._baseline.index()
            else:
                self._levels[level] = digesting.parents(level - 1, *self._level(level - 1))
        return self._levels[level]


assert LEAVES_PER_PAGE == FANOUT * FANOUT
