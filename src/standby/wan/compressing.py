"""zstd as the WAN accelerators use it: this package's only door to it.

`compression.zstd` of Python 3.14, or its backport, because it takes a prefix by reference
(`ZSTD_CCtx_refPrefix`): 217 MB/s for 32 KiB behind 120 KiB of prefix, against 54 MB/s through
python-zstandard's raw dictionaries, which are copied and digested per frame, with frames within a
few bytes of each other; and because its decompressor takes a limit of what it may give out, which
keeps a hostile frame from growing in memory.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from standby.wan.pacing import LEVEL

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Buffer = Any

WINDOW_LOG_MIN, WINDOW_LOG_MAX = 17, 27
"""What a stream's window may be: 128 KiB to 128 MiB, held by either side per disk."""

_Option = zstd.CompressionParameter
_Limit = zstd.DecompressionParameter


class Damaged(Exception):
    """Compressed bytes that do not become what was announced."""


class Stream:
    """One long compressed stream: what comes later may refer to what came before, `window_log`
    bits back. Not thread-safe."""

    def __init__(self, window_log: int, level: int = LEVEL) -> None:
        self.level = level
        self._compressor = zstd.ZstdCompressor(
            options={
                _Option.compression_level: level,
                _Option.window_log: window_log,
                _Option.enable_long_distance_matching: 1,
            }
        )

    def add(self, data: Buffer) -> bytes:
        """The next part of the stream, whole: the other side gets all of `data` from it."""
        return self._compressor.compress(data, zstd.ZstdCompressor.FLUSH_BLOCK)


class Unstream:
    """What is in a Stream, part for part. Not thread-safe."""

    def __init__(self, window_log_max: int) -> None:
        self._decompressor = zstd.ZstdDecompressor(options={_Limit.window_log_max: window_log_max})

    def take(self, part: Buffer, length: int) -> bytes:
        """The `length` bytes in the next part; `Damaged` when it holds more or fewer, and from
        then on the stream is of no use."""
        return _exactly(self._decompressor, part, length)


def compressed(data: Buffer) -> bytes:
    """One frame of `data` alone."""
    return zstd.compress(data, LEVEL)


class _Sampling(threading.local):
    """A context for each thread: a new one costs more than a sample."""

    def __init__(self) -> None:
        self.compressor = zstd.ZstdCompressor(level=1)


_sampling = _Sampling()


def sampled(data: Buffer) -> int:
    """How long `data` is compressed, in a hurry."""
    return len(_sampling.compressor.compress(data, zstd.ZstdCompressor.FLUSH_FRAME))


def decompressed(frame: Buffer, length: int) -> bytes:
    """The `length` bytes in the frame; `Damaged` for anything else."""
    return _exactly(zstd.ZstdDecompressor(), frame, length)


def compressed_behind(prefix: Buffer, data: Buffer, *, is_long: bool = False) -> bytes:
    """One frame of `data` that may refer to `prefix`; `is_long` where that is beyond 100 MB."""
    log = max(WINDOW_LOG_MIN, (len(prefix) + len(data)).bit_length())
    return zstd.compress(
        data,
        options={
            _Option.compression_level: LEVEL,
            _Option.window_log: log,
            _Option.enable_long_distance_matching: int(is_long),
        },
        zstd_dict=zstd.ZstdDict(prefix, is_raw=True).as_prefix,
    )


def decompressed_behind(prefix: Buffer, frame: Buffer, length: int) -> bytes:
    """The `length` bytes in a frame made behind the same prefix; `Damaged` for anything else."""
    dictionary = zstd.ZstdDict(prefix, is_raw=True).as_prefix
    return _exactly(zstd.ZstdDecompressor(zstd_dict=dictionary), frame, length)


def _exactly(decompressor: zstd.ZstdDecompressor, frame: Buffer, length: int) -> bytes:
    try:
        data = decompressor.decompress(frame, length)
        # One byte beyond would be one too many; asking for it also takes a frame's end.
        rest = b"" if decompressor.eof else decompressor.decompress(b"", 1)
    except (zstd.ZstdError, EOFError, ValueError) as exc:
        raise Damaged(str(exc)) from exc
    if len(data) != length or rest or decompressor.unused_data:
        raise Damaged(f"not the {length} bytes announced")
    return data
