"""Places found by content: anchors, by which similar data recognises itself wherever it lies, and
cuts, which part a stream where its content says so.

Owns the kernel `rolling`. Everything here releases the GIL and reads any contiguous buffer. The
same key gives the same places on every machine and in every CPU variant; another key gives others.

    position p           lies in front of byte p; its window is data[p - 64 : p]
    hash                 Gear (FastCDC, Xia et al. 2016) with 16 bits of state over 16 bytes, plus
                         a multiple of that over the 16 before; in vectors by doubling the span,
                         without table look-ups
    candidate            a position whose hash has its top bits 0, and that has a distance from
                         the one before it: nothing within repeating data, constant windows least
    confirmation         SipHash-2-4, 128 bits, of the candidate's window under a key of its own:
                         the first word decides, the second is the fingerprint

The key decides which candidates count, and constants in the hash which places are candidates. That
keeps places unpredictable for who cannot see them; it is no proof against who watches sizes on the
wire (eprint 2025/558), which is why frames are batched and encrypted.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from standby._kernels import rolling
from standby._kernels.buffers import flat
from standby._kernels.variants import choose

Buffer = Any
Positions = NDArray[np.int64]
Fingerprints = NDArray[np.uint64]

WINDOW: int = rolling.WINDOW
"""Bytes in front of a position that decide about it."""

KEY_SIZE = 32
"""Bytes of a key: a tenant's."""

PERIODS = tuple(1 << bits for bits in range(7, 14))
"""How rare anchors can be: one in 128 positions to one in 8,192."""

_BITS_MAX = 12
"""The hash alone lets through at least 1 in 4,096: rarer things are left to the keyed word, since
the low bits of the hash depend on few bytes."""

choose(rolling)


def anchors(data: Buffer, key: bytes, period: int = 2048) -> tuple[Positions, Fingerprints]:
    """(n,) int64 positions, ascending, and (n,) uint64 fingerprints of the anchors in `data`:
    about one in `period` positions of data that does not repeat itself.

    A fingerprint depends on the key and the 64 bytes in front of the position alone, whatever the
    period. Positions are at least 64, and more than period / 32 apart, so n is at most
    32 * len(data) / period + 1. `period` is one of PERIODS. Data looked at in parts: begin each
    WINDOW + period / 32 bytes early and drop what is found in those, then no border is noticed.
    ValueError for a key that is not 32 bytes and for other periods. Thread-safe.
    """
    rules, limit, spacing = _anchor_rules(key, period)
    view = flat(data)
    room = memoryview(view).nbytes // (spacing + 1) + 1
    positions, fingerprints = np.empty(room, np.int64), np.empty(room, np.uint64)
    count = rules.anchors(view, limit, positions, fingerprints)
    return positions[:count].copy(), fingerprints[:count].copy()


def cuts(
    data: Buffer,
    key: bytes,
    min_size: int = 4096,
    target_size: int = 16384,
    max_size: int = 65536,
) -> Positions:
    """(n,) int64 positions, ascending, where pieces of `data` end; the last is its length.

    Pieces have `min_size` to `max_size` bytes, the last one maybe fewer. Normalised chunking of
    level 2 as in FastCDC: below `target_size` a cut is 16 times rarer than from there on, and the
    mean of random data is about target_size + 0.6 * min_size. See `CutStream`.
    """
    stream = CutStream(key, min_size, target_size, max_size)
    found = stream.feed(data)
    if stream.length > stream.last_cut:
        found = np.append(found, np.int64(stream.length))
    return found


