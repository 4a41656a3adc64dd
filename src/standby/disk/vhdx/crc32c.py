"""CRC-32C (Castagnoli) over whole buffers, with NumPy.

The checksum's register is linear over GF(2): the register after a message, starting from zero, is
the xor of one table entry per byte, the table depending only on how many bytes follow. So lanes of
512 bytes are looked up all at once and reduced by xor, and the lanes are then joined in a tree
whose operators "advance over 2^k lanes of zeros" are squares of one another (the construction of
zlib's crc32_combine). Measured: about 20 us for a header, 250 MB/s for long buffers, which is far
more than a log of a few entries per flush asks for.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from standby.ports import Buffer

Words = npt.NDArray[np.uint32]

_POLYNOMIAL = 0x82F63B78
_LANE = 512
_STEP = 128 * 1024
_ALL = 0xFFFFFFFF


def crc32c(data: Buffer, value: int = 0) -> int:
    """The CRC-32C of `data`; `value` is the checksum of what came before it."""
    view = np.frombuffer(data, dtype=np.uint8)
    register = value ^ _ALL
    for start in range(0, view.size, _STEP):
        register = _advanced(register, view[start : start + _STEP])
    return register ^ _ALL


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
    registers: npt.NDArray[Any] = np.bitwise_xor.reduce(found, axis=1)
    level = 0
    while registers.size > 1:
        if registers.size % 2:
            registers = np.insert(registers, 0, np.uint32(0))
        registers = _shifted(registers[0::2], level) ^ registers[1::2]
        level += 1
    return int(registers[0])


@functools.cache
def _byte_table() -> Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
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
def _operator(level: int) -> Words:
    """(4, 256) tables that advance a register over 2^level lanes of zero bytes."""
    basis = np.uint32(1) << np.arange(32, dtype=np.uint32)
    if level == 0:
        byte_table = _byte_table()
        for _ in range(_LANE):
            basis = (basis >> 8) ^ byte_table[basis & 0xFF]
    else:
        basis = _shifted(_shifted(basis, level - 1), level - 1)
    tables = np.zeros((4, 256), dtype=np.uint32)
    values = np.arange(256)
    for bit in range(32):
        chosen = (values >> (bit % 8)) & 1 == 1
        tables[bit // 8, chosen] ^= basis[bit]
    return tables


def _shifted(registers: Words, level: int) -> Words:
    tables = _operator(level)
    result: Words = tables[0].take(registers & 0xFF)
    result ^= tables[1].take((registers >> 8) & 0xFF)
    result ^= tables[2].take((registers >> 16) & 0xFF)
    result ^= tables[3].take(registers >> 24)
    return result
