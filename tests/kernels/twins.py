"""Plain-Python twins of the kernels: slow, obvious, and what every CPU variant must equal.

`xxh3_64` and `xxh3_128` follow the published description of XXH3 for more than 240 bytes step by
step, as a second witness beside the xxhash package.
"""

from __future__ import annotations

import xxhash

PIECE = 4096
MASK = (1 << 64) - 1
P32_1, P32_2, P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
P64_1, P64_2, P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P64_4, P64_5, MX_1 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5, 0x165667919E3779F9
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)


def _words(data: bytes, offset: int, count: int) -> list[int]:
    return [
        int.from_bytes(data[at : at + 8], "little") for at in range(offset, offset + 8 * count, 8)
    ]


def _accumulate(lanes: list[int], stripe: list[int], key: int) -> None:
    secret = _words(SECRET, key, 8)
    for i in range(8):
        value = stripe[i] ^ secret[i]
        lanes[i ^ 1] = (lanes[i ^ 1] + stripe[i]) & MASK
        lanes[i] = (lanes[i] + (value & 0xFFFFFFFF) * (value >> 32)) & MASK


def _lanes(data: bytes) -> list[int]:
    assert len(data) > 240
    lanes = [P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1]
    blocks = (len(data) - 1) // 1024
    for block in range(blocks):
        for n in range(16):
            _accumulate(lanes, _words(data, block * 1024 + n * 64, 8), n * 8)
        secret = _words(SECRET, 128, 8)
        lanes = [((x ^ (x >> 47) ^ s) * P32_1) & MASK for x, s in zip(lanes, secret, strict=True)]
    for n in range((len(data) - 1 - blocks * 1024) // 64):
        _accumulate(lanes, _words(data, blocks * 1024 + n * 64, 8), n * 8)
    _accumulate(lanes, _words(data, len(data) - 64, 8), 121)
    return lanes


def _merged(lanes: list[int], key: int, start: int) -> int:
    secret = _words(SECRET, key, 8)
    total = start
    for i in range(0, 8, 2):
        product = (lanes[i] ^ secret[i]) * (lanes[i + 1] ^ secret[i + 1])
        total += (product & MASK) ^ (product >> 64)
    total &= MASK
    total ^= total >> 37
    total = (total * MX_1) & MASK
    return total ^ (total >> 32)


def xxh3_64(data: bytes) -> int:
    """XXH3-64 of more than 240 bytes."""
    return _merged(_lanes(data), 11, (len(data) * P64_1) & MASK)


def xxh3_128(data: bytes) -> bytes:
    """XXH3-128 of more than 240 bytes, canonical."""
    lanes = _lanes(data)
    low = _merged(lanes, 11, (len(data) * P64_1) & MASK)
    high = _merged(lanes, 117, ~(len(data) * P64_2) & MASK)
    return high.to_bytes(8, "big") + low.to_bytes(8, "big")


def pieces(data: bytes, granularity: int = PIECE) -> list[bytes]:
    """`data` cut; the last piece as short as it is."""
    return [data[at : at + granularity] for at in range(0, len(data), granularity)]


def leaves(data: bytes) -> list[int]:
    """The leaf of each piece, by the xxhash package."""
    return [xxhash.xxh3_64_intdigest(piece.ljust(PIECE, b"\0")) for piece in pieces(data)]


def runs_of(marks: list[int | None]) -> list[list[int]]:
    """Maximal runs [first, stop, mark] of equal marks, None left out."""
    runs: list[list[int]] = []
    for i, mark in enumerate(marks):
        if mark is None:
            continue
        if runs and runs[-1][1] == i and runs[-1][2] == mark:
            runs[-1][1] = i + 1
        else:
            runs.append([i, i + 1, mark])
    return runs


def scan(data: bytes, stored: list[int]) -> tuple[list[int], list[list[int]]]:
    """Leaves, and the runs of pieces whose leaf is not the stored one."""
    new = leaves(data)
    marks = [
        None if leaf == old else int(any(piece))
        for leaf, old, piece in zip(new, stored, pieces(data), strict=True)
    ]
    return new, runs_of(marks)


def compact(data: bytes, runs: list[list[int]]) -> bytes:
    """The data runs one after the other."""
    return b"".join(data[a * PIECE : b * PIECE] for a, b, kind in runs if kind)


def zero_runs(data: bytes, granularity: int) -> list[list[int]]:
    """All pieces as runs by whether they hold anything."""
    return runs_of([int(any(piece)) for piece in pieces(data, granularity)])


def differing(a: bytes, b: bytes, granularity: int) -> list[list[int]]:
    """Runs [first, stop] of pieces that differ."""
    pairs = zip(pieces(a, granularity), pieces(b, granularity), strict=True)
    return [run[:2] for run in runs_of([1 if x != y else None for x, y in pairs])]
