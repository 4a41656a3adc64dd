"""The digest tree of a disk (RULES 5), and the `.digests` files that hold parts of it.

`src/standby/FORMAT.md` describes both to the byte.
"""

from standby.digesting.chain import DigestChain, merge_digests
from standby.digesting.digest_file import DigestFile
from standby.digesting.digest_writer import DigestWriter
from standby.digesting.tree import (
    BLOCK,
    FANOUT,
    LEAVES_PER_PAGE,
    PAGE,
    PIECE,
    ZERO_LEAF,
    block_nodes,
    leaves,
    leaves_digest,
    page_nodes,
    parents,
    root_of_pages,
    zero_node,
)

__all__ = [
    "BLOCK",
    "FANOUT",
    "LEAVES_PER_PAGE",
    "PAGE",
    "PIECE",
    "ZERO_LEAF",
    "DigestChain",
    "DigestFile",
    "DigestWriter",
    "block_nodes",
    "leaves",
    "leaves_digest",
    "merge_digests",
    "page_nodes",
    "parents",
    "root_of_pages",
    "zero_node",
]
