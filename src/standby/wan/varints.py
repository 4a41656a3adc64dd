"""Columns of numbers as bytes: LEB128, a whole array at a time.

A column is its count, then its values, each in groups of 7 bits, lowest first, the high bit set in
all but the last byte. Signed differences go through `zigzag` first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]

BYTES_MAX = 10
"""Of one number: 64 bits in groups of 7."""


class Malformed(Exception):
    """Bytes that are no columns, or say more than they may; the caller names its peer."""


def packed(values: NDArray[Any]) -> bytes:
    """The values, each as LEB128, without a count."""
    numbers = np.ascontiguousarray(values, np.uint64)
    largest = int(numbers.max(initial=0))
    if largest < 0x80:
        return numbers.astype(np.uint8).tobytes()
    sizes = np.ones(len(numbers), np.int64)
    for group in range(1, BYTES_MAX):
        if largest >> (7 * group) == 0:
            break
        sizes += numbers >= np.uint64(1 << (7 * group))
    starts = np.cumsum(sizes) - sizes
    out = np.empty(int(sizes.sum()), np.uint8)
    for group in range(int(sizes.max(initial=0))):
        has = sizes > group
        low = (numbers[has] >> np.uint64(7 * group)).astype(np.uint8) & np.uint8(0x7F)
        out[starts[has] + group] = low | ((sizes[has] > group + 1).astype(np.uint8) << 7)
    return out.tobytes()


def zigzag(values: NDArray[np.int64]) -> Numbers:
    """Signed numbers as unsigned ones, small where they are near 0."""
    return ((values << 1) ^ (values >> 63)).view(np.uint64)


def unzigzag(values: Numbers) -> NDArray[np.int64]:
    """What `zigzag` was given."""
    halves: NDArray[np.int64] = (values >> np.uint64(1)).view(np.int64)
    return halves ^ -((values & np.uint64(1)).view(np.int64))


class Writer:
    """Puts numbers and columns one behind the other."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def number(self, value: int) -> None:
        """One number."""
        made = bytearray()
        while value >= 0x80:
            made.append(value & 0x7F | 0x80)
            value >>= 7
        made.append(value)
        self._parts.append(bytes(made))

    def column(self, values: NDArray[Any]) -> None:
        """A count and as many numbers."""
        self.number(len(values))
        if len(values):
            self._parts.append(packed(values))

    def raw(self, data: bytes) -> None:
        """Bytes as they are; the reader must know how many."""
        self._parts.append(data)

    def to_bytes(self) -> bytes:
        """All of it."""
        return b"".join(self._parts)


class Reader:
    """Takes apart what a Writer made; `Malformed` for anything else."""

    def __init__(self, data: Any) -> None:
        self._view = memoryview(data).cast("B")
        self._data: Any = np.frombuffer(self._view, np.uint8)
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes not taken yet."""
        return len(self._data) - self._at

    def number(self, largest: int) -> int:
        """One number, not above `largest`."""
        value = shift = 0
        for byte in self._view[self._at : self._at + BYTES_MAX]:
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        else:
            raise Malformed("a number that does not end")
        if value >> 64:
            raise Malformed("a number of more than 64 bits")
        if value > largest:
            raise Malformed(f"{value} where at most {largest} is allowed")
        self._at += shift // 7
        return value

    def column(self, count_max: int, largest: int) -> Numbers:
        """A column of at most `count_max` numbers, none above `largest`."""
        return self._take(self.number(count_max), largest)

    def raw(self, length: int) -> memoryview:
        """The next bytes as they are."""
        if length > self.left:
            raise Malformed(f"{length} bytes announced, {self.left} there")
        self._at += length
        return self._view[self._at - length : self._at]

    def done(self) -> None:
        """Nothing may be left."""
        if self.left:
            raise Malformed(f"{self.left} bytes too many")

    def _take(self, count: int, largest: int) -> Numbers:
        if count == 0:
            return np.empty(0, np.uint64)
        short = self._data[self._at : self._at + count]
        if len(short) == count and int(short.max()) < 0x80:  # all of one byte
            self._at += count
            if int(short.max()) > largest:
                raise Malformed(f"{int(short.max())} where at most {largest} is allowed")
            return short.astype(np.uint64)  # type: ignore[no-any-return]
        window = self._data[self._at : self._at + count * BYTES_MAX]
        ends = np.flatnonzero(window < 0x80)[:count]
        if len(ends) < count:
            raise Malformed(f"{count} numbers announced, {len(ends)} there")
        starts = np.concatenate(([0], ends[:-1] + 1))
        sizes = ends - starts + 1
        if int(sizes.max()) > BYTES_MAX or (window[ends[sizes == BYTES_MAX]] > 1).any():
            raise Malformed("a number of more than 64 bits")
        values: Numbers = np.zeros(count, np.uint64)
        for group in range(int(sizes.max())):
            has = sizes > group
            low = window[starts[has] + group].astype(np.uint64) & np.uint64(0x7F)
            values[has] |= low << np.uint64(7 * group)
        if int(values.max()) > largest:
            raise Malformed(f"{int(values.max())} where at most {largest} is allowed")
        self._at += int(ends[-1]) + 1
        return values
