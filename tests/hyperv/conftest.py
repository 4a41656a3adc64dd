"""One simulated Hyper-V host and the source side that drives it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clocks import HeldClock
from hyperv.installation import SimulatedHost
from hyperv.world import World
from standby.host.hyperv.source import HyperVSource


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world with the host hv1."""
    made = World(HeldClock(), tmp_path / "world")
    made.add_host("hv1")
    return made


@pytest.fixture
def host(world: World) -> Iterator[SimulatedHost]:
    """hv1 behind its WinRM service."""
    with SimulatedHost(world, "hv1") as made:
        yield made


@pytest.fixture
def source(world: World, host: SimulatedHost, tmp_path: Path) -> Iterator[HyperVSource]:
    """hv1 as the source "prod" of an installation."""
    with host.door() as door:
        yield HyperVSource("prod", door, tmp_path / "records", world.clock)
