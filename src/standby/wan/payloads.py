"""How pieces are kept in a record: as they are, or as one zstd frame where that is smaller."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from standby.wan.segment_file import PIECE, RAW, ZSTD, SegmentDamaged

Buffer = Any
Pieces = npt.NDArray[np.uint8]
"""(n, 4096) uint8."""

RUN_PIECES = 32
"""Pieces of one record: 128 KiB is where a longer frame gains little, and what one piece that is
asked for alone costs to unpack stays near 0.1 ms."""

LEVEL = -1
"""The cache packs while batches wait, and unpacking is most of what a hit costs. Of files of a
system level 1 made 1/2.38, unpacked at 0.9 GB/s; level -1 1/2.21, at 1.3; packing takes both as
long. -5 would make 1/1.84, at 1.5."""

_GAIN = 16
"""A frame that saves less than this share of the pieces is not worth unpacking."""


class _Contexts(threading.local):
    """zstd contexts are of one thread each."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False)
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


def packed(pieces: Pieces) -> tuple[Buffer, int]:
    """(payload, codec) of contiguous pieces; the payload may be the pieces' own memory."""
    frame = _contexts.compressor.compress(pieces.data)
    if len(frame) < pieces.nbytes - pieces.nbytes // _GAIN:
        return frame, ZSTD
    return pieces.data.cast("B"), RAW


def unpacked(payload: Buffer, codec: int, count: int) -> Pieces:
    """The `count` pieces in a payload; raises SegmentDamaged when it holds anything else."""
    if codec == RAW:
        if len(payload) != count * PIECE:
            raise SegmentDamaged("a payload of another length")
        return np.frombuffer(payload, dtype=np.uint8).reshape(count, PIECE)
    try:
        if zstandard.frame_content_size(payload) != count * PIECE:
            raise SegmentDamaged("a frame of another length")
        data = _contexts.decompressor.decompress(payload, max_output_size=count * PIECE)
    except zstandard.ZstdError as exc:
        raise SegmentDamaged(f"a frame that does not unpack: {exc}") from exc
    if len(data) != count * PIECE:
        raise SegmentDamaged("a frame of another length")
    return np.frombuffer(data, dtype=np.uint8).reshape(count, PIECE)
