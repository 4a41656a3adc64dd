"""The checksum of VHDX structures against a byte-by-byte twin and published values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from standby.disk.vhdx.crc32c import crc32c
from standby.testing.disks import random_bytes

POLYNOMIAL = 0x82F63B78


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


TABLE = _table()


def twin(data: bytes, value: int = 0) -> int:
    """CRC-32C one byte after another."""
    register = value ^ 0xFFFFFFFF
    for byte in data:
        register = (register >> 8) ^ TABLE[(register ^ byte) & 0xFF]
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_values(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


@pytest.mark.parametrize("length", [1, 3, 4, 255, 256, 257, 4096, 65536, 131072, 131073, 300_000])
def test_equals_the_twin_at_every_border(length: int) -> None:
    data = random_bytes(length, length)
    assert crc32c(data) == twin(data)


@given(st.binary(max_size=600), st.integers(0, 3000), st.integers(0, 0xFFFFFFFF))
def test_equals_the_twin_with_zeros_behind_and_any_start(
    data: bytes, zeros: int, value: int
) -> None:
    assert crc32c(data + bytes(zeros), value) == twin(data + bytes(zeros), value)


@given(st.binary(max_size=2000), st.data())
def test_goes_on_from_what_came_before(data: bytes, draw: st.DataObject) -> None:
    cut = draw.draw(st.integers(0, len(data)))
    assert crc32c(data[cut:], crc32c(data[:cut])) == crc32c(data)


def test_takes_any_buffer() -> None:
    data = random_bytes(5000, 1)
    expected = crc32c(data)
    assert crc32c(bytearray(data)) == expected
    assert crc32c(memoryview(data)) == expected
    assert crc32c(np.frombuffer(data, np.uint8)) == expected
