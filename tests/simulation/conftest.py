"""Fixtures of the simulation tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from simulation.served import Served
from simulation.site import Site


@pytest.fixture(autouse=True)
def _quick_starts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites start their processes in a nursery where there is one."""
    if sys.platform == "linux":
        monkeypatch.setattr(Site, "nursery", request.getfixturevalue("nursery"))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Makes an installation, which ends with the test."""
    made: list[Served] = []

    def make(state: str = "", more: str = "") -> Served:
        made.append(Served(tmp_path / "site", state, more))
        return made[-1]

    yield make
    for site in made:
        site.close()
