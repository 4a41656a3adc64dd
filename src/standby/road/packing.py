"""What a batch becomes on a link that is a network: one zstd frame."""

from __future__ import annotations

from typing import Any

import zstandard

from standby.errors import ProtocolError

Buffer = Any

LEVELS = {"fast": 3, "high": 9}
"""zstd levels by the job's `compression`. 3: 0.4 GB/s a core, within 1 % of -4 on Debian disks;
9: 12 % fewer bytes at a quarter of the speed (peers' measurements on the same disks)."""

UNPACKED_MAX = 64 * 1024 * 1024
"""A frame that says it holds more is refused before memory is set aside."""


class Packer:
    """Packs batches at one level. Not thread-safe: one per thread."""

    def __init__(self, compression: str) -> None:
        # A window of 8 MiB lets one batch refer to all of itself; at level 3 the default of 2 MiB
        # costs 1-2 % on disks.
        parameters = zstandard.ZstdCompressionParameters.from_level(
            LEVELS[compression], window_log=23
        )
        self._compressor = zstandard.ZstdCompressor(compression_params=parameters)

    def pack(self, *parts: Buffer) -> bytes:
        """One zstd frame of all parts in order."""
        total = sum(memoryview(part).nbytes for part in parts)
        session = self._compressor.compressobj(size=total)
        pieces = [session.compress(part) for part in parts]
        pieces.append(session.flush())
        return b"".join(pieces)


COMPRESSIONS = ("none", *LEVELS, "auto")
"""What a task may be told: 'auto' packs as 'fast' does, while it pays."""


def packer_for(compression: str) -> Packer | None:
    """A packer for one thread of a task; None where nothing is ever packed."""
    if compression == "none":
        return None
    return Packer("fast" if compression == "auto" else compression)


class AutoPacking:
    """Whether packing the next batches of one disk task makes it faster. Not thread-safe.

    With link rate L, packing rate P (both bytes/s of this task so far, old ones counting less) and
    r packed bytes per byte, a byte costs 1/L as it is and 1/P + r/L packed: packing pays when
    P (1 - r) > L. It is decided anew every few batches, from what `sent` and `packed` were told;
    while nothing is packed, `wants_sample` asks now and then for one of `SAMPLE` bytes, which
    costs less than a thousandth of the time. Without any measurement it packs, if a sample shrinks:
    a batch too many packed costs 40 ms, one too few on a slow line minutes.
    """

    EVERY = 4
    """Batches between decisions."""

    SAMPLE_EVERY = 16
    SAMPLE = 256 * 1024

    BEGIN, LEAVE = 1.1, 0.7
    """Factors of L to begin and to leave. While packing goes on the socket's buffer drains, and
    sending then looks up to twice as fast as the link is: without the gap it would swing."""

    def __init__(self, threads: int = 1) -> None:
        """`threads` pack at the same time for the one link."""
        self._threads = threads
        self._link = [0.0, 0.0]  # bytes, seconds
        self._packing = [0.0, 0.0, 0.0]  # bytes, seconds, bytes packed
        self._batches = 0
        self._since_sample = self.SAMPLE_EVERY
        self._should_pack = True

    @property
    def should_pack(self) -> bool:
        """Whether to pack the next batch."""
        return self._should_pack

    @property
    def wants_sample(self) -> bool:
        """Whether to pack some `SAMPLE` bytes of the next batch only to see (`packed`)."""
        return self._since_sample >= self.SAMPLE_EVERY

    def packed(self, length: int, packed_length: int, seconds: float) -> None:
        """A batch, or a sample, of `length` bytes became `packed_length` in `seconds`."""
        for index, value in enumerate((length, seconds, packed_length)):
            self._packing[index] += value
        if self._since_sample >= self.SAMPLE_EVERY and self._batches == 0:
            self._decide()  # the very first: incompressible data is not packed even once
        self._since_sample = 0

    def sent(self, length: int, seconds: float) -> None:
        """A batch of `length` bytes, packed or not, went out and kept its sender for `seconds`."""
        self._link[0] += length
        self._link[1] += seconds
        self._batches += 1
        self._since_sample += 0 if self._should_pack else 1
        if self._batches == 1 or self._batches % self.EVERY == 0:
            self._decide()

    def _decide(self) -> None:
        length, seconds, packed_length = self._packing
        if not length:
            return
        gain = max(0.0, 1 - packed_length / length)
        pack_bps = self._threads * length / max(seconds, 1e-9)
        if self._link[0]:
            link_bps = self._link[0] / max(self._link[1], 1e-9)
            factor = self.LEAVE if self._should_pack else self.BEGIN
            self._should_pack = pack_bps * gain > link_bps * factor
        else:
            self._should_pack = gain > 0.05
        self._link = [value / 2 for value in self._link]
        self._packing = [value / 2 for value in self._packing]


class Unpacker:
    """Unpacks what a Packer packed. Not thread-safe: one per thread."""

    def __init__(self, peer: str) -> None:
        self._decompressor = zstandard.ZstdDecompressor()
        self._peer = peer

    def unpack(self, frame: Buffer) -> bytes:
        """The bytes in `frame`; raises ProtocolError for anything damaged or too large."""
        try:
            size = zstandard.frame_content_size(frame)
            if not 0 <= size <= UNPACKED_MAX:
                raise ProtocolError(self._peer, f"packed batch says it holds {size} bytes")
            return self._decompressor.decompress(frame, max_output_size=UNPACKED_MAX)
        except zstandard.ZstdError as exc:
            raise ProtocolError(self._peer, f"packed batch is damaged: {exc}") from exc
