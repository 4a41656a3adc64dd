"""Every CPU variant of the rolling kernel against its plain-Python twin, and what it promises."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import rolling_twins as twins
from kernels.rolling_twins import WINDOW, noise
from standby import chunking
from standby._kernels import rolling
from standby.units import KiB, MiB

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
SIZES = [(64, 128, 256), (64, 300, 1000), (100, 512, 2048), (256, 2048, 8192)]

SETTINGS = settings(
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(params=rolling.variants(), autouse=True)
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    before = rolling.variant()
    rolling.select(request.param)
    yield request.param
    rolling.select(before)


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Bytes of noise, runs, short and long patterns and text, of any length up to some strips."""
    data = bytearray()
    for kind, size, seed in draw(
        st.lists(
            st.tuples(
                st.sampled_from(["noise", "run", "pattern", "words"]),
                st.sampled_from([0, 1, 15, 16, 63, 64, 65, 500, 4095, 4096, 4097]),
                st.integers(0, 255),
            ),
            max_size=5,
        )
    ):
        if kind == "noise":
            data += noise(size, seed)
        elif kind == "run":
            data += bytes([seed]) * size
        elif kind == "pattern":
            data += (noise(1 + seed % 50, seed) * size)[:size]
        else:
            data += (b"%d words of a log line; " % seed * size)[:size]
    return bytes(data)


def anchors_of(data: bytes, key: bytes = KEY, period: int = 2048) -> list[tuple[int, int]]:
    positions, fingerprints = chunking.anchors(data, key, period)
    return list(zip(positions.tolist(), fingerprints.tolist(), strict=True))


def test_the_twin_computes_siphash_as_its_authors_do():
    first, second = twins.siphash(bytes(range(16)), b"")
    output = (first.to_bytes(8, "little") + second.to_bytes(8, "little")).hex()
    assert output == "a3817f04ba25a8e66df67214c7550293"


@given(contents(), st.sampled_from(chunking.PERIODS[:5]), st.sampled_from([KEY, OTHER_KEY]))
@SETTINGS
def test_anchors_equal_their_twin(data: bytes, period: int, key: bytes):
    assert anchors_of(data, key, period) == twins.anchors(data, key, period)


@given(contents(), st.sampled_from(SIZES))
@SETTINGS
def test_cuts_equal_their_twin(data: bytes, sizes: tuple[int, int, int]):
    assert chunking.cuts(data, KEY, *sizes).tolist() == twins.cuts(data, KEY, sizes)