class CutStream:
    """Cuts of bytes that come in parts: the same cuts, however the bytes are divided.

    A change moves the cuts near it only: those behind it depend on the 64 bytes in front of each,
    and on the sizes, which fall into step again. `min_size`, `target_size`, `max_size` ascend;
    `min_size` is at least 64 and `target_size` at least 128. ValueError for others and for a key
    that is not 32 bytes. One thread at a time.
    """

    def __init__(
        self,
        key: bytes,
        min_size: int = 4096,
        target_size: int = 16384,
        max_size: int = 65536,
    ) -> None:
        if not (WINDOW <= min_size <= target_size <= max_size and target_size >= 2 * WINDOW):
            raise ValueError(
                f"sizes must ascend from {WINDOW} on, with a target of at least {2 * WINDOW}: "
                f"{min_size}, {target_size}, {max_size}"
            )
        bits = min((target_size // 16).bit_length() - 1, _BITS_MAX)
        rules, spacing = _rules(_checked(key), bits)
        self._min_size = min_size
        self._kernel = rolling.Stream(
            rules,
            min_size,
            target_size,
            max_size,
            _limit(4 * target_size, bits, spacing),
            _limit(target_size // 4, bits, spacing),
        )

    @property
    def length(self) -> int:
        """Bytes so far."""
        return self._kernel.place[0]

    @property
    def last_cut(self) -> int:
        """Where the last piece that is decided ended, 0 at first."""
        return self._kernel.place[1]

    def feed(self, data: Buffer) -> Positions:
        """(n,) int64 positions in the stream, ascending, of the cuts that are decided now.

        The bytes behind the last one belong to a piece that is not yet at its end; at the end of
        the stream they are the last piece.
        """
        view = flat(data)
        length, last_cut = self._kernel.place
        size = memoryview(view).nbytes
        found = np.empty((length - last_cut + size) // self._min_size, np.int64)
        return found[: self._kernel.feed(view, found)].copy()


def kernel_variant() -> str:
    """The CPU variant in use; STANDBY_KERNEL forces one. sse2 is the scalar loop: 128-bit vectors
    are slower."""
    return rolling.variant()


def _checked(key: bytes) -> bytes:
    if len(key) != KEY_SIZE:
        raise ValueError(f"a key has {KEY_SIZE} bytes, not {len(key)}")
    return bytes(key)


@lru_cache(maxsize=64)
def _anchor_rules(key: bytes, period: int) -> tuple[rolling.Rules, int, int]:
    if period not in PERIODS:
        raise ValueError(f"period must be a power of two from 128 to 8192, not {period}")
    bits = period.bit_length() - 2
    rules, spacing = _rules(_checked(key), bits)
    return rules, _limit(period, bits, spacing), spacing


@lru_cache(maxsize=64)
def _rules(key: bytes, bits: int) -> tuple[rolling.Rules, int]:
    """The kernel's rules with 2^bits positions per hit, and the distance of candidates: a 16th of
    that, which costs 6 % of them and bounds what repeating data can cost."""
    spacing = 1 << max(bits - 4, 0)
    mixing, sip_key = derived(key)
    return rolling.Rules(np.array(mixing, np.uint16), sip_key, bits, spacing), spacing


def _limit(period: int, bits: int, spacing: int) -> int:
    """Below which the upper half of the keyed word must be for one position in `period`; exact."""
    hits = 1 << bits
    limit: int = (hits ** (spacing + 1) << 32) // (period * (hits - 1) ** spacing)
    return min(limit, 1 << 32)


def derived(key: bytes) -> tuple[tuple[int, int, int, int], bytes]:
    """Constants (first, add, second, third) of the hash, and the 16 bytes of SipHash's key.

    From BLAKE2b under `key`, counted up until a run of 0x00 and one of 0xFF are no hits: disks are
    full of them.
    """
    for count in range(1 << 16):
        salt = count.to_bytes(16, "little")
        made = hashlib.blake2b(key=key, salt=salt, person=b"standby rolling", digest_size=24)
        stuff = made.digest()
        words = [int.from_bytes(stuff[at : at + 2], "little") for at in range(0, 8, 2)]
        mixing = (words[0] | 1, words[1], words[2] | 1, words[3] | 1)
        if all(_of_run(byte, *mixing) >> 12 for byte in (0x00, 0xFF)):
            return mixing, stuff[8:]
    raise AssertionError("one key in 10^70,000 comes here")


def _of_run(byte: int, first: int, add: int, second: int, third: int) -> int:
    """The hash within a run of one value: g of it times -1, for each half."""
    product = (byte * first + add) & 0xFFFF
    return -((product ^ (product >> 7)) * second) * (1 + third) & 0xFFFF
