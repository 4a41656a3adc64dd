"""Counts in sentences."""

from __future__ import annotations

import pytest

from standby.units import counted


@pytest.mark.parametrize(("count", "text"), [(0, "0 disks"), (1, "1 disk"), (2, "2 disks")])
def test_one_is_singular(count: int, text: str) -> None:
    assert counted(count, "disk") == text
