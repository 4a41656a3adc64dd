"""The global cache as one disk's transfer uses it: questions of some bytes of each name, what was
found kept until it was read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from standby.wan.locations import NONE, Locations, Mask, Names
from standby.wan.namespace import Namespace
from standby.wan.payloads import Pieces
from standby.wan.references import ASKED

Numbers = npt.NDArray[np.int64]


class CacheTransfer:
    """What one transfer asks of a tenant's cache (the cache's half of `decoding.Held`). `close` it
    in the end."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._pin = namespace.pin()

    def find(self, asked: npt.NDArray[np.uint8]) -> tuple[Mask, Locations]:
        """For the bytes ASKED of each name, (n, 6) uint8: which are there, and where; what was
        found stays until `release`."""
        found = self._namespace.lookup(asked, self._pin, ASKED)
        return found != NONE, found

    def read_found(self, locations: Locations, rows: Numbers, out: Pieces) -> Mask:
        """Fill these rows of `out` (m, 4096) with the content at locations that `find` gave, and
        say which could be read. Whoever writes it proves it first, by the digests of units."""
        return self._namespace.read_into(locations, rows, out)

    def disprove(self, locations: Locations, names: Names) -> None:
        """What was read at these locations had these names (n, 16): what differs from those that
        it should have goes."""
        self._namespace.disprove(locations, names)

    def release(self, locations: Locations) -> None:
        """These need not stay for this transfer any more."""
        self._pin.let_go(locations)

    def close(self) -> None:
        """Nothing needs to stay."""
        self._pin.release()
