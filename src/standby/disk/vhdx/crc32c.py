"""CRC-32C (Castagnoli) over whole buffers, with NumPy.

The checksum's register is linear over GF(2): the register after a message, starting from zero, is
the xor of one table entry per byte, the table depending only on how many bytes follow. So lanes of
256 bytes are looked up all at once and reduced by xor, and the lanes are then joined in a tree
whose operators "advance over 2^k zero bytes" are squares of one another (the construction of
zlib's crc32_combine). The same operators pass over the zeros that headers and region tables mostly
consist of. Measured: 0.05 ms for a region table, 150 MB/s for dense data; a flush's log entry has
some ten KiB.
"""

from __future__ import annotations

import functools
from array import array

import numpy as np
import numpy.typing as npt

from standby.ports import Buffer

Words = npt.NDArray[np.uint32]

_POLYNOMIAL = 0x82F63B78
_LANE_POWER = 8
_LANE = 1 << _LANE_POWER
_STEP = 128 * 1024
_ALL = 0xFFFFFFFF


def crc32c(data: Buffer, value: int = 0) -> int:
    """The CRC-32C of `data`; `value` is the checksum of what came before it."""
    view = np.frombuffer(data, dtype=np.uint8)
    dense = _dense_size(view)
    register = value ^ _ALL
    for start in range(0, dense, _STEP):
        register = _advanced(register, view[start : min(start + _STEP, dense)])
    return _over_zeros(register, view.size - dense) ^ _ALL


def _dense_size(data: npt.NDArray[np.uint8]) -> int:
    """How many bytes are left without the zeros at the end."""
    if data.size == 0 or data[-1]:
        return data.size
    whole = data.size // 8 * 8
    tail = np.flatnonzero(data[whole:])
    if tail.size:
        return whole + int(tail[-1]) + 1
    words = np.flatnonzero(data[:whole].view(np.uint64))
    if not words.size:
        return 0
    start = int(words[-1]) * 8
    return start + int(np.flatnonzero(data[start : start + 8])[-1]) + 1


def _advanced(register: int, data: npt.NDArray[np.uint8]) -> int:
    if data.size < 4:
        table = _byte_table()
        for byte in data.tolist():
            register = (register >> 8) ^ int(table[(register ^ byte) & 0xFF])
        return register
    lanes = -(-data.size // _LANE)
    padded = np.zeros(lanes * _LANE, dtype=np.uint8)  # leading zeros do not move a zero register
    start = padded.size - data.size
    padded[start:] = data
    padded[start : start + 4] ^= np.frombuffer(register.to_bytes(4, "little"), dtype=np.uint8)
    flat_table, places = _lane_tables()
    found = flat_table.take(padded.reshape(lanes, _LANE) + places)
    return _joined(np.bitwise_xor.reduce(found, axis=1))


def _joined(registers: Words) -> int:
    """The register after lanes that were looked up apart, in order."""
    power = _LANE_POWER
    while registers.size > 1:
        even = registers.size + registers.size % 2
        pairs = np.zeros(even, dtype=np.uint32)
        pairs[even - registers.size :] = registers
        pairs[1::2] ^= _shifted(pairs[0::2], power)
        registers = pairs[1::2]
        power += 1
    return int(registers[0])


@functools.cache
def _byte_table() -> Words:
    table: Words = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ (table & np.uint32(1)) * np.uint32(_POLYNOMIAL)
    return table


@functools.cache
def _lane_tables() -> tuple[Words, npt.NDArray[np.int64]]:
    """What each byte value adds at each place of a lane, flat, and where each place begins."""
    byte_table = _byte_table()
    rows = np.empty((_LANE, 256), dtype=np.uint32)
    row = byte_table
    for place in range(_LANE - 1, -1, -1):
        rows[place] = row
        row = (row >> 8) ^ byte_table[row & 0xFF]
    return rows.reshape(-1), np.arange(_LANE, dtype=np.int64) * 256


@functools.cache
def _images(power: int) -> tuple[int, ...]:
    """What 2^power zero bytes make of each of the register's 32 bits."""
    if power == 0:
        table = _byte_table().tolist()
        return tuple((1 << bit >> 8) ^ table[1 << bit & 0xFF] for bit in range(32))
    half = _images(power - 1)
    return tuple(_mapped(half, image) for image in half)


def _mapped(images: tuple[int, ...], register: int) -> int:
    result = 0
    while register:
        bit = register.bit_length() - 1
        result ^= images[bit]
        register ^= 1 << bit
    return result


def _over_zeros(register: int, count: int) -> int:
    """The register after `count` zero bytes."""
    power = 0
    while count:
        if count & 1:
            first, second, third, fourth = _byte_operator(power)
            register = (
                first[register & 0xFF]
                ^ second[register >> 8 & 0xFF]
                ^ third[register >> 16 & 0xFF]
                ^ fourth[register >> 24]
            )
        count >>= 1
        power += 1
    return register


@functools.cache
def _byte_operator(power: int) -> tuple[array[int], ...]:
    """`_operator` for one register: Python looks an array up faster than NumPy's."""
    return tuple(array("I", row.tobytes()) for row in _operator(power))


@functools.cache
def _operator(power: int) -> Words:
    """(4, 256) tables that advance many registers over 2^power zero bytes."""
    tables = np.zeros((4, 256), dtype=np.uint32)
    values = np.arange(256)
    for bit, image in enumerate(_images(power)):
        tables[bit // 8, (values >> bit % 8) & 1 == 1] ^= np.uint32(image)
    return tables


def _shifted(registers: Words, power: int) -> Words:
    tables = _operator(power)
    result: Words = tables[0].take(registers & 0xFF)
    result ^= tables[1].take((registers >> 8) & 0xFF)
    result ^= tables[2].take((registers >> 16) & 0xFF)
    result ^= tables[3].take(registers >> 24)
    return result
