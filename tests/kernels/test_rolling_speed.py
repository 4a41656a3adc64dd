"""The vector variants of the rolling kernel are worth having: not run under sanitizers."""

from __future__ import annotations

import time

import numpy as np
import pytest

from standby import chunking
from standby._kernels import rolling
from standby.units import KiB

GOALS = {"avx2": 1.4, "avx512": 2.0}
"""Times the scalar loop, in cache. What is built without optimisation, or by a compiler that falls
back to narrower vectors, is far below."""

VECTORS = [name for name in rolling.variants() if name in GOALS]


@pytest.mark.skipif(not VECTORS, reason="this machine has no vector variant")
@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_variant_is_worth_its_code(name: str):
    """By processor time of this thread, the fastest of many turns taken in turn, and no more of
    them than it needs: a loaded machine makes it longer, not false."""
    data = np.frombuffer(np.random.default_rng(1).bytes(256 * KiB), np.uint8)
    key = bytes(32)
    best = {"scalar": float("inf"), name: float("inf")}
    before = rolling.variant()
    try:
        for turn in range(400):
            for variant in best:
                rolling.select(variant)
                start = time.thread_time()
                for _ in range(4):
                    chunking.anchors(data, key)
                best[variant] = min(best[variant], time.thread_time() - start)
            if turn > 20 and best["scalar"] > 1.1 * GOALS[name] * best[name]:
                break
    finally:
        rolling.select(before)
    ratio = best["scalar"] / best[name]
    assert ratio > GOALS[name], f"{name} is {ratio:.2f} times as fast as the scalar loop"
