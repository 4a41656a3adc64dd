"""What direct mode would have sent, told from samples."""

from __future__ import annotations

import numpy as np

from standby.road.wan_direct import ONE_PART_IN, PARTS_FIRST, DirectBatches
from wan_pairs import noise, text


def estimated(parts: list[np.ndarray]) -> int:
    direct = DirectBatches(1 << 40)
    for part in parts:
        direct.sample(part)
    return direct.estimated


def test_parts_that_are_not_sampled_count_like_those_that_are() -> None:
    parts = [text(64, 1), noise(64, 2)]
    all_sampled = estimated(parts * (PARTS_FIRST // 2))
    many = estimated(parts * (PARTS_FIRST // 2 * 9))
    assert abs(many / all_sampled / 9 - 1) < 0.1


def test_content_that_changes_late_is_noticed() -> None:
    early = [text(64, 1)] * PARTS_FIRST
    late = estimated([*early, *[noise(64, 2)] * (64 * ONE_PART_IN)]) - estimated(early)
    assert late > 0.5 * 64 * ONE_PART_IN * noise(64).nbytes
