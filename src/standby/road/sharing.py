"""Memory that the movers of one machine share beside a data link, as child movers do.

Plain movers run on one machine (`wire.plain`), so batches need not go through a socket, which
would cost each side a pass over them: the source offers memory, and where the target can open it,
only tables and messages travel on the link.
"""

from __future__ import annotations

import threading

from standby.errors import ProtocolError
from standby.units import MiB
from standby.wire.link import Link
from standby.wire.messages import MemoryTaken, OfferMemory
from standby.wire.shared_memory import SharedRing, offered, taken

SLOTS = 3
SLOT_SIZE = 16 * MiB
"""As between child movers (`server.movers`, where the measurements are)."""

TIMEOUT_S = 30.0


def shared_ring(link: Link, *, is_source: bool) -> SharedRing | None:
    """The memory that both ends of a new data link share from now on; None where they do not."""
    if not link.shares_memory:
        return None
    deadline = threading.Timer(TIMEOUT_S, link.shutdown)
    deadline.daemon = True
    deadline.start()
    try:
        return _offered(link) if is_source else _taken(link)
    finally:
        deadline.cancel()


def _offered(link: Link) -> SharedRing | None:
    with offered(SLOTS, SLOT_SIZE) as (ring, place, mark):
        link.send(OfferMemory(place, mark, SLOTS, SLOT_SIZE))
        answer, _ = link.receive()
    if not isinstance(answer, MemoryTaken):
        raise ProtocolError(link.peer, f"answered an offer with {type(answer).__name__}")
    return ring if answer.is_taken else None


def _taken(link: Link) -> SharedRing | None:
    offer, _ = link.receive()
    if not isinstance(offer, OfferMemory):
        raise ProtocolError(link.peer, f"expected an offer, got {type(offer).__name__}")
    ring = taken(offer.place, offer.mark, offer.slots, offer.slot_size)
    link.send(MemoryTaken(ring is not None))
    return ring
