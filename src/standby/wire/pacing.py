"""Links under the traffic rules of their process (`throttle`)."""

from __future__ import annotations

import contextlib
import ssl

from standby.wire.link import Link
from standby.wire.throttle import Throttles


def pace(
    link: Link, throttles: Throttles, *, weight: float = 1.0, is_control: bool = False
) -> Link:
    """The link, which asks the rules from now on. A control link is counted and never waits."""
    with contextlib.suppress(OSError):  # it has ended already, and so has the one who asks
        link.throttle = throttles.pace(
            link.connection,
            weight=weight,
            is_control=is_control,
            is_tls=isinstance(link.connection, ssl.SSLSocket),
        )
    return link
