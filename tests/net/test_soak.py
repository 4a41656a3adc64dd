"""A short soak; `python tests/soak.py` is the long one."""

from __future__ import annotations

from pathlib import Path

from net.nursery import Nursery
from soak import soak


def test_nothing_is_lost_or_left_whatever_dies(nursery: Nursery, tmp_path: Path) -> None:
    done = soak(tmp_path / "site", nursery, sessions=5, seed=4)
    assert sum(done.outcomes.values()) >= 6
