"""Plain-Python twins of the rolling kernel, written from the definitions in rolling.h."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from standby import chunking

WINDOW = 64
REACH = 32
_WORD = (1 << 64) - 1


def siphash(key: bytes, data: bytes) -> tuple[int, int]:
    """SipHash-2-4 with 128 bits of output: its two words."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v0, v1 = 0x736F6D6570736575 ^ k0, 0x646F72616E646F6D ^ k1 ^ 0xEE
    v2, v3 = 0x6C7967656E657261 ^ k0, 0x7465646279746573 ^ k1

    def left(x: int, bits: int) -> int:
        return (x << bits | x >> (64 - bits)) & _WORD

    def rounds(count: int) -> None:
        nonlocal v0, v1, v2, v3
        for _ in range(count):
            v0, v2 = v0 + v1 & _WORD, v2 + v3 & _WORD
            v1, v3 = left(v1, 13) ^ v0, left(v3, 16) ^ v2
            v0 = left(v0, 32)
            v2, v0 = v2 + v1 & _WORD, v0 + v3 & _WORD
            v1, v3 = left(v1, 17) ^ v2, left(v3, 21) ^ v0
            v2 = left(v2, 32)

    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 255])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v3 ^= word
        rounds(2)
        v0 ^= word
    v2 ^= 0xEE
    rounds(4)
    first = v0 ^ v1 ^ v2 ^ v3
    v1 ^= 0xDD
    rounds(4)
    return first, v0 ^ v1 ^ v2 ^ v3


def table(key: bytes) -> list[int]:
    """g of every byte."""
    (first, add, second, _), _ = chunking.derived(key)
    products = [(byte * first + add) & 0xFFFF for byte in range(256)]
    return [(product ^ product >> 7) * second & 0xFFFF for product in products]


def hits(data: bytes, key: bytes, bits: int) -> list[int]:
    """Positions whose hash has its top `bits` bits 0, by the loop over bytes."""
    g = table(key)
    third = chunking.derived(key)[0][3]
    gears = [0]
    for byte in data:
        gears.append(((gears[-1] << 1) + g[byte]) & 0xFFFF)
    return [
        at
        for at in range(REACH, len(gears))
        if ((gears[at] + gears[at - 16] * third) & 0xFFFF) >> (16 - bits) == 0
    ]


def candidates(data: bytes, key: bytes, bits: int) -> list[tuple[int, int, int]]:
    """(position, upper half of the first word, fingerprint) of every candidate."""
    spacing = max(1 << bits >> 4, 1)
    _, sip_key = chunking.derived(key)
    found = []
    for before, at in pairwise([-spacing, *hits(data, key, bits)]):
        if at - before > spacing and at >= WINDOW:
            chosen, fingerprint = siphash(sip_key, data[at - WINDOW : at])
            found.append((at, chosen >> 32, fingerprint))
    return found


def limit(period: int, bits: int) -> int:
    """What the upper half of the first word must be below, one position in `period`."""
    hits_in = 1 << bits
    spacing = max(hits_in >> 4, 1)
    survivors = (hits_in - 1) ** spacing
    return min(2**32 * hits_in * hits_in**spacing // (period * survivors), 2**32)


def anchors(data: bytes, key: bytes, period: int) -> list[tuple[int, int]]:
    """(position, fingerprint) of every anchor."""
    bits = period.bit_length() - 2
    bound = limit(period, bits)
    return [(at, mark) for at, word, mark in candidates(data, key, bits) if word < bound]


def cuts(data: bytes, key: bytes, sizes: tuple[int, int, int]) -> list[int]:
    """Where the pieces of `data` end."""
    min_size, target_size, max_size = sizes
    bits = min((target_size // 16).bit_length() - 1, 12)
    hard, easy = limit(4 * target_size, bits), limit(target_size // 4, bits)
    words = {at: word for at, word, _ in candidates(data, key, bits)}
    found = []
    last = 0
    for at in range(1, len(data) + 1):
        size = at - last
        bound = 0 if size < min_size else hard if size < target_size else easy
        if words.get(at, 2**32) < bound or size == max_size or at == len(data):
            found.append(at)
            last = at
    return found


def noise(length: int, seed: int = 1) -> bytes:
    """Bytes without a pattern."""
    return np.random.default_rng(seed).bytes(length)
