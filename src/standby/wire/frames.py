"""The frame: a fixed header, a msgpack message, raw payload bytes.

    offset  size  field
    0       4     magic "STBY"
    4       2     protocol version, 1
    6       2     flags, 0
    8       4     message length m, 1 .. MESSAGE_MAX
    12      8     payload length p, 0 .. PAYLOAD_MAX
    20      m     message (msgpack)
    20+m    p     payload

All integers are little-endian. A peer that breaks a limit gets its connection closed before any
memory is set aside for what it announced.
"""

from __future__ import annotations

import struct

from standby.errors import ProtocolError, VersionMismatch
from standby.units import MiB

MAGIC = b"STBY"
VERSION = 1
HEADER = struct.Struct("<4sHHIQ")
MESSAGE_MAX = 16 * MiB
PAYLOAD_MAX = 64 * MiB

assert HEADER.size == 20


def packed_header(message_length: int, payload_length: int) -> bytes:
    """The header of a frame; raises ProtocolError when our own message breaks a limit."""
    if not 0 < message_length <= MESSAGE_MAX or payload_length > PAYLOAD_MAX:
        raise ProtocolError(
            "ourselves", f"frame of {message_length}+{payload_length} bytes exceeds the limits"
        )
    return HEADER.pack(MAGIC, VERSION, 0, message_length, payload_length)


def parsed_header(
    data: bytes | bytearray | memoryview,
    peer: str,
    message_max: int = MESSAGE_MAX,
    payload_max: int = PAYLOAD_MAX,
) -> tuple[int, int]:
    """(message length, payload length); raises ProtocolError naming the field that is wrong."""
    magic, version, flags, message_length, payload_length = HEADER.unpack(data)
    if magic != MAGIC:
        raise ProtocolError(peer, f"frame begins with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        problem = f"protocol version {version}, this side speaks {VERSION}"
        raise VersionMismatch(peer, problem, version, VERSION)
    if flags != 0:
        raise ProtocolError(peer, f"frame flags {flags:#x} are not known")
    if not 0 < message_length <= message_max:
        raise ProtocolError(peer, f"message length {message_length} is not 1..{message_max}")
    if payload_length > payload_max:
        raise ProtocolError(peer, f"payload length {payload_length} exceeds {payload_max}")
    return message_length, payload_length
