"""What tests over networks of namespaces share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from net.network import require_network
from net.nursery import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where the processes of sites are started."""
    require_network()
    with Nursery() as made:
        yield made
