"""What tests over networks of namespaces share."""

from __future__ import annotations

import pytest

from net.network import require_network
from net.nursery import Nursery


@pytest.fixture(scope="session")
def nursery(nursery: Nursery) -> Nursery:
    """Where the processes of sites are started."""
    require_network()
    return nursery
