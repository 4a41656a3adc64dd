"""Leaves, nodes and root of a disk's digest tree.

    level  covers   digest
    leaf     4 KiB  xxh3-64 of the piece, the last one padded with zeros
    1      256 KiB  xxh3-128 of 64 leaves (little-endian)
    2       16 MiB  xxh3-128 of 64 nodes of the level below: a page
    3        1 GiB
    4       64 GiB
    5        4 TiB
    root            xxh3-128 of the virtual size (u64, little-endian) and all level-5 nodes

A node is 16 bytes, xxh3-128 in its canonical (big-endian) form. What lies behind the end of the
disk counts as zeros. Zero subtrees are constants and are never looped over. xxh3 finds accidents
and moved bits, not an adversary: these digests say where to look, never that content is genuine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from standby._kernels import blocks
from standby._kernels.buffers import flat
from standby._kernels.variants import choose

choose(blocks)

Buffer = Any
Leaves = NDArray[np.uint64]
Nodes = NDArray[np.uint8]
PageNumbers = NDArray[np.int64]

PIECE = 4096
FANOUT = 64
BLOCK = PIECE * FANOUT
PAGE = BLOCK * FANOUT
LEAVES_PER_PAGE = FANOUT * FANOUT
NODE = 16
PAGE_LEVEL = 2
TOP_LEVEL = 5
TOP = PAGE * FANOUT**3

ZERO_LEAF = np.uint64(blocks.ZERO_LEAF)


def _zero_nodes() -> list[bytes]:
    children = np.full((1, FANOUT), ZERO_LEAF, np.uint64)
    node = np.empty((1, NODE), np.uint8)
    blocks.join_leaves(children, node)
    nodes = [node.tobytes()]
    while len(nodes) < TOP_LEVEL:
        blocks.join_nodes(np.tile(node, FANOUT), node)
        nodes.append(node.tobytes())
    return nodes


_ZERO_NODES = _zero_nodes()


def zero_node(level: int) -> bytes:
    """The node of an all-zero subtree: level 1 covers 256 KiB, level 5 covers 4 TiB."""
    if not 1 <= level <= TOP_LEVEL:
        raise ValueError(f"levels go from 1 to {TOP_LEVEL}, not {level}")
    return _ZERO_NODES[level - 1]


def leaves(data: Buffer, out: Leaves | None = None) -> Leaves:
    """(n,) uint64: the leaf of each 4 KiB piece of `data`, a short last one padded with zeros.

    Written into `out` where given. Releases the GIL.
    """
    view = flat(data)
    if out is None:
        out = np.empty(-(-memoryview(view).nbytes // PIECE), np.uint64)
    blocks.leaves(view, out)
    return out


def block_nodes(leaves: Leaves) -> Nodes:
    """(k, 16) uint8: the level-1 nodes over leaves whose count is a multiple of 64; a page's 4096
    leaves give 64."""
    children = np.ascontiguousarray(leaves, np.uint64).reshape(-1, FANOUT)
    nodes = np.empty((len(children), NODE), np.uint8)
    blocks.join_leaves(children, nodes)
    return nodes


def page_nodes(leaves: Leaves) -> Nodes:
    """(n, 16) uint8: the level-2 node of each page of (n, 4096) leaves."""
    pages = np.ascontiguousarray(leaves, np.uint64).reshape(-1, LEAVES_PER_PAGE)
    nodes = np.empty((len(pages), NODE), np.uint8)
    blocks.join_nodes(block_nodes(pages).reshape(-1, FANOUT * NODE), nodes)
    return nodes


def root_of_pages(virtual_size: int, page_numbers: PageNumbers, nodes: Nodes) -> bytes:
    """The root over a disk of `virtual_size` bytes: 16 bytes.

    `page_numbers` (n,) ascend without repeats and lie within the disk; `nodes` (n, 16) uint8 are
    theirs; a page that is not named is zero. Cost goes with n, not with the disk's size.
    """
    numbers = np.ascontiguousarray(page_numbers, np.int64)
    level_nodes = np.ascontiguousarray(nodes, np.uint8).reshape(-1, NODE)
    if len(numbers) != len(level_nodes):
        raise ValueError(f"{len(numbers)} page numbers, but {len(level_nodes)} nodes")
    if len(numbers) and (
        numbers[0] < 0
        or int(numbers[-1]) >= -(-virtual_size // PAGE)
        or not bool((numbers[1:] > numbers[:-1]).all())
    ):
        raise ValueError("page numbers must ascend and lie within the disk")
    for level in range(PAGE_LEVEL, TOP_LEVEL):
        numbers, level_nodes = parents(level, numbers, level_nodes)
    top = np.tile(np.frombuffer(zero_node(TOP_LEVEL), np.uint8), (-(-virtual_size // TOP), 1))
    top[numbers] = level_nodes
    return xxhash.xxh3_128_digest(virtual_size.to_bytes(8, "little") + top.tobytes())


_PARENTS_AT_ONCE = 16384
"""16 MiB of children: all parents of a full disk of 16 TiB, and a bound for a sparse one, where
every page may have a parent of its own."""


_WHOLE_NODE = np.dtype("V16")
"""A node as one item: numpy scatters those six times faster than rows of 16 bytes."""


def parents(level: int, numbers: PageNumbers, nodes: Nodes) -> tuple[PageNumbers, Nodes]:
    """Numbers (m,) and nodes (m, 16) one level above these of `level`, 1 to 4, whose numbers
    ascend; children that are not named are zero nodes."""
    owners = numbers // FANOUT
    is_first = np.empty(len(owners), bool)
    is_first[:1] = True
    np.not_equal(owners[1:], owners[:-1], out=is_first[1:])
    first = np.flatnonzero(is_first)
    place = np.cumsum(is_first) - 1
    parents = np.empty((len(first), NODE), np.uint8)
    zero = np.frombuffer(zero_node(level), _WHOLE_NODE)
    for start in range(0, len(first), _PARENTS_AT_ONCE):
        stop = min(start + _PARENTS_AT_ONCE, len(first))
        few = slice(first[start], first[stop] if stop < len(first) else None)
        children = np.repeat(zero, (stop - start) * FANOUT)
        children[(place[few] - start) * FANOUT + numbers[few] % FANOUT] = nodes[few].view(
            _WHOLE_NODE
        )[:, 0]
        blocks.join_nodes(children.view(np.uint8).reshape(-1, FANOUT * NODE), parents[start:stop])
    return owners[first], parents


def leaves_digest(leaves: NDArray[np.uint64]) -> bytes:
    """xxh3-128 of an array of leaves as little-endian bytes: proves that two sides computed the
    same leaves without sending them."""
    return xxhash.xxh3_128_digest(np.ascontiguousarray(leaves, "<u8").data)
