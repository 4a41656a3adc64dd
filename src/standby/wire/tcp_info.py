"""What Linux tells of a TCP connection (struct tcp_info of linux/tcp.h).

Bytes on the wire are counted as interfaces without offload count them: everything TCP sent, TLS,
retransmissions and bare acknowledgements included, with Ethernet, IP and TCP headers for every
packet.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import NamedTuple

from standby.wire.throttle import PACKET_HEADERS

_SIZE = 208
"""Up to tcpi_bytes_sent, which is there since Linux 4.19."""

_RECEIVED = struct.Struct("=128xQIII")
"""tcpi_bytes_received, tcpi_segs_out, tcpi_segs_in, tcpi_notsent_bytes."""
_LIMITED = struct.Struct("=176xQ")
"""tcpi_rwnd_limited, microseconds."""
_SENT = struct.Struct("=200xQ")


class TcpTold(NamedTuple):
    """Of one connection, so far."""

    wire_sent: int
    wire_received: int
    unsent: int
    """Bytes in the socket that TCP has not sent yet."""
    peer_waits_s: float
    """In which the peer, not the network, had no room."""


def told_of(connection: socket.socket) -> TcpTold | None:
    """What the system tells; None where it does not, or it is no TCP connection."""
    headers = PACKET_HEADERS.get(connection.family)
    if sys.platform != "linux" or headers is None:
        return None
    try:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
    except (OSError, ValueError):  # closed
        return None
    if len(told) < _SIZE:
        return None
    received, packets_out, packets_in, unsent = _RECEIVED.unpack_from(told)
    (sent,) = _SENT.unpack_from(told)
    (limited_us,) = _LIMITED.unpack_from(told)
    return TcpTold(
        sent + packets_out * headers, received + packets_in * headers, unsent, limited_us / 1e6
    )
